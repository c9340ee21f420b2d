# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How well a low-frequency source would fit a set of images or latents, from running sums in one pass."""

from collections.abc import Sequence

import torch

from ..guards.tensors import check_finite, check_shape
from ..guards.values import check_number
from ..projections import PROJECTIONS, LowFrequencyProjection


class SourceStatistics:
    r"""
    Measure the energy kept and the path length for several projections and factors, in memory that does not grow with the set.

    With the projection `T`, a sample `x` at working scale and `source = (1 - alpha) * T(x) + alpha * noise`:

    - energy kept: `1 - E||x - T(x)||^2 / E||x - mean||^2`, with one mean per channel over samples and positions. For an
      orthogonal projection this is the share of the variance in `T(x)`;
    - path length: `E||source - x||^2` per element
      `= (1 - alpha)^2 R + 2 alpha (1 - alpha) C + alpha^2 (E x^2 + 1)`, where `R = E (x - T(x))^2`
      and `C = E (x - T(x)) x`. At unit scale it is 2 for `alpha = 1`, whatever the projection.

    `T` acts on each channel separately and preserves constants. So both follow from sums over the raw samples, and the scale
    of the channels need not be known before the end.

    Args:
        projections (`Sequence[str]`, defaults to `("bicubic", "area", "dct")`):
            The projections to measure.
        factors (`Sequence[int]`, defaults to `(2, 4, 8)`):
            The factors to measure. Each must divide the height and width of the samples.
        unit_scale (`bool`, defaults to `True`):
            Whether to work at zero mean and unit variance per channel, by the measured statistics (for latents), or at the
            scale of the given samples (for pixels).
    """

    def __init__(
        self,
        projections: Sequence[str] = PROJECTIONS,
        factors: Sequence[int] = (2, 4, 8),
        unit_scale: bool = True,
    ):
        self.unit_scale = unit_scale
        self.projections = {(p, f): LowFrequencyProjection(p, f) for p in projections for f in factors}
        self.num_samples = 0
        self.shape = None
        self._elements = 0  # per channel
        self._moments = 0.0  # (2, channels): sums of x and x^2
        self._lost = dict.fromkeys(self.projections, 0.0)  # (3, channels): of r^2, r x and r, with r = x - T(x)

    @torch.no_grad()
    def update(self, sample: torch.Tensor):
        """
        Add samples to the sums.

        Args:
            sample (`torch.Tensor` of shape `(batch, channels, height, width)`):
                Raw images or latents.

        Raises:
            ValueError: If the shape differs from that of earlier samples, a factor does not divide it, or a sample is
                not finite. The sums are unchanged then.
        """
        shape = ("channels", "height", "width") if self.shape is None else self.shape
        check_shape("sample", sample, "batch", *shape, least=0)
        check_finite("sample", sample, self.num_samples)
        x = sample.double()
        lost = {}
        for key, projection in self.projections.items():
            r = projection.complement(x)
            lost[key] = torch.stack([r.square().sum((0, 2, 3)), (r * x).sum((0, 2, 3)), r.sum((0, 2, 3))]).cpu()
        # Nothing was refused: only now do the sums change
        for key, value in lost.items():
            self._lost[key] = self._lost[key] + value
        self._moments = self._moments + torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]).cpu()
        self._elements += x[:, 0].numel()
        self.num_samples += len(x)
        self.shape = tuple(x.shape[1:])

    def _check_samples(self):
        if not self.num_samples:
            raise ValueError("`update` must be called with at least one sample first.")

    @property
    def mean(self) -> torch.Tensor:
        """Mean of the raw samples per channel, `(channels,)` in float64."""
        self._check_samples()
        return self._moments[0] / self._elements

    @property
    def std(self) -> torch.Tensor:
        """Standard deviation of the raw samples per channel, `(channels,)` in float64."""
        return (self._moments[1] / self._elements - self.mean**2).clamp(min=1e-12).sqrt()

    def _scale(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (shift, scale) such that `x = (raw - shift) / scale` is at working scale."""
        if self.unit_scale:
            return self.mean, self.std
        return torch.zeros_like(self.mean), torch.ones_like(self.mean)

    def _find(self, projection: str, factor: int) -> torch.Tensor:
        self._check_samples()
        if (projection, factor) not in self._lost:
            raise ValueError(
                f"`projection` and `factor` must be one of {list(self._lost)}, got {(projection, factor)!r}."
            )
        return self._lost[projection, factor]

    def energy_kept(self, projection: str, factor: int) -> float:
        """
        Compute `1 - E||x - T(x)||^2 / E||x - mean||^2` at working scale.

        Args:
            projection (`str`), factor (`int`):
                A pair that was measured.

        Raises:
            ValueError: If the pair was not measured, or all samples are the same constant.
        """
        lost = self._find(projection, factor)[0]
        scale = self._scale()[1]
        variance = (self._moments[1] / self._elements - self.mean**2).clamp(min=0)
        if (variance <= 1e-12).all():
            raise ValueError("`sample` never varied: every image is the same constant, so there is no energy to keep.")
        return (1 - (lost / scale**2).sum() / (variance / scale**2).sum() / self._elements).item()

    def path_length(self, projection: str, factor: int, noise_ratio: float) -> float:
        """
        Compute `E||source - x||^2` per element at working scale.

        Args:
            projection (`str`), factor (`int`):
                A pair that was measured.
            noise_ratio (`float`):
                The paper's alpha, in [0, 1]; at 1 the source is Gaussian noise.

        Raises:
            ValueError: If the pair was not measured, or `noise_ratio` is not in [0, 1].
        """
        square, with_x, plain = self._find(projection, factor)
        check_number("noise_ratio", noise_ratio, 0, 1)
        shift, scale = self._scale()
        total, total_square = self._moments
        lost = square / scale**2
        cross = (with_x - shift * plain) / scale**2
        energy = (total_square - 2 * shift * total + shift**2 * self._elements) / scale**2
        a = noise_ratio
        path = (1 - a) ** 2 * lost + 2 * a * (1 - a) * cross + a**2 * (energy + self._elements)
        return (path / self._elements).mean().item()
