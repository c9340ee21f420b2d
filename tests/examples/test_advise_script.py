# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""`examples/advise.py`: its figures are those of the samples that training would see, and its advice can be trained."""

import json

import pytest
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scripts import EXAMPLES, load_script, make_folder, make_vae, run_process, workplace

from diffusers import UNet2DModel
from diffusers_lowfreq import LowFreqFlowMatchScheduler
from diffusers_lowfreq.autoencoding import encode_images, load_autoencoder, normalize_latents, set_latent_statistics
from diffusers_lowfreq.evaluation import radial_power_spectrum
from diffusers_lowfreq.projections import PROJECTIONS, LowFrequencyProjection
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images


pytestmark = pytest.mark.usefixtures(workplace.__name__)

script = load_script("advise")
train_script = load_script("train_lowfreq")

LINE = "--train_data_dir images --resolution 16"


def advise(line: str = "", output: str = "advice") -> dict:
    """Run the script in this process and return `advice.json`."""
    script.main(script.parse_args([*LINE.split(), "--output", output, *line.split()]))
    return read(f"{output}/advice.json")


def read(path) -> dict:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def pixels() -> torch.Tensor:
    """All images in the order of the script."""
    images = load_images(None, "images", resolution=16, label_column=None)
    order = torch.randperm(len(images), generator=keyed_generator(0, "images")).tolist()
    return torch.stack([images[i] for i in order]).float() / 127.5 - 1


def assert_figures_of(advice: dict, x: torch.Tensor):
    """Compare every row with what is counted directly on samples at working scale."""
    centred = x - x.mean((0, 2, 3), keepdim=True)
    noise = torch.randn(x.shape, generator=keyed_generator(0, "noise"))
    for row in advice["rows"]:
        settings = {k: row[k] for k in ("projection", "factor")}
        lost = x - LowFrequencyProjection(**settings)(x)
        expected = 1 - lost.square().sum() / centred.square().sum()
        assert row["energy_kept"] == pytest.approx(expected.item(), abs=1e-4)
        for a, path, kept in zip(advice["noise_ratios"], row["path_length"], row["identity_share"]):
            source = LowFreqFlowMatchScheduler(**settings, noise_ratio=a).make_source_from_sample(x, noise)
            assert path == pytest.approx((source - x).square().mean().item(), rel=0.05, abs=1e-4)
            cost = torch.cdist(source.flatten(1).double(), x.flatten(1).double()).square()
            assert kept == pytest.approx((linear_sum_assignment(cost)[1] == range(len(x))).mean())


@pytest.mark.slow
def test_from_an_empty_folder_on_the_latents_of_an_autoencoder(workplace):
    """The figures are those of latents at unit scale, and the training script accepts the advice."""
    make_folder(workplace / "images", 12)
    vae = make_vae(workplace / "vae")
    line = f"{LINE} --pretrained_vae_model_name_or_path vae --num_pairs 12 --batch_size 5 --output out/advice"
    output = run_process(EXAMPLES / "advise.py", *line.split(), cwd=workplace, CUDA_VISIBLE_DEVICES="")
    advice = read("out/advice/advice.json")
    with torch.no_grad():
        raw = encode_images(vae, pixels(), normalize=False)
    x = (raw - raw.mean((0, 2, 3), keepdim=True)) / raw.std((0, 2, 3), correction=0, keepdim=True)
    assert_figures_of(advice, x)
    spectrum = radial_power_spectrum(x).mean(0)[1:] * 8 * 8
    assert advice["spectrum"]["power"] == pytest.approx(spectrum.tolist(), rel=1e-3)
    assert advice["raw_mean"] == pytest.approx(raw.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert [row["path_length"][-1] for row in advice["rows"]] == pytest.approx([2] * 9, abs=1e-6)
    assert (advice["num_images"], advice["num_images_skipped"], advice["num_pairs"]) == (12, 0, 12)
    fitted = advice["fitted_energy_kept"]
    assert list(fitted) == ["2", "4", "8"] and f"{fitted['2']:.1%}" in output
    assert advice["sample_shape"] == [4, 8, 8] and advice["settings"]["seed"] == 0
    assert {"diffusers", "diffusers_lowfreq", "torch"} < set(advice["versions"]) and advice["machine"]

    config = read("out/advice/config.json")
    assert config == {"resolution": 16, **advice["suggestion"]}
    args = train_script.parse_args(["--config", "out/advice/config.json", "--output_dir", "model"])
    assert {key: getattr(args, key) for key in config} == config
    chosen = next(r for r in advice["rows"] if (r["projection"], r["factor"]) == (args.projection, args.factor))
    for figure in (f"{chosen['energy_kept']:.1%}", f"{chosen['path_length'][3]:.2f}", *advice["reasons"][0].split()):
        assert figure in output
    with Image.open("out/advice/spectrum.png") as picture:
        assert len(picture.convert("L").getcolors()) > 20


def test_pixels_are_measured_at_the_scale_of_training(workplace):
    """In [-1, 1], where a path from Gaussian noise is 1 + E x^2."""
    make_folder(workplace / "images")
    advice, x = advise(), pixels()
    assert_figures_of(advice, x)
    assert [row["path_length"][-1] for row in advice["rows"]] == pytest.approx([1 + x.square().mean().item()] * 9)


@pytest.mark.parametrize("pixels", [True, False])
def test_the_latents_are_those_of_the_latent_cache(workplace, pixels):
    """Scale and all: the samples of the coupling check against what training normalises, to the cache's half precision."""
    make_folder(workplace / "images", 6)
    make_vae(workplace / "vae")
    args = script.parse_args(f"{LINE} --num_images 6".split())
    images = load_images(None, "images", resolution=16)
    _, _, sample, _ = script.measure(args, images, None if pixels else load_autoencoder("vae"))
    vae = None if pixels else load_autoencoder("vae")
    cache = LatentCache.build(images, vae, "cache")
    expected = cache.__getitems__([(i, False) for i in range(6)])["sample"]
    if vae is not None:
        set_latent_statistics(vae, cache.mean, cache.std)  # of both orientations
        expected = normalize_latents(vae, expected)
    distance = torch.cdist(sample.flatten(1), expected.flatten(1))
    assert sorted(distance.argmin(1).tolist()) == list(range(6))
    assert distance.amin(1).max() < 0.1 * distance.median()


def test_neither_batches_nor_the_machine_change_the_figures(workplace):
    make_folder(workplace / "images", 12)
    make_vae(workplace / "vae")
    whole, parts = (
        advise(f"--pretrained_vae_model_name_or_path vae --batch_size {size}", f"advice-{size}") for size in (12, 5)
    )
    for a, b in zip(whole["rows"], parts["rows"]):
        assert a["identity_share"] == b["identity_share"]
        assert a["path_length"] == pytest.approx(b["path_length"], abs=1e-5)
        assert a["energy_kept"] == pytest.approx(b["energy_kept"], abs=1e-5)
    assert whole["spectrum"]["power"] == pytest.approx(parts["spectrum"]["power"], rel=1e-4)


def test_the_fitted_projection_is_measured_on_samples_that_it_was_not_fitted_to():
    """Of white noise it keeps its share of dimensions, although it keeps more of what it was fitted to; of one shared
    component it keeps what a projection of that component alone would."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 3, 8, 8, generator=generator)
    assert script.fitted_energy(noise, [2])[2] == pytest.approx(1 / 4, abs=0.02)
    gray = torch.randn(200, 1, 8, 8, generator=generator).expand(-1, 3, -1, -1)
    assert script.fitted_energy(gray, [2])[2] == pytest.approx(46 / 64, abs=0.03)  # two places go to constants


def test_images_are_chosen_by_seed_and_counted(workplace):
    make_folder(workplace / "images")
    runs = [
        advise(f"--num_images 9 --num_pairs 4 --batch_size 3 --seed {seed}", f"advice-{i}")
        for i, seed in enumerate((0, 0, 1))
    ]
    energy = [run["rows"][0]["energy_kept"] for run in runs]
    assert energy[0] == energy[1] != energy[2]
    assert {(run["num_images"], run["num_pairs"]) for run in runs} == {(9, 4)}


def test_unreadable_images_are_counted(workplace):
    make_folder(workplace / "images", 9)
    (workplace / "images/blue/000.png").write_bytes(b"no picture")
    advice = advise()
    assert (advice["num_images"], advice["num_images_skipped"], advice["num_pairs"]) == (8, 1, 8)


def test_the_spectrum_is_flat_for_white_noise_and_so_is_that_of_a_gaussian_source(workplace):
    """In units of the Gaussian noise of the source: uniform pixels in [-1, 1] have variance 1/3."""
    (workplace / "images").mkdir()
    noise = torch.randint(256, (60, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    for i, image in enumerate(noise):
        Image.fromarray(image).save(f"images/{i:02d}.png")
    advice = advise("--resolution 32")
    assert advice["spectrum"]["power"] == pytest.approx([1 / 3] * 16, rel=0.1)
    # above the cut only the noise is left: alpha^2
    assert advice["spectrum"]["source_power"][-1] == pytest.approx(advice["suggestion"]["noise_ratio"] ** 2, rel=0.1)


def test_only_factors_that_divide_are_measured(workplace):
    make_folder(workplace / "images", 6, 12)
    advice = advise("--resolution 12")
    kinds = [(row["projection"], row["factor"]) for row in advice["rows"]]
    assert kinds == [(projection, factor) for projection in PROJECTIONS for factor in (2, 4)]


def rows(energy: dict[int, dict[str, float]], identity: float = 1.0) -> list[dict]:
    """Rows as the script makes them, with all pairs kept up to noise ratio 0.4 and `identity` of them from 0.5 on."""
    shares = [1.0 if a < 0.5 else identity for a in script.NOISE_RATIOS]
    common = {"path_length": list(script.NOISE_RATIOS), "identity_share": shares}
    return [
        {"projection": p, "factor": f, "energy_kept": kept[p], **common}
        for p in PROJECTIONS
        for f, kept in energy.items()
    ]


def kept(bicubic: float, area: float = 0.0, dct: float = 0.0) -> dict[str, float]:
    return {"bicubic": bicubic, "area": area, "dct": dct}


@pytest.mark.parametrize(
    "energy, identity, expected, word",
    [
        ({2: kept(0.95), 4: kept(0.90), 8: kept(0.76)}, 1.0, ("bicubic", 8, 0.25), "about 1/64"),
        ({2: kept(0.95), 4: kept(0.75), 8: kept(0.749)}, 1.0, ("bicubic", 4, 0.25), "largest that keeps at least 75%"),
        ({2: kept(0.80), 4: kept(0.44), 8: kept(0.27)}, 1.0, ("bicubic", 2, 0.25), "more than a tenth"),
        ({2: kept(0.44), 4: kept(0.3)}, 1.0, ("bicubic", 2, 0.25), "expect little"),
        ({4: kept(0.86, 0.80, 0.885)}, 1.0, ("bicubic", 4, 0.25), "within 3 points"),
        ({4: kept(0.86, 0.80, 0.895)}, 1.0, ("dct", 4, 0.25), "keeps the most energy"),
        ({4: kept(0.70, 0.80, 0.75)}, 1.0, ("area", 4, 0.25), "keeps the most energy"),
        ({4: kept(0.86)}, 0.999, ("bicubic", 4, 0.25), "at least 99.9% up to 1.0"),
        ({4: kept(0.86)}, 0.998, ("bicubic", 4, 0.25), "at least 99.9% up to 0.4"),
    ],
)
def test_the_rule_of_the_suggestion(energy, identity, expected, word):
    suggestion, reasons = script.suggest(rows(energy, identity), 500)
    assert tuple(suggestion[key] for key in ("projection", "factor", "noise_ratio")) == expected
    assert word in " ".join(reasons)


def test_pairs_that_cross_everywhere_are_told():
    crossing = rows({4: kept(0.86)})
    for row in crossing:
        row["identity_share"] = [0.5] * len(script.NOISE_RATIOS)
    suggestion, reasons = script.suggest(crossing, 500)
    assert suggestion["noise_ratio"] == 0.25
    assert "keeps only 50.0% of them: pairs cross" in " ".join(reasons)


def test_the_advice_of_other_settings_is_not_overwritten(workplace):
    make_folder(workplace / "images", 6)
    advise()
    with pytest.raises(ValueError, match=r"`output` 'advice' holds the advice of other settings \(num_images, seed\)"):
        advise("--seed 1 --num_images 5")
    assert advise("--batch_size 2")["settings"]["seed"] == 0


@pytest.mark.parametrize(
    "line, message",
    [
        ("--train_data_dir nowhere", "`train_data_dir` 'nowhere' does not exist"),
        ("--train_data_dir empty", "`train_data_dir` 'empty' holds no readable image set"),
        ("--train_data_dir damaged", "none of the 3 images can be read"),
        ("--num_images 1", "`num_images` must leave at least two readable images for a coupling, got 1"),
        ("--resolution 15", r"`resolution` 15 must give .* the factors \[2, 4, 8\] divides, got 15x15"),
        ("--pretrained_vae_model_name_or_path ./nowhere", "`pretrained_vae_model_name_or_path` .* './nowhere'"),
        (
            "--pretrained_vae_model_name_or_path unet",
            "must be .* an autoencoder of diffusers .* got 'unet', a UNet2DModel",
        ),
        ("--pretrained_vae_model_name_or_path broken", "`sample` must be finite, but 6 of 6"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(workplace, line, message):
    make_folder(workplace / "images", 6)
    for path in (workplace / "damaged" / f"{i}.png" for i in range(3)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no picture")
    (workplace / "empty").mkdir()
    make_vae(workplace / "vae")
    UNet2DModel(block_out_channels=[8] * 4, layers_per_block=1, norm_num_groups=4).save_pretrained("unet")
    broken = make_vae(workplace / "broken")
    broken.quant_conv.bias.data[0] = torch.nan
    broken.save_pretrained("broken")
    with pytest.raises(ValueError, match=message):
        advise(line)
    assert not (workplace / "advice").exists()


@pytest.mark.parametrize("name, least", [("resolution", 1), ("num_images", 1), ("num_pairs", 2), ("batch_size", 1)])
def test_a_number_that_is_too_small_is_named(capsys, name, least):
    with pytest.raises(SystemExit):
        script.parse_args([*LINE.split(), f"--{name}", str(least - 1)])
    allowed = "positive" if least == 1 else f"at least {least}"
    assert f"argument --{name}: must be {allowed}, got {least - 1}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_advice_can_be_trained(workplace):
    make_folder(workplace / "images", 12)
    make_vae(workplace / "vae")
    vae = "--pretrained_vae_model_name_or_path vae"
    suggestion = advise(vae)["suggestion"]
    line = f"--config advice/config.json --train_data_dir images {vae} --output_dir model --transformer_size nano"
    line += " --prior_size nano --max_train_steps 2 --prior_max_train_steps 2 --train_batch_size 4"
    line += " --prior_train_batch_size 4 --num_validation_images 2"
    run_process(EXAMPLES / "train_lowfreq.py", *line.split(), cwd=workplace)
    scheduler = LowFreqFlowMatchScheduler.from_pretrained("model/scheduler")
    assert {key: scheduler.config[key] for key in suggestion} == suggestion
