# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Distances between two sets of features."""

import torch

from diffusers.utils import logging

from ..guards.tensors import check_finite, check_shape
from ..guards.values import check_count


logger = logging.get_logger(__name__)

BLOCK = 1024  # rows


def _check_features(least: int, dim: int, **sets: torch.Tensor):
    for name, features in sets.items():
        check_shape(name, features, "num", dim, least=least)
        check_finite(name, features)


class FeatureMoments:
    """
    Compute the mean and the covariance of features in one pass, in float64 on the CPU (Chan et al. 1979).

    Memory does not grow with the number of features. Up to rounding, the result depends on neither the batches nor their
    order.

    Args:
        dim (`int`):
            Length of a feature.

    Attributes:
        count (`int`): Number of features so far.
        mean (`torch.Tensor` of shape `(dim,)`): Their mean.
    """

    def __init__(self, dim: int):
        self.dim = dim
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def covariance(self) -> torch.Tensor:
        """`torch.Tensor` of shape `(dim, dim)`: The unbiased covariance; a `ValueError` below two features."""
        if self.count < 2:
            raise ValueError(f"A covariance needs at least 2 features, got {self.count}.")
        return self._scatter / (self.count - 1)

    def update(self, features: torch.Tensor):
        """
        Add a batch.

        Args:
            features (`torch.Tensor` of shape `(batch, dim)`):
                New features.

        Raises:
            ValueError: If the shape does not fit, or a value is not finite. Nothing is added then.
        """
        check_shape("features", features, "batch", self.dim)
        check_finite("features", features, self.count)
        features = features.detach().to("cpu", torch.float64)
        mean = features.mean(0)
        self._add(len(features), mean, (features - mean).T @ (features - mean))

    def merge(self, other: "FeatureMoments"):
        """
        Add the moments of other features, for example from another process.

        Args:
            other (`FeatureMoments`):
                The other moments. They are not changed.

        Raises:
            ValueError: If the dimensions differ.
        """
        if other.dim != self.dim:
            raise ValueError(f"`other` must have dimension {self.dim}, got {other.dim}.")
        self._add(other.count, other.mean, other._scatter)

    def _add(self, count, mean, scatter):
        total = max(self.count + count, 1)
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self._scatter = self._scatter + scatter + difference.outer(difference) * (self.count * count / total)
        self.count += count


def frechet_distance(features: torch.Tensor | FeatureMoments, reference: torch.Tensor | FeatureMoments) -> float:
    r"""
    Compute the Fréchet distance between Gaussians fitted to two sets of features.

    `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` (Dowson & Landau 1982; Heusel et al. 2017, arXiv 1706.08500, eq. 6).
    Only with Inception features is it an FID. If a set has no more features than dimensions, its covariance does not have
    full rank and the distance is too large; a warning says so.

    Args:
        features (`torch.Tensor` of shape `(num, dim)` or [`FeatureMoments`]):
            Features of one set, or their moments.
        reference (`torch.Tensor` of shape `(num_reference, dim)` or [`FeatureMoments`]):
            Features of the other set, or their moments.

    Returns:
        `float`: The distance, in squared units of the features.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, or a set has fewer than two rows.
    """
    moments = []
    for name, x in (("features", features), ("reference", reference)):
        if isinstance(x, torch.Tensor):
            _check_features(2, x.shape[-1], **{name: x})
            x, rows = FeatureMoments(x.shape[1]), x
            x.update(rows)
        moments.append(x)
        if x.dim != moments[0].dim:
            raise ValueError(f"`reference` must have dimension {moments[0].dim}, as `features`, got {x.dim}.")
        if 2 <= x.count <= x.dim:
            logger.warning(
                f"The covariance of `{name}` has rank at most {x.count - 1} of {x.dim}: {x.count} samples are too few, "
                f"and the Fréchet distance is overestimated. Use more than {x.dim}, or the kernel distance."
            )
    (mean_1, cov_1), (mean_2, cov_2) = [(x.mean, x.covariance) for x in moments]
    # tr (S1 S2)^(1/2) = tr (R S2 R)^(1/2) with R = S1^(1/2): the eigenvalues of a symmetric matrix
    values, vectors = torch.linalg.eigh(cov_1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    trace_root = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0).sqrt().sum()
    return ((mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * trace_root).item()


def kernel_distance(
    features: torch.Tensor,
    reference: torch.Tensor,
    num_subsets: int | None = 50,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """
    Estimate the squared maximum mean discrepancy of two sets under the kernel `(x.y / dim + 1)^3`.

    This is the unbiased estimator (Binkowski et al. 2018, arXiv 1801.01401, eq. 4), in float64. Its expectation does not
    depend on the number of features, and it can be negative.

    Args:
        features (`torch.Tensor` of shape `(num, dim)`):
            Features of one set.
        reference (`torch.Tensor` of shape `(num_reference, dim)`):
            Features of the other set.
        num_subsets (`int`, *optional*, defaults to `50`):
            Number of estimates to average, each from its own random subsets. `None` or `1` makes one estimate from the
            whole sets.
        subset_size (`int`, defaults to `1000`):
            Rows of each subset, at most the size of the smaller set.
        generator (`torch.Generator`, *optional*):
            Draws the subsets.

    Returns:
        `tuple[float, float]`: Mean and standard deviation over the subsets; the latter is 0 for whole sets.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, a set has fewer than two rows, `num_subsets` is not
            positive, or `subset_size` is below 2.
    """
    _check_features(2, reference.shape[-1], features=features, reference=reference)
    if num_subsets is not None:
        check_count("num_subsets", num_subsets)
    check_count("subset_size", subset_size, least=2)
    sets = features.double(), reference.to(features.device).double()
    if num_subsets in (None, 1):
        return _squared_mmd(*sets).item(), 0.0
    size = min(subset_size, *map(len, sets))
    device = "cpu" if generator is None else generator.device
    estimates = torch.stack(
        [
            _squared_mmd(*(x[torch.randperm(len(x), generator=generator, device=device)[:size].to(x.device)] for x in sets))
            for _ in range(num_subsets)
        ]
    )  # fmt: skip
    return estimates.mean().item(), estimates.std(correction=0).item()


def _squared_mmd(x, y):
    def total(a, b):
        return sum((rows @ b.T / b.shape[1] + 1).pow(3).sum() for rows in a.split(BLOCK))

    def within(a):
        own = (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()
        return (total(a, a) - own) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * total(x, y) / (len(x) * len(y))


def precision_recall(features: torch.Tensor, reference: torch.Tensor, num_neighbors: int = 3) -> tuple[float, float]:
    """
    Estimate the share of each set that lies on the manifold of the other (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    The manifold of a set is the union of balls around its features, each as large as the distance to the k-th nearest
    neighbour in the set (eq. 1). Both shares depend on the sizes of the sets. They are computed in float64, by blocks of
    rows.

    Args:
        features (`torch.Tensor` of shape `(num, dim)`):
            Features of the generated images.
        reference (`torch.Tensor` of shape `(num_reference, dim)`):
            Features of real images.
        num_neighbors (`int`, defaults to `3`):
            The k above.

    Returns:
        `tuple[float, float]`: Precision, the share of generated features on the real manifold, and recall, the share of
        real features on the generated manifold.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, or a set has no more than `num_neighbors` rows.
    """
    check_count("num_neighbors", num_neighbors)
    _check_features(num_neighbors + 1, reference.shape[-1], features=features, reference=reference)
    features, reference = features.double(), reference.to(features.device).double()

    def radii(x):  # each row is its own nearest neighbour
        return torch.cat([torch.cdist(rows, x).kthvalue(num_neighbors + 1).values for rows in x.split(BLOCK)])

    radii_features, radii_reference = radii(features), radii(reference)
    precise = 0
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=features.device)
    for rows, radius in zip(features.split(BLOCK), radii_features.split(BLOCK)):
        distances = torch.cdist(rows, reference)
        precise += (distances <= radii_reference).any(1).sum().item()
        recalled |= (distances <= radius[:, None]).any(0)
    return precise / len(features), recalled.double().mean().item()
