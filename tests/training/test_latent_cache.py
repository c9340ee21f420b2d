# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Latents are encoded once, in both orientations, and served as the autoencoder would make them now."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from scripts import make_folder, make_pixels, make_vae, workplace
from torch.utils.data import DataLoader

from diffusers import AutoencoderTiny
from diffusers_lowfreq.autoencoding import encode_images, normalize_latents, set_latent_statistics
from diffusers_lowfreq.training import LatentCache, load_images


pytestmark = pytest.mark.usefixtures(workplace.__name__)


@pytest.fixture
def vae(workplace):
    return make_vae(workplace / "vae")


@pytest.fixture
def images(workplace):
    make_folder(workplace / "images")
    return load_images(None, "images", resolution=16)


def build(images, vae, **kwargs):
    return LatentCache.build(images, vae, "cache", **{"batch_size": 4, "shard_size": 8, **kwargs})


def count_encoded(vae) -> list[int]:
    """A list that grows by the batch size with every call of the encoder."""
    counts = []
    vae.encoder.register_forward_hook(lambda module, args, output: counts.append(len(args[0])))
    return counts


def everything(cache, flip=False):
    return cache.__getitems__([(i, flip) for i in range(len(cache))])


def pixels_of(images) -> torch.Tensor:
    return torch.stack([images[i] for i in range(len(images))]).float() / 127.5 - 1


# ------------------------------------------------------------------------------------------------------------ content


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("vae_class", ["AutoencoderKL", "AutoencoderTiny"])
@torch.no_grad()
def test_an_entry_is_the_encoding_of_its_image_or_of_its_mirror(images, vae, vae_class, flip):
    if vae_class == "AutoencoderTiny":
        torch.manual_seed(0)
        options = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        vae = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), **options).eval()
    served = everything(build(images, vae), flip)
    pixels = pixels_of(images)
    expected = encode_images(vae, pixels.flip(-1) if flip else pixels, normalize=False)
    torch.testing.assert_close(served["sample"], expected, rtol=2e-3, atol=2e-4)  # kept in half precision
    assert served["label"].tolist() == images.labels.tolist()


def test_pixels_are_served_exactly_in_both_orientations(images):
    cache = build(images, None)
    torch.testing.assert_close(everything(cache)["sample"], pixels_of(images), rtol=0, atol=0)
    torch.testing.assert_close(everything(cache, True)["sample"], pixels_of(images).flip(-1), rtol=0, atol=0)
    assert cache.latents[0].dtype == torch.uint8


@pytest.mark.parametrize("with_vae", [True, False])
def test_statistics_are_those_of_all_that_is_served(images, vae, with_vae):
    cache = build(images, vae if with_vae else None)
    x = torch.cat([everything(cache)["sample"], everything(cache, True)["sample"]]).double()
    torch.testing.assert_close(torch.tensor(cache.mean).double(), x.mean((0, 2, 3)), rtol=1e-6, atol=1e-7)
    std = x.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(cache.std).double(), std, rtol=1e-6, atol=1e-7)


def test_measured_statistics_bring_the_latents_to_unit_scale(images, vae):
    cache = build(images, vae)
    set_latent_statistics(vae, cache.mean, cache.std)
    x = torch.cat([everything(cache)["sample"], everything(cache, True)["sample"]])
    x = normalize_latents(vae, x)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(4), rtol=1e-4, atol=0)


def test_the_order_of_a_batch_is_the_order_asked_for(images, vae):
    cache = build(images, vae)
    entries = [(17, True), (0, False), (8, True), (7, False), (0, True), (17, False)]
    batch = cache.__getitems__(entries)
    for k, entry in enumerate(entries):
        torch.testing.assert_close(batch["sample"][k], cache[entry]["sample"], rtol=0, atol=0)
        assert batch["label"][k] == cache[entry]["label"] == images.labels[entry[0]]


def test_an_open_cache_holds_a_label_and_a_row_number_for_each_image(images, vae):
    """And nothing else: what it holds, each process holds."""
    cache = build(images, vae, shard_size=5)
    held = [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]
    assert sum(x.nbytes for x in held) == 16 * len(images) + 8 * len(cache.latents)
    assert [int(cache[i, False]["position"]) for i in range(18)] == list(range(18))
    with pytest.raises(IndexError):
        cache[18, False]


def test_a_worker_process_serves_the_same_batches(images, vae):
    cache = build(images, vae)
    options = {"batch_sampler": [[(3, True), (11, False)], [(16, False)]], "collate_fn": dict}
    for here, there in zip(DataLoader(cache, **options), DataLoader(cache, num_workers=1, **options)):
        torch.testing.assert_close(here, there, rtol=0, atol=0)


def test_a_skipped_image_shifts_no_label(workplace, images, vae):
    whole = everything(build(images, vae))
    for name in ("blue/003.png", "red/017.png"):  # rows 1 and 17: in the middle of a shard and a whole small one
        Path("images", name).write_bytes(b"damaged")
    damaged = load_images(None, "images", resolution=16)
    cache = build(damaged, vae, max_skipped=0.2, shard_size=1)
    keep = [i for i in range(18) if i not in (1, 17)]
    assert cache.positions.tolist() == keep and cache.index["skipped"] == 2
    served = everything(cache)
    assert served["label"].tolist() == whole["label"][keep].tolist()
    torch.testing.assert_close(served["sample"], whole["sample"][keep], rtol=1e-3, atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- reuse


def test_nothing_is_encoded_twice(workplace, images, vae):
    counts = count_encoded(vae)
    first = build(images, vae)
    assert sum(counts) == 2 * len(images) and max(counts) == 4
    second = build(load_images(None, "images", resolution=16), make_vae(workplace / "again"))
    assert sum(counts) == 2 * len(images) and second.folder == first.folder
    torch.testing.assert_close(everything(second), everything(first), rtol=0, atol=0)


def test_measured_statistics_do_not_change_the_cache(images, vae):
    cache = build(images, vae)
    set_latent_statistics(vae, cache.mean, cache.std)
    counts = count_encoded(vae)
    assert build(images, vae).folder == cache.folder and not counts


def change_weights(vae):
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] += 1e-3
    return "images", 16, {}


def change_image(vae):
    Image.fromarray(make_pixels(1, seed=1)[0]).save("images/red/002.png")
    return "images", 16, {}


def add_image(vae):
    Image.fromarray(make_pixels(1, seed=1)[0]).save("images/red/new.png")
    return "images", 16, {}


def change_resolution(vae):
    return "images", 8, {}


def change_labels(vae):
    return "images", 16, {"label_column": None}


@pytest.mark.parametrize("change", [change_weights, change_image, add_image, change_resolution, change_labels])
def test_a_change_rebuilds_the_cache(images, vae, change):
    old = build(images, vae)
    folder, resolution, options = change(vae)
    fresh = load_images(None, folder, resolution=resolution, **options)
    counts = count_encoded(vae)
    new = build(fresh, vae)
    assert sum(counts) == 2 * len(fresh) and new.folder != old.folder
    assert len(new) == len(fresh) and everything(new)["label"].tolist() == fresh.labels.tolist()
    with torch.no_grad():
        expected = encode_images(vae, pixels_of(fresh), normalize=False)
    torch.testing.assert_close(everything(new)["sample"], expected, rtol=2e-3, atol=2e-4)


def test_another_label_column_of_the_same_images_is_another_cache(workplace):
    data = {"image": [Image.fromarray(p) for p in make_pixels(6)], "fine": list(range(6)), "coarse": [0, 1] * 3}
    datasets.Dataset.from_dict(data).cast_column("image", datasets.Image()).to_parquet("two.parquet")
    for column in ("fine", "coarse"):
        images = load_images(None, "two.parquet", resolution=16, label_column=column)
        assert everything(build(images, None))["label"].tolist() == data[column]


# --------------------------------------------------------------------------------------------------------------- kills


def test_a_killed_build_goes_on_where_it_stopped(images, vae):
    whole = everything(build(images, vae))
    folder = Path(build(images, vae).folder)
    index = (folder / "index.json").read_text()
    (folder / "index.json").unlink()
    (folder / "latents-00001.safetensors").unlink()
    (folder / "latents-00001.safetensors.tmp").write_bytes(b"half a shard")
    counts = count_encoded(vae)
    again = build(images, vae)
    assert sum(counts) == 2 * 8  # one shard of eight
    assert (folder / "index.json").read_text() == index
    torch.testing.assert_close(everything(again), whole, rtol=0, atol=0)


@pytest.mark.parametrize("missing", ["index.json", "latents-00002.safetensors"])
def test_an_incomplete_cache_is_refused(images, missing):
    folder = build(images, None).folder
    os.remove(os.path.join(folder, missing))
    with pytest.raises(ValueError, match=missing):
        LatentCache(folder)


@pytest.mark.slow
def test_a_build_killed_by_a_signal_gives_the_same_cache(workplace, vae):
    make_folder(workplace / "images", 60)
    program = (
        "import sys; from diffusers import AutoencoderKL; from diffusers_lowfreq.training import *\n"
        "vae = AutoencoderKL.from_pretrained('vae'); images = load_images(None, 'images', resolution=16)\n"
        "LatentCache.build(images, vae, sys.argv[1], batch_size=2, shard_size=4)"
    )
    environment = {**os.environ, "HF_HOME": str(workplace / "hf")}
    for target in ("killed", "whole"):
        process = subprocess.Popen([sys.executable, "-c", program, target], env=environment)
        if target == "killed":
            while process.poll() is None and not list(workplace.glob("killed/*/*-00003.safetensors")):
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not list(workplace.glob("killed/*/index.json"))
            process = subprocess.Popen([sys.executable, "-c", program, target], env=environment)
        assert process.wait() == 0
    files = {target: sorted(workplace.glob(f"{target}/*/*")) for target in ("killed", "whole")}
    assert [f.name for f in files["killed"]] == [f.name for f in files["whole"]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(files["killed"], files["whole"]))


def test_images_inside_parquet_files_are_cached_alike(workplace, images):
    rows = [{"bytes": Path(images.dataset[i]["image"]["path"]).read_bytes(), "path": None} for i in range(18)]
    assert all(Image.open(io.BytesIO(row["bytes"])).size == (16, 16) for row in rows)
    features = datasets.Features({"image": datasets.Image(), "label": images.dataset.features["label"]})
    datasets.Dataset.from_dict({"image": rows, "label": images.labels}, features).to_parquet("set.parquet")
    other = build(load_images(None, "set.parquet", resolution=16), None)
    torch.testing.assert_close(everything(other), everything(build(images, None)), rtol=0, atol=0)
    assert other.id2label == dict(enumerate(["blue", "green", "red"]))
