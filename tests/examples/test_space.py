# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""
The Space: what it computes, in any environment; its page in a real browser, where gradio, playwright and a Chromium are.

`make test-space` makes such an environment.
"""

import base64
import importlib.util
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import LABELS, make_pipeline, make_transformer, randn

import diffusers_lowfreq
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline
from diffusers_lowfreq.autoencoding import encode_images
from diffusers_lowfreq.evaluation import count_flops


ROOT = Path(__file__).parents[2]
SPACE = ROOT / "examples" / "space"
sys.path += [str(ROOT / "benchmarks"), str(SPACE)]
import pictures  # noqa: E402
import space  # noqa: E402


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


@pytest.fixture(scope="module")
def pipelines() -> dict[str, LowFreqPipeline]:
    return pictures.load_pipelines()


@pytest.fixture
def sketch() -> Image.Image:
    return Image.open(SPACE / "sketches" / "horse.png")


# ------------------------------------------------------------------------------------------------ what it computes


def test_an_image_and_its_cost_are_those_of_the_pipeline(pipelines):
    arguments = {"num_inference_steps": 3, "guidance_scale": 2.0, "noise_ratio": 0.4}
    pipe = pipelines["cifar10-32"]
    coarse, image = pictures.generate(pipe, "horse", **arguments, seed=5)
    expected = pipe(
        "horse", **arguments, prior_guidance_scale=2.0, generator=torch.Generator().manual_seed(5), output_prior_images=True
    )  # fmt: skip
    np.testing.assert_array_equal(pixels(image.image), pixels(expected.images[0]))
    np.testing.assert_array_equal(pixels(coarse.image), pixels(expected.prior_images[0]))
    share = count_flops(pipe.prior, (8, 4, 4)) / count_flops(pipe.transformer, (8, 8, 8))
    assert image.effective_nfe == pipe.effective_nfe and coarse.effective_nfe == pytest.approx(2 * 8 * share)
    assert 0 < coarse.seconds < image.seconds and image.title == "After 3 steps of the flow"


def test_a_one_step_image_takes_a_call_of_each_network_and_one_for_the_coarse_picture(pipelines):
    pipe = pipelines["cifar10-32-one-step"]
    coarse, image = pictures.generate(pipe, "ship", 1, 4.0, 0.25, seed=0)
    share = count_flops(pipe.prior, (8, 4, 4)) / count_flops(pipe.transformer, (8, 8, 8))
    assert (coarse.effective_nfe, image.effective_nfe) == pytest.approx((2 * share, 1 + 2 * share))
    assert image.title == "After 1 step of the flow"


@pytest.mark.parametrize("name", ["cifar10-32", "cifar10-32-one-step"])
def test_what_the_page_offers_is_what_the_checkpoint_allows(pipelines, name):
    pipe = pipelines[name]
    settings = pictures.settings(pipe)
    values = {setting: limits["value"] for setting, limits in settings.items()}
    for setting, limits in settings.items():
        for value in {limits["minimum"], limits["maximum"]} if limits["interactive"] else {limits["value"]}:
            pictures.generate(pipe, "cat", **values | {setting: value}, seed=0)
    lowest, highest = pipe.scheduler.config.noise_ratio_range
    wrong = {"num_inference_steps": (0, 2.5, None), "noise_ratio": (lowest - 0.01, highest + 0.01, "much")}
    wrong |= {
        "guidance_scale": (-1.0, "much") if name == "cifar10-32" else (3.9,),
        "seed": (-1, 2**32, 1.5, None, True),
    }
    wrong |= {"class_labels": ("unicorn",)}
    for argument, refused in wrong.items():
        for value in refused:
            kwargs = {"class_label": "cat", "seed": 0, **values, argument.replace("labels", "label"): value}
            with pytest.raises(ValueError, match=f"^`{argument}` must"):
                pictures.generate(pipe, **kwargs)
    assert settings["guidance_scale"]["interactive"] == (name == "cifar10-32")


def test_without_a_range_the_noise_ratio_is_fixed():
    pipe = make_pipeline(scheduler=LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.3))
    fixed = pictures.settings(pipe)["noise_ratio"]
    assert fixed["value"] == 0.3 and not fixed["interactive"]
    pictures.generate(pipe, LABELS[0], 2, 2.0, fixed["value"], seed=0)


@pytest.mark.parametrize("class_label", ["horse", None])
def test_detail_grows_to_the_image_of_the_pipeline(pipelines, sketch, class_label):
    pipe, steps = pipelines["cifar10-32"], 4
    shown = list(pictures.refine(pipe, sketch, class_label, steps, 3.0, 0.4, seed=7))
    image = pipe.image_processor.preprocess(pictures.fit_image(pipe, sketch))
    with torch.no_grad():
        low = pipe.scheduler.projection.downsample(encode_images(pipe.vae, image))
    guidance = {"class_labels": class_label, "guidance_scale": 3.0} if class_label else {}
    arguments = {"num_inference_steps": steps, "noise_ratio": 0.4, "generator": torch.Generator().manual_seed(7)}
    expected = pipe(prior_latents=low, **arguments, **guidance, output_prior_images=True)
    np.testing.assert_array_equal(pixels(shown[-1].image), pixels(expected.images[0]))
    np.testing.assert_array_equal(pixels(shown[1].image), pixels(expected.prior_images[0]))
    calls = 2 if class_label else 1
    assert [picture.effective_nfe for picture in shown] == [0, 0, *(calls * i for i in range(1, steps + 1))]
    assert [picture.title for picture in shown[2:]] == [f"Step {i} of 4" for i in range(1, steps + 1)]
    seconds = [picture.seconds for picture in shown]
    assert seconds == sorted(seconds) and seconds[0] > 0


@pytest.mark.parametrize("noise_ratio", [0.3, 0.7])
def test_a_flow_that_knows_its_one_point_shows_it_after_every_step(noise_ratio):
    """The exact velocity of point data is `(x - point) / sigma`: what a step would end in is the point, from the first."""
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=noise_ratio, noise_ratio_range=[0.2, 0.8])
    pipe = make_pipeline(scheduler=scheduler, transformer=make_transformer(use_noise_ratio=True, sample_size=(8, 8)))
    point = randn(1, 4, 8, 8, seed=3)
    pipe.transformer.forward = lambda x, t, **kwargs: ((x - point) / (t.view(-1, 1, 1, 1) / 1000),)
    colors = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    shown = list(pictures.refine(pipe, Image.fromarray(colors), None, 5, 1.0, noise_ratio, seed=1))
    expected = pixels(pictures.decode_picture(pipe, point))
    assert len(shown) == 7 and np.ptp(expected) > 50
    for picture in shown[2:]:
        np.testing.assert_allclose(pixels(picture.image), expected, atol=1)
    assert np.abs(pixels(shown[1].image) - expected).max() > 50


def test_a_visitor_who_leaves_stops_the_flow(pipelines, sketch):
    pipe, calls = pipelines["cifar10-32"], []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    stream = pictures.refine(pipe, sketch, None, 16, 1.0, 0.25, seed=0)
    for _ in range(3):
        next(stream)
    stream.close()  # after the first step; the flow may be in the second or, on a busy machine, in one soon after
    stopped = len(calls)
    hook.remove()
    assert 1 <= stopped < 16
    assert len(list(pictures.refine(pipe, sketch, None, 2, 1.0, 0.25, seed=0))) == 4  # and the next one is served


def test_an_error_of_the_flow_reaches_the_page(pipelines, sketch):
    with pytest.raises(ValueError, match="`noise_ratio` must be in the trained range"):
        list(pictures.refine(pipelines["cifar10-32"], sketch, None, 2, 1.0, 0.9, seed=0))
    with pytest.raises(ValueError, match="`class_labels` must be among"):
        list(pictures.refine(pipelines["cifar10-32"], sketch, "unicorn", 2, 1.0, 0.25, seed=0))


def test_images_of_any_mode_and_size_become_that_of_the_model(pipelines):
    pipe, red = pipelines["cifar10-32"], (200, 30, 30)
    for image in (
        Image.new("RGB", (500, 40), red),
        Image.new("RGB", (1, 300), red),
        Image.new("RGB", (8, 8), red),
        Image.new("RGBA", (64, 64), (*red, 255)),
        Image.new("RGB", (40, 40), red).quantize(4),
        Image.new("RGB", (40, 40), red).convert("CMYK"),
    ):
        fitted = pictures.fit_image(pipe, image)
        assert fitted.size == (32, 32) and fitted.mode == "RGB"
        np.testing.assert_allclose(pixels(fitted), np.broadcast_to(red, (32, 32, 3)), atol=2)
    assert np.ptp(pixels(pictures.fit_image(pipe, Image.new("I;16", (32, 32), 300)))) == 0
    half = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    half.paste((*red, 255), (0, 0, 16, 32))
    fitted = pixels(pictures.fit_image(pipe, half))  # what was not painted is white
    assert (fitted[:, 20:] == 255).all() and (fitted[:, :12] == red).all()


def test_the_centre_is_cropped_and_a_camera_held_upright_is_believed(pipelines):
    image = Image.new("RGB", (96, 32), "black")
    image.paste("white", (32, 0, 64, 32))
    assert (pixels(pictures.fit_image(pipelines["cifar10-32"], image)) == 255).all()
    upper = Image.new("RGB", (32, 32), "black")
    upper.paste("white", (0, 0, 32, 16))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: what is above comes to the right
    upper.save(file, "png", exif=exif)
    turned = pixels(pictures.fit_image(pipelines["cifar10-32"], Image.open(file)))
    assert (turned[:, 16:] == 255).all() and (turned[:, :16] == 0).all()
    file = io.BytesIO()
    upper.save(file, "jpeg", exif=b"Exif\0\0 these are no EXIF data", quality=100)
    stored = pixels(pictures.fit_image(pipelines["cifar10-32"], Image.open(file)))
    assert (stored[:16] > 250).all() and (stored[16:] < 5).all()


@pytest.mark.parametrize("image", [None, Image.new("RGBA", (32, 32), (255, 0, 0, 0))])
def test_an_empty_canvas_is_said_to_be_empty(pipelines, image):
    with pytest.raises(ValueError, match="canvas is empty"):
        next(pictures.refine(pipelines["cifar10-32"], image, None, 2, 1.0, 0.25, seed=0))


def test_the_space_is_what_the_hub_expects():
    header = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    pins = dict(re.findall(r"^([\w-]+)==(.+)$", (SPACE / "requirements.txt").read_text(), re.MULTILINE))
    assert header["sdk"] == "gradio" and header["sdk_version"] == pins["gradio"]
    assert pins["diffusers-lowfreq"] == diffusers_lowfreq.__version__
    assert (SPACE / header["app_file"]).is_file() and header["license"] == "apache-2.0"
    assert header["models"] == list(pictures.HUB_IDS) and header["models"][0] == diffusers_lowfreq.HUB_ID
    assert len(header["short_description"]) <= 60  # the Hub takes no longer one


# ------------------------------------------------------------------------------------------------ the page

MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += ["a Chromium"] if space.find_browser() is None else []
in_a_browser = pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}; see `make test-space`")


def shown_pictures(page) -> dict[str, tuple[np.ndarray, str]]:
    """The visible pictures of the page by their titles, as pixels with the text of their cost."""
    found = {}
    for figure in page.locator(".pictures:visible figure").all():
        image = figure.locator("img")
        assert image.evaluate("image => image.complete && image.naturalWidth == 32 && image.width > 100")
        content = base64.b64decode(image.get_attribute("src").removeprefix("data:image/png;base64,"))
        found[image.get_attribute("alt")] = (
            pixels(Image.open(io.BytesIO(content))),
            figure.locator("small").inner_text(),
        )
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("space") / "log"
    with space.serve(str(log)) as url:
        yield url
    # Nothing but what gradio itself refuses, and logs, was raised in there
    raised = re.findall(r"^([\w.]+(?:Error|Exception|Exit|Interrupt))\b", log.read_text(), re.MULTILINE)
    assert set(raised) <= {"gradio.exceptions.Error"}, log.read_text()


@pytest.mark.slow
@in_a_browser
def test_a_visitor_generates(server, pipelines):
    pipe = pipelines["cifar10-32"]
    with space.open_page(server) as page:
        seen = []
        for class_label, seed in (("ship", 0), ("horse", 0), ("horse", 1)):
            page.get_by_label("Class").click()
            page.get_by_role("option", name=class_label).click()
            space.seconds_to(page, "Generate", seed, "After 8 steps of the flow")
            (coarse, _), (image, cost) = shown_pictures(page).values()
            arguments = {"guidance_scale": 4.0, "prior_guidance_scale": 4.0, "num_inference_steps": 8}
            expected = pipe(class_label, **arguments, generator=torch.Generator().manual_seed(seed)).images[0]
            np.testing.assert_allclose(image, pixels(expected), atol=2)  # threads may add in another order
            assert np.ptp(image) > 50 and np.ptp(coarse) > 50 and np.abs(image - coarse).max() > 20
            assert cost.split("\n")[0] == f"{pipe.effective_nfe:.2f} effective NFE"
            assert re.fullmatch(r"\d+\.\d\d s", cost.split("\n")[1])
            assert all(np.abs(image - other).max() > 20 for other in seen)
            seen.append(image)

        page.get_by_label("cifar10-32-one-step").click()
        page.get_by_role("slider", name="Inference steps").and_(page.locator("[max='4']")).wait_for()
        assert page.get_by_label("Guidance scale").first.is_disabled()
        space.seconds_to(page, "Generate", 1, "After 1 step of the flow")
        ((_, _), (image, cost)) = shown_pictures(page).values()
        pictures.generate(pipelines["cifar10-32-one-step"], "horse", 1, 4.0, 0.25, seed=1)
        assert cost.startswith(f"{pipelines['cifar10-32-one-step'].effective_nfe:.2f} effective NFE")

        page.get_by_label("Seed").fill("-5")  # what cannot be is said, and the next click is served
        page.get_by_role("button", name="Generate", exact=True).click()
        page.get_by_text("`seed` must be an integer").wait_for()
        space.seconds_to(page, "Generate", 2, "After 1 step of the flow")


@pytest.mark.slow
@in_a_browser
def test_a_visitor_brings_an_image(server, pipelines, sketch, tmp_path):
    titles = [f"Step {i} of 8" for i in range(1, 9)]
    with space.open_page(server) as page:
        space.open_canvas(page)
        upload = page.locator("input[type=file]").first
        (tmp_path / "text.txt").write_text("this is no image")
        upload.set_input_files(tmp_path / "text.txt")
        page.wait_for_timeout(1000)
        page.get_by_role("button", name="Add detail").click()
        page.get_by_text("The canvas is empty").first.wait_for()
        assert not shown_pictures(page) and "Traceback" not in page.content()

        sketch.convert("RGB").resize((600, 600)).save(tmp_path / "sketch.png")
        upload.set_input_files(tmp_path / "sketch.png")
        page.wait_for_timeout(1000)
        space.seconds_to(page, "Add detail", 3, *titles)
        found = shown_pictures(page)
        assert list(found) == ["Yours, 32 × 32", "Its coarse latent, decoded", *titles]
        expected = list(
            pictures.refine(pipelines["cifar10-32"], Image.open(tmp_path / "sketch.png"), "ship", 8, 4.0, 0.25, 3)
        )
        for (image, cost), picture in zip(found.values(), expected):
            assert np.abs(image - pixels(picture.image)).max() <= 3, np.abs(image - pixels(picture.image)).max()
            assert cost.startswith(f"{picture.effective_nfe:.2f} effective NFE")
        steps = [found[title][0] for title in titles]
        assert all(np.abs(a - b).max() > 0 for a, b in zip(steps, steps[1:]))

        page.get_by_label("Clear canvas").click()  # and painted, with the brush
        page.wait_for_timeout(1000)
        box = page.locator("canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.get_by_label("Brush", exact=True).click()
        page.mouse.move(x - 80, y)
        page.mouse.down()
        page.mouse.move(x + 80, y, steps=8)
        page.mouse.up()
        page.wait_for_timeout(500)
        space.seconds_to(page, "Add detail", 4, titles[-1])
        painted = shown_pictures(page)["Yours, 32 × 32"][0]
        red, white = painted[16, 16], painted[2, 2]
        assert (white == 255).all() and red[0] > 150 and red[1:].max() < 80


@pytest.mark.slow
@in_a_browser
def test_bad_calls_of_the_interface_get_a_message(server, tmp_path):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    (tmp_path / "text.png").write_text("this is no image")
    client = Client(server, verbose=False)
    good = ["cifar10-32", "ship", 2, 4.0, 0.25, 0]
    for place, value, message in (
        (0, "cifar10-64", "not in the list"),
        (1, "unicorn", "not in the list"),
        (2, 0, "less than minimum"),
        (2, 1000, "greater than maximum"),
        (2, 2.5, "`num_inference_steps` must be a positive integer"),
        (3, 99.0, "greater than maximum"),
        (4, 0.9, "greater than maximum"),
        (5, 2**40, "`seed` must be an integer"),
    ):
        with pytest.raises(AppError, match=message):
            client.predict(*good[:place], value, *good[place + 1 :], api_name="/generate")
    with pytest.raises(AppError, match="`guidance_scale` must be left out, or be 4"):
        client.predict("cifar10-32-one-step", "ship", 1, 5.0, 0.25, 0, api_name="/generate")
    image = {"background": None, "layers": [], "composite": handle_file(str(tmp_path / "text.png"))}
    with pytest.raises(AppError, match="cannot be read as an image"):
        client.predict(image, *good, api_name="/refine")
    with pytest.raises(AppError, match="canvas is empty"):
        client.predict(None, *good, api_name="/refine")
    assert "effective NFE" in client.predict(*good, api_name="/generate")
