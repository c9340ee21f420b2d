# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Graders, and the real images that generated ones are compared with."""

import hashlib
import os
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from graders import Grader
from tqdm.auto import tqdm

from diffusers_lowfreq.autoencoding import decode_latents, encode_images, vae_scale_factor
from diffusers_lowfreq.evaluation import FeatureStatistics, radial_power_spectrum
from diffusers_lowfreq.training import LatentCache, keyed_generator, load_images


DISTANCES = ("frechet_distance", "kernel_distance")


class Extractor(torch.nn.Module):
    """A grader of `train_features.py` or a TorchScript extractor; it remembers the class it named for each image."""

    def __init__(self, path: str, resolution: int | None = None):
        super().__init__()
        self.resolution = resolution
        self.name = os.path.basename(path.rstrip("/"))
        if os.path.isfile(path):
            self.network = torch.jit.load(path, map_location="cpu").eval()
        else:
            self.network = Grader.from_pretrained(path, use_safetensors=True).float().eval()
        self.classes = []

    def forward(self, images):
        if self.resolution is not None:
            size = (self.resolution, self.resolution)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        output = self.network(images)
        if isinstance(output, tuple):
            self.classes.append(output[0].argmax(1))
        return output

    def take_classes(self) -> torch.Tensor | None:
        """Return the classes of the images since the last time, and forget them; `None` if it does not classify."""
        classes, self.classes = self.classes, []
        return torch.cat(classes).cpu() if classes else None

    def named(self, labels: torch.Tensor) -> float | None:
        """Return the share of the images since the last time whose class is their label; `None` if it does not classify."""
        classes = self.take_classes()
        return None if classes is None else (classes == labels.cpu()).float().mean().item()


def fingerprint(cache: LatentCache) -> str:
    """Hash what a cache of pixels holds; the same on every machine."""
    digest = hashlib.sha256()
    for values in (*cache.latents, cache.labels):
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def batches(number: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut `range(number)` into batches, as their starts and stops."""
    return [(start, min(start + batch_size, number)) for start in range(0, number, batch_size)]


def image_size(pipe) -> tuple[int, int]:
    """Return the height and the width of the images that a pipeline makes by default."""
    network = getattr(pipe, "transformer", None) or pipe.unet
    scale = vae_scale_factor(getattr(pipe, "vae", None))
    height, width = np.broadcast_to(network.config.sample_size, 2).tolist()
    return height * scale, width * scale


def true_coarse(pipe, images: torch.Tensor) -> torch.Tensor:
    """Return the coarse latents of images in [0, 1], which a perfect prior model would draw from."""
    return pipe.scheduler.projection.downsample(encode_images(pipe.vae, images * 2 - 1))


def through_autoencoder(vae, images: torch.Tensor) -> torch.Tensor:
    """Encode and decode images in [0, 1]."""
    return (decode_latents(vae, encode_images(vae, images * 2 - 1)).clamp(-1, 1) + 1) / 2


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio of each pair of images in [0, 1], in dB; at most 100."""
    return -10 * (a - b).square().flatten(1).mean(1).clamp(min=1e-10).log10()


class Reference:
    """
    Real images in a fixed shuffled order.

    The first `num_held_out` lend their labels and, for the oracle, their coarse versions. All others are what generated
    images are compared with, so the oracle is not graded by the images it was made from.
    """

    def __init__(
        self, data: str, split: str, resolution: int, extractors: list[Extractor], cache_dir: str, num_held_out: int
    ):
        images = load_images(train_data_dir=data, resolution=resolution)
        self.cache = LatentCache.build(images, None, cache_dir, progress=tqdm)
        if not 0 < num_held_out < len(self.cache) - 1:
            raise ValueError(
                f"`num_images` must leave at least 2 of the {len(self.cache)} images of `data` to compare with, got "
                f"{num_held_out}."
            )
        self.order = torch.randperm(len(self.cache), generator=keyed_generator(0, "test")).tolist()
        self.extractors, self.split = extractors, split
        self.device = next((p.device for p in extractors[0].parameters()), torch.device("cpu"))
        self.statistics = [FeatureStatistics(e, e.name, split, max_features=2000) for e in extractors]
        classes, spectra = [], []
        for start in tqdm(range(num_held_out, len(self.cache), 500), desc=f"features of {split}"):
            images, labels = self.batch(start, start + 500)
            for statistics in self.statistics:
                statistics.update(images)
            classes.append(labels)
            spectra.append(radial_power_spectrum(images))
        self.accuracy = [extractor.named(torch.cat(classes)) for extractor in extractors]
        self.spectrum = torch.cat(spectra).mean(0).tolist()

    @property
    def facts(self) -> dict:
        """What the figures depend on, for a results file."""
        return {
            "extractor": self.extractors[0].name,
            "graders": {e.name: {"accuracy": a} for e, a in zip(self.extractors, self.accuracy)},
            "split": self.split,
            "num_reference": self.statistics[0].num_images,
            "reference_fingerprint": fingerprint(self.cache),
        }

    def batch(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images in [0, 1] and their labels."""
        batch = self.cache.__getitems__([(i, False) for i in self.order[start:stop]])
        return ((batch["sample"] + 1) / 2).to(self.device), batch["label"].to(self.device)

    def grade(self, make: Callable, num_images: int, batch_size: int) -> tuple[dict, float | None]:
        """
        Grade as many images as are made from the first of the order.

        Args:
            make (`Callable`):
                `make(images, labels, start, stop)` returns the images in [0, 1] to grade. It gets the real images from
                `start` to `stop`, and their labels.
            num_images (`int`), batch_size (`int`):
                The images to make, and how many in one call.

        Returns:
            `tuple[dict, float | None]`: the figures of the first grader with the distances of the others in `graders`, and
            how often the first grader names the label.
        """
        made = [FeatureStatistics(e, e.name, max_features=2000) for e in self.extractors]
        classes = []
        for start, stop in batches(num_images, batch_size):
            images, labels = self.batch(start, stop)
            generated = make(images, labels, start, stop)
            for statistics in made:
                statistics.update(generated)
            classes.append(labels)
        named, *_ = [extractor.named(torch.cat(classes)) for extractor in self.extractors]
        first, *others = [m.compare(s, kernel_subsets=None) for m, s in zip(made, self.statistics, strict=True)]
        if others:
            first |= {"graders": {o["extractor"]: {k: o[k] for k in DISTANCES} for o in others}}
        return first, named
