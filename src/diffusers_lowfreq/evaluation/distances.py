# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Distances between two sets of features."""

import torch

from diffusers.utils import logging


logger = logging.get_logger(__name__)

BLOCK = 1024


def refuse_non_finite(name: str, x: torch.Tensor, first: int = 0):
    """Raise a `ValueError` that counts and names the rows of `x` with NaN or infinite values, numbered from `first`."""
    bad = (~x.isfinite()).flatten(1).any(1).nonzero()[:, 0]
    if len(bad):
        rows = ", ".join(str(first + i) for i in bad[:10].tolist()) + (", ..." if len(bad) > 10 else "")
        raise ValueError(f"`{name}` must be finite, but {len(bad)} of {len(x)} samples are not: {rows}.")


def _refuse_shapes(smallest: int, dim: int, **sets: torch.Tensor):
    for name, x in sets.items():
        if x.ndim != 2 or len(x) < smallest or x.shape[1] != dim:
            raise ValueError(f"`{name}` must have shape (num >= {smallest}, {dim}), got {tuple(x.shape)}.")
        refuse_non_finite(name, x)


class FeatureMoments:
    """
    Gather the mean and the covariance of features in one pass, in float64 on the CPU (Chan et al. 1979).

    Memory does not depend on the number of features seen, and the result depends on neither batches nor order, up to
    rounding.

    Args:
        dim (`int`):
            Length of a feature.

    Attributes:
        count (`int`): Features seen.
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
            ValueError: If the shape is another, or values are not finite; nothing is added then.
        """
        if features.ndim != 2 or len(features) < 1 or features.shape[1] != self.dim:
            raise ValueError(f"`features` must have shape (batch >= 1, {self.dim}), got {tuple(features.shape)}.")
        refuse_non_finite("features", features, self.count)
        features = features.detach().to("cpu", torch.float64)
        mean = features.mean(0)
        self._add(len(features), mean, (features - mean).T @ (features - mean))

    def merge(self, other: "FeatureMoments"):
        """
        Add what another process has gathered.

        Args:
            other (`FeatureMoments`):
                Moments of other features; left as they are.

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
    It is an FID only with Inception features. A set of no more features than they are long gives a covariance of less
    than full rank, and a distance that is too large: this logs a warning.

    Args:
        features (`torch.Tensor` of shape `(num, dim)` or [`FeatureMoments`]):
            Features of one set, or their moments.
        reference (`torch.Tensor` of shape `(num_reference, dim)` or [`FeatureMoments`]):
            Features of the other, or their moments.

    Returns:
        `float`: The distance, in squared units of the features.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, or a set has fewer than two rows.
    """
    moments = []
    for name, x in (("features", features), ("reference", reference)):
        if isinstance(x, torch.Tensor):
            _refuse_shapes(2, x.shape[-1], **{name: x})
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

    The unbiased estimator (Binkowski et al. 2018, arXiv 1801.01401, eq. 4), in float64: its expectation does not
    depend on the number of features, and it can be negative.

    Args:
        features (`torch.Tensor` of shape `(num, dim)`):
            Features of one set.
        reference (`torch.Tensor` of shape `(num_reference, dim)`):
            Features of the other.
        num_subsets (`int`, *optional*, defaults to `50`):
            Estimates to average, each from its own random subsets; with `None` or `1`, one from the whole sets.
        subset_size (`int`, defaults to `1000`):
            Rows of a subset, of each set; the smaller set's size where that is less.
        generator (`torch.Generator`, *optional*):
            Draws the subsets.

    Returns:
        `tuple[float, float]`: Mean and standard deviation over the subsets; the latter is 0 for whole sets.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, a set has fewer than two rows, there is no subset,
            or a subset would have fewer than two rows.
    """
    _refuse_shapes(2, reference.shape[-1], features=features, reference=reference)
    if (num_subsets is not None and num_subsets < 1) or subset_size < 2:
        came = f"{num_subsets} and {subset_size}"
        raise ValueError(f"`num_subsets` must be at least 1 and `subset_size` at least 2, got {came}.")
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

    A manifold is the union of balls around the features of a set that reach to their k-th nearest neighbour in it
    (eq. 1). Both figures depend on the sizes of the sets. In float64, by blocks of rows.

    Args:
        features (`torch.Tensor` of shape `(num, dim)`):
            Features of the generated images.
        reference (`torch.Tensor` of shape `(num_reference, dim)`):
            Features of real images.
        num_neighbors (`int`, defaults to `3`):
            The k above.

    Returns:
        `tuple[float, float]`: Precision, the share of the generated within the real; recall, of the real within the
        generated.

    Raises:
        ValueError: If the dimensions differ, a value is not finite, or a set has no more than `num_neighbors` rows.
    """
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` must be at least 1, got {num_neighbors}.")
    _refuse_shapes(num_neighbors + 1, reference.shape[-1], features=features, reference=reference)
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
