# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Statistics of the features of images, and the comparison of two sets of them."""

from itertools import chain

import torch

from .distances import FeatureMoments, frechet_distance, kernel_distance, precision_recall, refuse_non_finite


def compare(
    generated: "FeatureStatistics",
    reference: "FeatureStatistics",
    generator: torch.Generator | None = None,
    kernel_subsets: int | None = 50,
) -> dict[str, str | int | float | None]:
    """
    Compare generated with real images by their features.

    The Fréchet distance is that of all images, the other figures are of the features kept.

    Args:
        generated (`FeatureStatistics`):
            Statistics of generated images.
        reference (`FeatureStatistics`):
            Statistics of real images, by the same extractor.
        generator (`torch.Generator`, *optional*):
            Draws the subsets of the kernel distance.
        kernel_subsets (`int`, *optional*, defaults to `50`):
            How many; with `None`, one estimate from all the features kept, which costs a tenth.

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
    Gather what the comparison of two sets of images needs, batch by batch.

    The moments of all features are kept, and the first features themselves: give images in random order.

    Args:
        extractor (`torch.nn.Module`):
            Maps RGB images in [0, 1], `(batch, 3, height, width)`, to features `(batch, dim)`, or to a tuple that ends
            with them. It is put in evaluation mode and called where its parameters are, in their type.
        name (`str`, *optional*):
            What results call the extractor; by default its class.
        split (`str`, *optional*):
            What the images are, `"test"` for one.
        max_features (`int`, defaults to `10_000`):
            How many features are kept for the kernel distance, precision and recall.

    Attributes:
        moments ([`FeatureMoments`] or `None`): Moments of all features; `None` before the first.
        num_images (`int`): Images seen.
    """

    compare = compare

    def __init__(
        self,
        extractor: torch.nn.Module,
        name: str | None = None,
        split: str | None = None,
        max_features: int = 10_000,
    ):
        if max_features < 1:
            raise ValueError(f"`max_features` must be at least 1, got {max_features}.")
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
            ValueError: If images or features have another shape, range or type, or values are not finite (the samples
                are counted and named by their number since the first update); nothing is added then.
        """
        if images.ndim != 4 or images.shape[1] != 3 or len(images) < 1 or not images.is_floating_point():
            came = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"`images` must be floating point of shape (num >= 1, 3, height, width), got {came}.")
        refuse_non_finite("images", images, self.num_images)
        low, high = images.min().item(), images.max().item()
        if low < 0 or high > 1:
            raise ValueError(f"`images` must lie in [0, 1], got values from {low} to {high}.")
        like = next((p for p in chain(self.extractor.parameters(), self.extractor.buffers()) if p.is_floating_point()), images)  # fmt: skip
        features = torch.cat([self._extract(batch.to(like)) for batch in images.split(batch_size)])
        refuse_non_finite("extractor", features, self.num_images)
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
        came = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
        if not isinstance(came, tuple) or len(came) != 2 or came[0] != len(images) or dim not in ("dim", came[1]):
            raise ValueError(f"`extractor` must give features of shape ({len(images)}, {dim}), got {came}.")
        return features.float().cpu()


class InceptionV3(torch.nn.Module):
    """
    Feed images in [0, 1] to the Inception network of FID, which takes bytes.

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
    Build the feature extractor of FID, as torchmetrics has it.

    torchmetrics downloads the weights on the first use. Only with this extractor does [`compare`] say `fid`.

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
