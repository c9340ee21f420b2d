# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Statistics of image features, and the comparison of two sets."""

import math
from itertools import chain

import torch

from ..guards.tensors import check_finite, check_shape
from ..guards.values import check_count
from .distances import FeatureMoments, frechet_distance, kernel_distance, precision_recall


def compare(
    generated: "FeatureStatistics",
    reference: "FeatureStatistics",
    generator: torch.Generator | None = None,
    kernel_subsets: int | None = 50,
) -> dict[str, str | int | float | None]:
    """
    Compare generated with real images by their features.

    The Fréchet distance uses all images. The other figures use the features that are kept.

    Args:
        generated (`FeatureStatistics`):
            Statistics of generated images.
        reference (`FeatureStatistics`):
            Statistics of real images, from the same extractor.
        generator (`torch.Generator`, *optional*):
            Draws the subsets of the kernel distance.
        kernel_subsets (`int`, *optional*, defaults to `50`):
            Number of subsets. `None` makes one estimate from all the features that are kept, at a tenth of the cost.

    Returns:
        `dict`: `extractor`, `split` (of the reference), `num_images`, `num_reference`, `frechet_distance` (called `fid`
        if the extractor is [`inception_extractor`]), `kernel_distance`, `kernel_distance_std`, `precision` and
        `recall`, ready for JSON.

    Raises:
        ValueError: If the extractors differ, or a set is empty or too small for a metric.
    """
    if generated.extractor is not reference.extractor or generated.name != reference.name:
        names = f"`{generated.name}` and `{reference.name}`"
        raise ValueError(f"`generated` and `reference` must come from one extractor, got two: {names}.")
    for side, statistics in (("generated", generated), ("reference", reference)):
        if not statistics.num_images:
            raise ValueError(f"`{side}` must hold images, but its split ({statistics.split}) is empty.")
    distance = frechet_distance(generated.moments, reference.moments)
    kernel_mean, kernel_std = kernel_distance(
        generated.features, reference.features, num_subsets=kernel_subsets, generator=generator
    )
    precision, recall = precision_recall(generated.features, reference.features)
    return {
        "extractor": generated.name,
        "split": reference.split,
        "num_images": generated.num_images,
        "num_reference": reference.num_images,
        "fid" if isinstance(generated.extractor, InceptionV3) else "frechet_distance": distance,
        "kernel_distance": kernel_mean,
        "kernel_distance_std": kernel_std,
        "precision": precision,
        "recall": recall,
    }


class FeatureStatistics:
    """
    Collect, batch by batch, what [`compare`] needs of a set of images.

    The moments of all features are kept, and the first features themselves: give the images in random order.

    Args:
        extractor (`torch.nn.Module`):
            Maps RGB images in [0, 1], `(batch, 3, height, width)`, to features `(batch, dim)`, or to a tuple whose last
            element they are. It is put in evaluation mode, and called on the device and in the dtype of its parameters.
        name (`str`, *optional*):
            Name of the extractor in the results, by default that of its class.
        split (`str`, *optional*):
            Name of the image set, such as `"test"`.
        max_features (`int`, defaults to `10_000`):
            Number of features to keep for the kernel distance, precision and recall.

    Attributes:
        moments ([`FeatureMoments`] or `None`): Moments of all features; `None` before the first batch.
        num_images (`int`): Number of images so far.
    """

    compare = compare

    def __init__(
        self,
        extractor: torch.nn.Module,
        name: str | None = None,
        split: str | None = None,
        max_features: int = 10_000,
    ):
        check_count("max_features", max_features, math.inf)
        self.extractor = extractor.eval()
        self.name = getattr(extractor, "original_name", type(extractor).__name__) if name is None else name
        self.split = split
        self.max_features = max_features
        self.moments = None
        self._features = []

    @property
    def num_images(self) -> int:
        return self.moments.count if self.moments is not None else 0

    @property
    def features(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(at most max_features, dim)`: The first features, on the CPU."""
        return torch.cat(self._features) if self._features else torch.empty(0, 0)

    @torch.no_grad()
    def update(self, images: torch.Tensor, batch_size: int = 100):
        """
        Add images.

        Args:
            images (`torch.Tensor` of shape `(num, 3, height, width)`):
                Floating point RGB images in [0, 1].
            batch_size (`int`, defaults to `100`):
                Images per call of the extractor.

        Raises:
            ValueError: If the shape, range or dtype of images or features does not fit, or a value is not finite (samples are
                numbered from the first update on). Nothing is added then.
        """
        check_shape("images", images, "num", 3, "height", "width", is_floating=True)
        check_finite("images", images, self.num_images)
        low, high = images.min().item(), images.max().item()
        if low < 0 or high > 1:
            raise ValueError(f"`images` must lie in [0, 1], got values from {low} to {high}.")
        tensors = chain(self.extractor.parameters(), self.extractor.buffers())
        like = next((tensor for tensor in tensors if tensor.is_floating_point()), images)
        features = torch.cat([self._extract(batch.to(like)) for batch in images.split(batch_size)])
        check_finite("extractor", features, self.num_images)
        if self.moments is None:
            self.moments = FeatureMoments(features.shape[1])
        missing = max(self.max_features - self.num_images, 0)
        self.moments.update(features)
        if missing:
            self._features.append(features[:missing])

    def _extract(self, images):
        output = self.extractor(images)
        features = output[-1] if isinstance(output, (tuple, list)) else output
        dim = self.moments.dim if self.moments is not None else "dim"
        got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        if not isinstance(got, tuple) or len(got) != 2 or got[0] != len(images) or dim not in ("dim", got[1]):
            raise ValueError(f"`extractor` must give features of shape ({len(images)}, {dim}), got {got}.")
        return features.float().cpu()


class InceptionV3(torch.nn.Module):
    """
    Give images in [0, 1] to the Inception network of FID, which takes bytes.

    Args:
        network (`torch.nn.Module`):
            Maps uint8 images to features.
    """

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images `(batch, 3, height, width)` in [0, 1], rounded to bytes, to features `(batch, 2048)`."""
        return self.network((images * 255).round().byte())


def inception_extractor() -> torch.nn.Module:
    """
    Build the feature extractor of FID from torchmetrics.

    torchmetrics downloads the weights on first use. Only with this extractor does [`compare`] report a `fid`.

    Returns:
        `torch.nn.Module`: Maps images in [0, 1] to 2048 features.

    Raises:
        ImportError: If torchmetrics or torch-fidelity is not installed.
    """
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError as error:
        raise ImportError(
            "`inception_extractor` needs torchmetrics and torch-fidelity: `pip install torchmetrics[image]`."
        ) from error
    return InceptionV3(NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"]))
