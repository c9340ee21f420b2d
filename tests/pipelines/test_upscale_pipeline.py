# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The upscaling pipeline: what it computes, against `LowFreqPipeline` with the coarse latents made by hand, and its bad input."""

import inspect
import json
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import LABELS, make_components, make_pipeline, make_transformer, randn, seeded

from diffusers import DiffusionPipeline
from diffusers.utils.logging import disable_progress_bar, enable_progress_bar
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFreqUpscalePipeline
from diffusers_lowfreq.autoencoding import encode_images
from diffusers_lowfreq.model_card import save_model_card


def make_upscaler(vae="kl", **changes) -> LowFreqUpscalePipeline:
    components = make_components(vae, **changes)
    del components["prior"]
    pipe = LowFreqUpscalePipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=seeded(seed))


def generate(pipe, image, labels=None, **inputs):
    inputs = {"num_inference_steps": 2, "output_type": "pt", "generator": seeded(), **inputs}
    return pipe(image, labels, **inputs).images


# ------------------------------------------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("labels, scale", [(None, 1.0), (["dog", 0], 1.0), (["dog", 0], 2.5)])
@pytest.mark.parametrize("vae", ["kl", "tiny", "dc", None])
def test_it_is_the_pipeline_with_the_coarse_latent_of_the_picture(vae, labels, scale):
    changes = {"transformer": make_transformer(in_channels=3)} if vae is None else {}
    changes["scheduler"] = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.4, noise_ratio_range=[0.2, 0.8])
    changes["scheduler"].set_shift(2.0)
    pipe = make_upscaler(vae, **changes)
    size = pipe.default_size
    images = pictures(2, 3, *size)
    with torch.no_grad():
        sample = images * 2 - 1 if pipe.vae is None else encode_images(pipe.vae, images * 2 - 1)
    low = F.interpolate(sample, scale_factor=0.5, mode="bicubic", antialias=True)
    generator = LowFreqPipeline(**pipe.components, id2label=LABELS)
    generator.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 3, "guidance_scale": scale, "output_type": "pt", "output_prior_images": True}
    expected = generator(labels, prior_latents=low, noise_ratio=0.3, generator=seeded(), **options)
    result = pipe(images, labels, strength=0.3, generator=seeded(), **options)
    torch.testing.assert_close(result.prior_latents, low, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.images, expected.images, rtol=1e-4, atol=1e-5)
    # bit for bit with the coarse latents that it says it had
    again = generator(labels, prior_latents=result.prior_latents, noise_ratio=0.3, generator=seeded(), **options)
    assert torch.equal(result.images, again.images) and torch.equal(result.prior_images, again.prior_images)
    assert pipe.effective_nfe == generator.effective_nfe == 3 * (2 if scale != 1 else 1)


@pytest.mark.parametrize("projection", ["area", "dct"])
def test_the_source_projects_on_the_coarse_latent_of_the_picture(projection):
    """D(source) = (1 - strength) D(x) + strength D(noise), and D(U(low)) = low, for the orthogonal projections."""
    scheduler = LowFreqFlowMatchScheduler(projection=projection, factor=2, noise_ratio=0.3)
    pipe = make_upscaler(None, transformer=make_transformer(in_channels=3), scheduler=scheduler)
    seen = []
    pipe.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = pictures(2, 3, 8, 8)
    generate(pipe, images)
    noise = torch.randn((2, 3, 8, 8), generator=seeded())
    low = scheduler.projection.downsample
    torch.testing.assert_close(low(seen[0]) - 0.3 * low(noise), 0.7 * low(images * 2 - 1), rtol=1e-5, atol=1e-6)


def test_variations_share_the_layout_and_differ_in_detail():
    pipe = make_upscaler()
    images = pictures(2, 3, 16, 16)
    output = pipe(images, ["cat", "ship"], num_images_per_prompt=3, generator=seeded(), output_type="pt")
    assert output.images.shape == (6, 3, 16, 16)
    for picture in (0, 1):
        own = output.images[3 * picture : 3 * picture + 3]
        coarse = output.prior_latents[3 * picture : 3 * picture + 3]
        assert torch.equal(coarse, coarse[:1].expand_as(coarse))
        assert all((own[i] - own[j]).abs().max() > 1e-3 for i in range(3) for j in range(i))
    assert not torch.equal(output.prior_latents[0], output.prior_latents[3])
    again = pipe(images, ["cat", "ship"], num_images_per_prompt=3, generator=seeded(), output_type="pt").images
    assert torch.equal(output.images, again)
    # One generator an image: each as if it were alone
    each = generate(pipe, images, [0, 2], num_images_per_prompt=2, generator=[seeded(i) for i in range(4)])
    for i in range(4):
        alone = generate(pipe, images[i // 2], [0, 2][i // 2], generator=[seeded(i)])
        torch.testing.assert_close(each[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_one_label_is_for_all_pictures():
    pipe = make_upscaler()
    images = pictures(3, 3, 16, 16)
    assert torch.equal(generate(pipe, images, "dog"), generate(pipe, images, ["dog"] * 3))
    assert not torch.equal(generate(pipe, images, "dog"), generate(pipe, images, "cat"))


def test_more_strength_is_more_noise():
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.5, noise_ratio_range=[0.1, 0.9])
    pipe = make_upscaler(scheduler=scheduler, transformer=make_transformer(use_noise_ratio=True))
    ratios = []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: ratios.append(kwargs["noise_ratio"].tolist()), with_kwargs=True
    )
    image = pictures(3, 16, 16)
    made = {a: generate(pipe, image, strength=a, num_inference_steps=1) for a in (0.1, 0.5, 0.9)}
    assert ratios == [[pytest.approx(a)] for a in made]
    assert torch.equal(generate(pipe, image, num_inference_steps=1), made[0.5])
    assert not torch.equal(made[0.1], made[0.9])


# ---------------------------------------------------------------------------------------------------------- the pictures


@pytest.fixture(scope="module")
def pipe():
    return make_upscaler()


def test_arrays_tensors_and_pil_images_are_one(pipe):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    expected = pipe.prepare_image(tensor.float() / 255, 16, 16)
    torch.testing.assert_close(expected, tensor.float() / 127.5 - 1, rtol=0, atol=1e-6)
    pil = [Image.fromarray(p) for p in pixels]
    same = [pixels, tensor, pixels / 255, pil, list(pixels), list(tensor), [pil[0], tensor[1]]]
    same += [pixels.astype(np.uint16) * 257, (pixels / 255).astype(np.float64), tuple(pil)]
    for image in same:
        torch.testing.assert_close(pipe.prepare_image(image, 16, 16), expected, rtol=0, atol=1e-6)
    for image in (pixels[0], tensor[0], pil[0]):
        torch.testing.assert_close(pipe.prepare_image(image, 16, 16), expected[:1], rtol=0, atol=1e-6)


def test_pil_images_of_every_mode(pipe):
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    grey = torch.from_numpy(np.array(rgb.convert("L"))).float() / 127.5 - 1
    for image in (rgb.convert("L"), Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)):
        assert torch.equal(pipe.prepare_image(image, 16, 16), grey.expand(1, 3, -1, -1))
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    assert pipe.prepare_image(clear, 16, 16).eq(1).all()  # transparency is laid on white
    for mode in ("P", "CMYK", "1", "LA", "YCbCr", "HSV"):
        other = rgb.convert(mode)
        expected = torch.from_numpy(np.array(other.convert("RGB"))).permute(2, 0, 1).float() / 127.5 - 1
        torch.testing.assert_close(pipe.prepare_image(other, 16, 16)[0], expected, rtol=0, atol=1e-6)
    turned = Image.new("RGB", (16, 16))
    turned.paste("red", (0, 0, 16, 8))
    turned.getexif()[0x0112] = 6  # to be turned by a quarter to the right: what is above comes to the right
    red = pipe.prepare_image(turned, 16, 16)[0, 0]
    assert red[:, 8:].eq(1).all() and red[:, :8].eq(-1).all()


@pytest.mark.parametrize("size", [(4, 4), (5, 5), (16, 16), (64, 64), (1, 1), (100, 101)])
def test_pictures_of_every_size_are_resized_as_pil_does(pipe, size):
    # Not too bright or dark: PIL cuts off between the axes what bicubic interpolation overshoots
    image = Image.fromarray(np.random.default_rng(2).integers(64, 192, (*size, 3), dtype=np.uint8))
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).astype(np.float32) / 127.5 - 1
    actual = pipe.prepare_image(image, 16, 16)[0].permute(1, 2, 0)
    assert (actual - torch.from_numpy(expected)).abs().max() <= 2.1 / 127.5  # PIL rounds between the axes, to 8 bits
    assert generate(pipe, image).shape == (1, 3, 16, 16)


def test_a_list_may_mix_sizes(pipe):
    small, large = pictures(3, 8, 8), pictures(3, 40, 40, seed=1)
    both = generate(pipe, [small, large], generator=[seeded(0), seeded(1)])
    torch.testing.assert_close(both[1:], generate(pipe, large, generator=[seeded(1)]), rtol=1e-4, atol=1e-5)


def test_another_aspect_is_refused_or_treated_as_asked(pipe):
    wide = torch.zeros(3, 8, 24)
    wide[:, :, 8:16] = 1  # a white middle of the right aspect
    with pytest.raises(ValueError, match="`image` must have the aspect of `height` and `width`, 16x16, got 8x24"):
        pipe(wide)
    torch.testing.assert_close(pipe.prepare_image(wide, 16, 16, "crop"), torch.ones(1, 3, 16, 16), rtol=0, atol=1e-5)
    tall = wide.clone()
    tall[:, :2] = 0.5  # the border above, to be repeated
    padded = torch.cat([tall[:, :1].expand(-1, 8, -1), tall, tall[:, -1:].expand(-1, 8, -1)], dim=1)
    filled = F.interpolate(padded[None], (16, 16), mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    assert torch.equal(pipe.prepare_image(tall, 16, 16, "fill"), filled)
    squeezed = F.interpolate(wide[None], (16, 16), mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    assert torch.equal(pipe.prepare_image(wide, 16, 16, "default"), squeezed)
    for mode in ("crop", "fill", "default"):
        assert pipe(wide, resize_mode=mode, output_type="pt").images.shape == (1, 3, 16, 16)
        square = pictures(3, 16, 16)
        assert torch.equal(pipe.prepare_image(square, 16, 16, mode), pipe.prepare_image(square, 16, 16))
    small = pictures(3, 9, 5)  # a thumbnail by about 5 of 48x24, rounded
    assert pipe.prepare_image(small, 48, 24).shape == (1, 3, 48, 24)
    assert pipe(small, height=48, width=24, output_type="pt").images.shape == (1, 3, 48, 24)


def test_a_grey_model_takes_grey_pictures():
    pipe = make_upscaler(None, transformer=make_transformer(in_channels=1))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    expected = torch.from_numpy(np.array(image.convert("L"))).float() / 127.5 - 1
    assert torch.equal(pipe.prepare_image(image, 8, 8)[0, 0], expected)
    with pytest.raises(ValueError, match=r"`image` .* of 1 channel, got \(3, 8, 8\)"):
        pipe(pictures(3, 8, 8))
    with pytest.raises(ValueError, match="`image` must be a tensor of the 4 channels of this model, got a PIL image"):
        make_upscaler(None)(image)


# ------------------------------------------------------------------------------------------------------------- bad input


NAN = torch.full((3, 16, 16), float("nan"))
BAD_IMAGES = {
    "nothing": (None, "must be a PIL image, an array, a tensor or a list"),
    "a path": ("thumbnail.png", "must be a PIL image"),
    "an empty list": ([], "at least one picture"),
    "a list of lists": ([[pictures(3, 16, 16)]], "must be a PIL image"),
    "an empty batch": (torch.zeros(0, 3, 16, 16), "at least one picture"),
    "no pixels": (torch.zeros(3, 0, 16), r"must have pixels.*\(3, 0, 16\)"),
    "no channels": (pictures(16, 16), r"\(channels, height, width\).*\(16, 16\)"),
    "channels last": (pictures(16, 16, 3), r"\(channels, height, width\).*\(16, 16, 3\)"),
    "channels first": (pictures(3, 16, 16).numpy(), r"\(height, width, channels\).*\(3, 16, 16\)"),
    "transparency": (pictures(16, 16, 4).numpy(), r"of 3 channels, got \(16, 16, 4\)"),
    "five axes": (torch.zeros(1, 1, 3, 16, 16), r"got \(1, 1, 3, 16, 16\)"),
    "not a number": (NAN, "must be finite, got 768 values"),
    "infinite": (torch.full((3, 16, 16), float("inf")), "must be finite"),
    "[-1, 1]": (randn(3, 16, 16).clamp(-1, 1), r"numbers in \[0, 1\], or bytes, got -1 to 1"),
    "[0, 255]": (pictures(3, 16, 16) * 255, r"numbers in \[0, 1\], or bytes, got"),
    "integers": (torch.ones(3, 16, 16, dtype=torch.long), r"numbers in \[0, 1\], or bytes, got torch.int64"),
    "signed integers": (np.ones((16, 16, 3), np.int32), r"numbers in \[0, 1\], or bytes, got int32"),
    "booleans": (np.ones((16, 16, 3), bool), r"numbers in \[0, 1\], or bytes, got bool"),
    "strings": (np.full((16, 16, 3), "a"), r"numbers in \[0, 1\]"),
    "a PIL image without pixels": (Image.new("RGB", (0, 16)), "must have pixels"),
    "a PIL image that is not finite": (Image.fromarray(NAN[0].numpy()), "must have pixels, all of them finite"),
    "one of several": ([pictures(3, 16, 16), NAN], "must be finite"),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
def test_a_bad_picture_is_named_before_a_network_runs(pipe, what):
    image, message = BAD_IMAGES[what]
    runs = []
    hooks = [m.register_forward_pre_hook(lambda *_: runs.append(1)) for m in (pipe.transformer, pipe.vae.encoder)]
    with warnings.catch_warnings(), pytest.raises(ValueError, match=f"`image` .*{message}"):
        warnings.simplefilter("error")
        pipe(image)
    for hook in hooks:
        hook.remove()
    assert not runs


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("strength", 0.4, "must be 0.5, the one that this model was trained with, got 0.4"),
        ("strength", "0.5", r"must be a number in \[0, 1\], got '0.5'"),
        ("strength", float("nan"), r"must be a number in \[0, 1\], got nan"),
        ("height", 18, "must be a positive multiple of 4"),
        ("width", 16.0, "must be a positive multiple of 4"),
        ("resize_mode", "squash", "must be None, 'default', 'crop' or 'fill', got 'squash'"),
        ("class_labels", ["dog", "cat"], "must be one, or one for each of the 1 pictures, got 2"),
        ("class_labels", "horse", "must be among .*got 'horse'"),
        ("num_images_per_prompt", 0, "must be a positive integer, got 0"),
        ("num_inference_steps", 2.0, "must be a positive integer"),
        ("guidance_scale", -1, "must be a finite number"),
        ("generator", [seeded(), seeded()], "must be one .* or a list of 1"),
        ("output_type", "jpg", "must be 'pil', 'np', 'pt' or 'latent'"),
        ("callback_on_step_end_tensor_inputs", ["image"], "must be among"),
    ],
)
def test_a_bad_argument_is_named(pipe, name, value, message):
    with pytest.raises(ValueError, match=f"`{name}` {message}"):
        pipe(pictures(3, 16, 16), **{name: value})


def test_strength_outside_the_trained_range():
    scheduler = LowFreqFlowMatchScheduler(factor=2, noise_ratio=0.3, noise_ratio_range=[0.2, 0.6])
    with pytest.raises(ValueError, match=r"`strength` must be in the trained range \[0.2, 0.6\], got 0.7"):
        make_upscaler(scheduler=scheduler)(pictures(3, 16, 16), strength=0.7)


def test_guidance_without_labels_is_ignored_and_said_so(pipe, caplog):
    image = pictures(3, 16, 16)
    assert torch.equal(generate(pipe, image, guidance_scale=3.0), generate(pipe, image))
    assert "`guidance_scale` is ignored: there are no `class_labels`" in caplog.text


# ------------------------------------------------------------------------------------------------------ as a pipeline


def test_outputs_and_callbacks(pipe):
    image = Image.new("RGB", (8, 8), "red")
    images, coarse = pipe(image, output_prior_images=True, return_dict=False)
    assert isinstance(images[0], Image.Image) and images[0].size == coarse[0].size == (16, 16)
    assert len(pipe(image, return_dict=False)) == 1 and pipe(image).prior_images is None
    assert pipe(image, output_type="np").images.shape == (1, 16, 16, 3)
    steps = []

    def zero(pipe, step, timestep, tensors):
        steps.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipe(image, num_inference_steps=2, output_type="latent", callback_on_step_end=zero).images
    assert latents.abs().sum() == 0 and steps == [(0, 1000.0), (1, 500.0)]


def test_every_argument_is_documented_and_named_as_in_diffusers():
    from diffusers import StableDiffusionImg2ImgPipeline

    names = list(inspect.signature(LowFreqUpscalePipeline.__call__).parameters)
    theirs = list(inspect.signature(StableDiffusionImg2ImgPipeline.__call__).parameters)
    shared = [name for name in names if name in theirs]
    assert shared == [name for name in theirs if name in names] and len(shared) >= 10
    for name in names[1:]:
        assert f"{name} (`" in LowFreqUpscalePipeline.__call__.__doc__, name


def test_it_loads_from_a_pipeline_with_a_prior_and_from_its_own_folder_in_silence(tmp_path, capfd, caplog):
    make_pipeline(truncate_prior=True).save_pretrained(tmp_path / "full")
    disable_progress_bar()
    capfd.readouterr()
    pipe = LowFreqUpscalePipeline.from_pretrained(tmp_path / "full")
    assert sorted(pipe.components) == ["guider", "scheduler", "transformer", "vae"]
    assert pipe.guider is None and len(pipe.labels) == 3
    pipe.save_pretrained(tmp_path / "own")
    again = DiffusionPipeline.from_pretrained(tmp_path / "own")
    enable_progress_bar()
    assert (capfd.readouterr(), caplog.text) == (("", ""), "")
    assert type(again) is LowFreqUpscalePipeline
    for p in (pipe, again):
        p.set_progress_bar_config(disable=True)
    image = pictures(3, 8, 8)
    assert torch.equal(generate(pipe, image, "dog"), generate(again, image, "dog"))
    index = json.loads((tmp_path / "own" / "model_index.json").read_text())
    assert not any("prior" in key for key in index)


def test_from_pipe_shares_components_and_goes_back(tmp_path):
    full = make_pipeline(truncate_prior=True)
    pipe = LowFreqUpscalePipeline.from_pipe(full)
    assert pipe.transformer is full.transformer and pipe.labels == full.labels and pipe.prior is None
    pipe.save_pretrained(tmp_path)
    assert LowFreqUpscalePipeline.from_pretrained(tmp_path).labels == full.labels
    back = LowFreqPipeline.from_pipe(pipe, prior=full.prior)
    assert back.config.truncate_prior and back.prior is full.prior


def test_what_a_newer_version_added_is_refused_but_a_prior_model_is_nothing_new(tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text()) | {"_diffusers_lowfreq_version": "99.0"}
    path.write_text(json.dumps(index))
    LowFreqUpscalePipeline.from_pretrained(tmp_path)
    path.write_text(json.dumps(index | {"sharpen": True}))
    with pytest.raises(ValueError, match="`sharpen` .*LowFreqUpscalePipeline is unknown .*99.0"):
        LowFreqUpscalePipeline.from_pretrained(tmp_path)


def test_the_card_says_how_to_use_it(tmp_path):
    pipe = make_upscaler()
    text = open(save_model_card(tmp_path, "you/upscaler", pipe)).read()
    assert 'DiffusionPipeline.from_pretrained("you/upscaler")' in text and "pipe(image, num_inference_steps=4)" in text
    text = open(save_model_card(tmp_path, "you/lora", pipe, base_model="you/base")).read()
    assert "- image-to-image\n" in text and "base_model: you/base\n" in text
    assert re.search(
        r'LowFreqUpscalePipeline.from_pretrained\("you/base"\)\npipe.load_lora_weights\("you/lora"\)', text
    )


# ------------------------------------------------------------------------------------------------------------------ LoRA


def add_lora(pipe, folder, source=None):
    """Save a LoRA with random weights of a pipeline's flow, as the training script does, and take it off again."""
    from peft import LoraConfig, get_peft_model_state_dict

    model = pipe.transformer
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_out.0", "ff.net.2"]))
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.copy_(0.3 * randn(*parameter.shape, seed=i))
    config = model.peft_config["default"].to_dict() | {"auto_mapping": source}
    options = {"transformer_lora_layers": get_peft_model_state_dict(model)}
    type(pipe).save_lora_weights(folder, **options, transformer_lora_adapter_metadata=config)
    model.unload_lora()


@pytest.mark.parametrize("pipeline_class", [LowFreqUpscalePipeline, LowFreqPipeline])
def test_a_lora_loads_switches_and_fuses(tmp_path, pipeline_class):
    pipe = make_upscaler()
    image = pictures(3, 16, 16)
    plain = generate(pipe, image)
    add_lora(pipe, tmp_path, pipe.scheduler.source | {"base_model": "x"})
    assert torch.equal(generate(pipe, image), plain)
    pipeline_class(**pipe.components, id2label=LABELS).load_lora_weights(
        tmp_path
    )  # of the transformer that they share
    tuned = generate(pipe, image)
    assert (tuned - plain).abs().max() > 1e-3
    pipe.disable_lora()
    assert torch.equal(generate(pipe, image), plain)
    pipe.enable_lora()
    assert torch.equal(generate(pipe, image), tuned)
    pipe.fuse_lora()
    torch.testing.assert_close(generate(pipe, image), tuned, rtol=1e-3, atol=1e-4)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(generate(pipe, image), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, other",
    [("factor", {"factor": 4}), ("projection", {"projection": "area"}), ("noise_ratio", {"noise_ratio": 0.3})]
    + [("noise_ratio_range", {"noise_ratio_range": [0.2, 0.8]})],
)
def test_a_lora_of_another_source_is_refused(tmp_path, name, other):
    of_range = {"noise_ratio_range": [0.2, 0.6]} if name == "noise_ratio_range" else {}
    pipe = make_upscaler(scheduler=LowFreqFlowMatchScheduler(**{"factor": 2, **of_range}))
    add_lora(pipe, tmp_path, LowFreqFlowMatchScheduler(**{"factor": 2, **other}).source)
    with pytest.raises(ValueError, match=f"must be a LoRA for the source of this pipeline, with {name} "):
        pipe.load_lora_weights(tmp_path)
    assert not getattr(pipe.transformer, "peft_config", None)
