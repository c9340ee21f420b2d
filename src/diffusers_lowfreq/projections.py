# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Low-frequency projections: downsample D, upsample U, T = U∘D and its complement x − T(x).

Every projection is separable, so it is a pair of small dense matrices, one along the height and one along the width.
Two matrix products are exact in any dtype, deterministic on a GPU, differentiable in both modes, and compile.
"""

import math
from functools import lru_cache

import torch


def _cubic(distance: torch.Tensor, a: float = -0.5) -> torch.Tensor:
    """Evaluate Keys' cubic convolution kernel (Keys 1981, eq. 4 with a = -1/2)."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _cubic_resize(size_in: int, size_out: int) -> torch.Tensor:
    """Weights (size_out, size_in) of antialiased bicubic resizing with half-pixel centres and renormalised borders."""
    scale = size_in / size_out
    centre = (torch.arange(size_out, dtype=torch.float64) + 0.5) * scale
    position = torch.arange(size_in, dtype=torch.float64) + 0.5
    weights = _cubic((position[None] - centre[:, None]) / max(scale, 1.0))
    return weights / weights.sum(dim=1, keepdim=True)


def _dct(size: int) -> torch.Tensor:
    """Orthonormal DCT-II matrix (size, size): row k is the k-th cosine."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * k[:, None] * (k[None] + 0.5)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis


def _bicubic_pair(low: int, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _cubic_resize(low * factor, low), _cubic_resize(low, low * factor)


def _area_pair(low: int, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    up = torch.eye(low, dtype=torch.float64).repeat_interleave(factor, dim=0)
    return up.T / factor, up


def _dct_pair(low: int, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Keep the lowest `low` cosines and read them back on the coarse grid; sqrt(factor) keeps a constant constant.
    coarse = _dct(low).T @ _dct(low * factor)[:low]
    return coarse / math.sqrt(factor), coarse.T * math.sqrt(factor)


_PAIRS = {"bicubic": _bicubic_pair, "area": _area_pair, "dct": _dct_pair}
PROJECTIONS = tuple(_PAIRS)


@lru_cache(maxsize=256)
def _matrices(
    projection: str, low: int, factor: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (D, U) along one axis, of shapes (low, low * factor) and (low * factor, low)."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training afterwards
        down, up = _PAIRS[projection](low, factor)
        return down.to(device, dtype), up.to(device, dtype)


class LowFrequencyProjection:
    r"""
    Project images or latents on their low frequencies: `T(x) = U(D(x))`.

    `"area"` (block means) and `"dct"` (truncated cosine transform) are orthogonal projections: `T` is idempotent and
    self-adjoint, so that pairing every sample with its own `T(x)` is an optimal transport by design. `"bicubic"`
    (antialiased down, bicubic up; the paper's choice) is neither exactly; there the pairing is optimal empirically.

    Args:
        projection (`str`, defaults to `"bicubic"`):
            `"bicubic"`, `"area"` or `"dct"`.
        factor (`int`, defaults to `4`):
            The number of samples along each axis that become one. Height and width must be multiples of it.

    Raises:
        ValueError: If `projection` is unknown or `factor` is not a positive integer.
    """

    def __init__(self, projection: str = "bicubic", factor: int = 4):
        if projection not in PROJECTIONS:
            raise ValueError(f"`projection` must be one of {list(PROJECTIONS)}, got {projection!r}.")
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise ValueError(f"`factor` must be a positive integer, got {factor!r}.")
        self.projection = projection
        self.factor = factor

    def __repr__(self) -> str:
        return f"{type(self).__name__}(projection={self.projection!r}, factor={self.factor})"

    def _apply(self, x: torch.Tensor, low_height: int, low_width: int, which: int) -> torch.Tensor:
        # Half precision is computed in float32 and rounded once at the end.
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        # Traced calls (compile, export) build their own matrices: their fake tensors must not stay in the cache.
        traced = torch.compiler.is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter)
        matrices = _matrices.__wrapped__ if traced else _matrices
        along_height = matrices(self.projection, low_height, self.factor, dtype, x.device)[which]
        along_width = matrices(self.projection, low_width, self.factor, dtype, x.device)[which]
        if not torch.amp.is_autocast_available(x.device.type):
            return (along_height @ x.to(dtype) @ along_width.T).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return (along_height @ x.to(dtype) @ along_width.T).to(x.dtype)

    def downsample(self, sample: torch.Tensor) -> torch.Tensor:
        """
        Compute the coarse version `D(x)`.

        Args:
            sample (`torch.Tensor` of shape `(..., height, width)`):
                Images or latents, of any floating dtype.

        Returns:
            `torch.Tensor` of shape `(..., height / factor, width / factor)`.

        Raises:
            ValueError: If `sample` is not floating point or `factor` does not divide its height and width.
        """
        height, width = self._check(sample, "sample")
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"`sample` must have a height and width divisible by the factor {self.factor}, got {height}x{width}."
            )
        return self._apply(sample, height // self.factor, width // self.factor, 0)

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """
        Bring a coarse version back to full size, `U(low)`.

        Args:
            low (`torch.Tensor` of shape `(..., height, width)`):
                Coarse images or latents, of any floating dtype.

        Returns:
            `torch.Tensor` of shape `(..., height * factor, width * factor)`.

        Raises:
            ValueError: If `low` is not a floating point tensor with two spatial dimensions.
        """
        height, width = self._check(low, "low")
        return self._apply(low, height, width, 1)

    def __call__(self, sample: torch.Tensor) -> torch.Tensor:
        """Compute `T(x) = U(D(x))`, of the shape of `sample` (`(..., height, width)`)."""
        return self.upsample(self.downsample(sample))

    def complement(self, sample: torch.Tensor) -> torch.Tensor:
        """Compute what the projection removes, `x - T(x)`, of the shape of `sample` (`(..., height, width)`)."""
        return sample - self(sample)

    @staticmethod
    def _check(x: torch.Tensor, name: str) -> tuple[int, int]:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"`{name}` must be a floating point tensor of shape (..., height, width), got {got}.")
        return x.shape[-2], x.shape[-1]
