# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Low-frequency projections: downsample D, upsample U, T = U∘D and its complement x − T(x).

The fixed projections are separable: each is a pair of small dense matrices, one for the height and one for the width. Two
matrix products are exact in any dtype, deterministic on a GPU, differentiable in both modes, and they compile. The fitted
projection, `"pca"`, also rotates the channels and chooses which cosines to keep.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch

from .guards.tensors import check_shape
from .guards.values import check_choice, check_setting


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
    # Keep the lowest `low` cosines and evaluate them on the coarse grid; sqrt(factor) preserves constants.
    coarse = _dct(low).T @ _dct(low * factor)[:low]
    return coarse / math.sqrt(factor), coarse.T * math.sqrt(factor)


MAX_ELEMENTS = 2**31  # of a tensor; beyond that, some kernels of torch run out of indices


_PAIRS = {"bicubic": _bicubic_pair, "area": _area_pair, "dct": _dct_pair}
PROJECTIONS = tuple(_PAIRS)  # the fixed projections, which need only a factor
ORTHOGONAL = ("area", "dct", "pca")  # those whose T is an orthogonal projection


@lru_cache(maxsize=256)
def _matrices(
    projection: str, low: int, factor: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (D, U) along one axis, of shapes (low, low * factor) and (low * factor, low)."""
    with torch.inference_mode(False):  # training could not use a cached inference tensor
        down, up = _PAIRS[projection](low, factor)
        return down.to(device, dtype), up.to(device, dtype)


@lru_cache(maxsize=64)
def _cosines(size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return _dct(size).to(device, dtype)


@lru_cache(maxsize=64)
def _gram(low: int, factor: int, dtype: torch.dtype, device: torch.device) -> tuple:
    """Eigenvalues (size,) and eigenvectors (size, size) of the bicubic `U U^T` along one axis of `size = low * factor`."""
    with torch.inference_mode(False):
        up = _bicubic_pair(low, factor)[1]
        values, vectors = torch.linalg.eigh(up @ up.T)
        return values.clamp(min=0).to(device, dtype), vectors.to(device, dtype)


def fit_projection_basis(batches: Iterable[torch.Tensor], factor: int) -> dict:
    """
    Fit what the projection `"pca"` keeps: principal components of the channels, and some cosines of each.

    Where channels are correlated, as colours are, keeping the low frequencies of each channel wastes dimensions. Here the
    channels are rotated to their principal components. Of all (component, cosine) pairs, the `1 / factor^2` with the most
    energy are kept: strong components to a finer scale than weak ones, as in chroma subsampling. The constant of each
    component is always kept.

    Args:
        batches (`Iterable[torch.Tensor]` of shape `(batch, channels, height, width)`):
            Samples at the scale of the latents. They are read once; memory does not grow with their number.
        factor (`int`):
            The number of positions along each axis that become one.

    Returns:
        `dict`: The `basis` of a [`LowFrequencyProjection`], ready for JSON. `"channels"` is an orthogonal matrix whose rows
        are the components, the strongest first. `"size"` is the height and width. `"kept"` gives, for each coefficient of a
        coarse sample in the cosine domain, its index into `(component, row, column)`. A kept cosine that `"dct"` keeps too
        stays at the same coefficient; the others fill the coefficients that are free.

    Raises:
        ValueError: If there are no samples, a sample is not finite, shapes differ, or `factor` does not divide the height and
            width.
    """
    check_setting("factor", factor)
    if not isinstance(batches, Iterable):
        raise ValueError(f"`batches` must be an iterable of tensors, got {batches!r}.")
    total, shape = 0.0, ("channels", "height", "width")
    for batch in batches:
        check_shape("batches", batch, "batch", *shape, is_floating=True)
        shape = tuple(batch.shape[1:])
        _, height, width = shape
        if height % factor or width % factor:
            raise ValueError(
                f"`batches` must have a height and width divisible by the factor {factor}, got {height}x{width}."
            )
        cosines = _dct(height).to(batch.device) @ batch.double() @ _dct(width).T.to(batch.device)
        total = total + torch.einsum("bchw,bdhw->hwcd", cosines, cosines).cpu()
    if not isinstance(total, torch.Tensor):
        raise ValueError("`batches` must hold at least one batch, got none.")
    if not total.isfinite().all():
        raise ValueError("`batches` must be finite, some numbers are not.")
    channels = torch.linalg.eigh(total.sum((0, 1)))[1].flip(1).T
    channels = channels * channels.gather(1, channels.abs().argmax(1, keepdim=True)).sign()
    energy = torch.einsum("ec,hwcd,ed->ehw", channels, total, channels)
    energy[:, 0, 0] = torch.inf
    indices = torch.arange(energy.numel()).view(energy.shape)
    lowest = indices[:, : height // factor, : width // factor].flatten().tolist()  # what "dct" keeps
    strongest = energy.flatten().argsort(descending=True, stable=True).tolist()[: len(lowest)]
    is_strong, is_low = set(strongest), set(lowest)
    others = iter([index for index in strongest if index not in is_low])
    kept = [index if index in is_strong else next(others) for index in lowest]
    return {"channels": channels.tolist(), "size": [height, width], "kept": kept}


class LowFrequencyProjection:
    r"""
    Project images or latents onto their low frequencies: `T(x) = U(D(x))`.

    `"area"` (block means) and `"dct"` (truncated cosine transform) are orthogonal projections: `T` is idempotent and
    self-adjoint, so pairing every sample with its own `T(x)` is an optimal transport by design. `"bicubic"` (antialiased
    down, bicubic up; the paper's choice) is only approximately so; there the pairing is optimal empirically. `"pca"` is
    orthogonal too. [`fit_projection_basis`] fits it to a data set. Its coarse version has the same shape and keeps more
    energy, but it is not an image, and all samples must have one size.

    Args:
        projection (`str`, defaults to `"bicubic"`):
            `"bicubic"`, `"area"`, `"dct"` or `"pca"`.
        factor (`int`, defaults to `4`):
            The number of positions along each axis that become one. Height and width must be multiples of it.
        basis (`dict`, *optional*):
            The result of [`fit_projection_basis`], for `"pca"` only.

    Raises:
        ValueError: If `projection` is unknown, `factor` is not a positive integer, or `basis` does not fit them.
    """

    def __init__(self, projection: str = "bicubic", factor: int = 4, basis: dict | None = None):
        check_choice("projection", projection, (*PROJECTIONS, "pca"))
        check_setting("factor", factor)
        if (basis is not None) != (projection == "pca"):
            raise ValueError(
                "`basis` must be given with the projection 'pca', and with no other: `fit_projection_basis`."
            )
        self.projection = projection
        self.factor = factor
        if basis is not None:
            self._channels, self._size, self._kept = self._read(basis)

    def _read(self, basis: dict) -> tuple[torch.Tensor, tuple[int, int], torch.Tensor]:
        try:
            channels, kept = torch.tensor(basis["channels"], dtype=torch.float64), torch.tensor(basis["kept"])
            height, width = basis["size"]
            number = len(channels) * height * width
            unit = (channels @ channels.T - torch.eye(len(channels))).abs().max() < 1e-6
            fits = kept.min() >= 0 and kept.max() < number and len(kept.unique()) == len(kept)
            fits = fits and height % self.factor == width % self.factor == 0 and len(kept) * self.factor**2 == number
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ValueError(f"`basis` must be what `fit_projection_basis` returned: {error!r}.") from error
        if not (unit and fits):
            raise ValueError(f"`basis` must have orthogonal channels and fit `factor` {self.factor}: it does not.")
        return channels, (height, width), kept

    def __repr__(self) -> str:
        return f"{type(self).__name__}(projection={self.projection!r}, factor={self.factor})"

    def _apply(self, x: torch.Tensor, low_height: int, low_width: int, up: bool) -> torch.Tensor:
        """Compute D(x), or U(x) if `up`, out of autocast; half precision in float32, rounded once at the end."""
        matrix, full = max(low_height, low_width) ** 2 * self.factor, low_height * low_width * self.factor**2
        if max(matrix, math.prod(x.shape[:-2]) * full) > MAX_ELEMENTS:
            raise ValueError(
                f"`{'low' if up else 'sample'}` of shape {tuple(x.shape)} is too large for the `factor` {self.factor}."
            )
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        apply = self._separable if self.projection in _PAIRS else self._components
        if not torch.amp.is_autocast_available(x.device.type):
            return apply(x.to(dtype), low_height, low_width, up).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return apply(x.to(dtype), low_height, low_width, up).to(x.dtype)

    @staticmethod
    def _cached(function, x: torch.Tensor):
        # A traced call (compile, export) builds its own matrices: its fake tensors must not stay in the cache.
        is_traced = torch.compiler.is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter)
        return function.__wrapped__ if is_traced else function

    def _separable(self, x: torch.Tensor, low_height: int, low_width: int, up: bool) -> torch.Tensor:
        matrices = self._cached(_matrices, x)
        down_height, up_height = matrices(self.projection, low_height, self.factor, x.dtype, x.device)
        down_width, up_width = matrices(self.projection, low_width, self.factor, x.dtype, x.device)
        return up_height @ x @ up_width.T if up else down_height @ x @ down_width.T

    def _components(self, x: torch.Tensor, low_height: int, low_width: int, up: bool) -> torch.Tensor:
        channels, kept = self._channels.to(x.device, x.dtype), self._kept.to(x.device)
        shape, low_shape = (len(channels), *self._size), (len(channels), low_height, low_width)
        check_shape("low" if up else "sample", x, ..., *(low_shape if up else shape))
        cosines = self._cached(_cosines, x)
        sizes = (*self._size, low_height, low_width)
        rows, columns, low_rows, low_columns = (cosines(size, x.dtype, x.device) for size in sizes)
        if not up:
            components = torch.einsum("ec,...chw->...ehw", channels, rows @ x @ columns.T)
            low = components.flatten(-3)[..., kept].unflatten(-1, low_shape)
            return low_rows.T @ low @ low_columns / self.factor
        low = (low_rows @ x @ low_columns.T * self.factor).flatten(-3)
        components = low.new_zeros(*low.shape[:-1], math.prod(shape)).index_copy(-1, kept, low).unflatten(-1, shape)
        return rows.T @ torch.einsum("ec,...ehw->...chw", channels, components) @ columns

    def downsample(self, sample: torch.Tensor) -> torch.Tensor:
        """
        Compute the coarse version `D(x)`.

        Args:
            sample (`torch.Tensor` of shape `(..., height, width)`):
                Images or latents, of any floating point dtype.

        Returns:
            `torch.Tensor` of shape `(..., height / factor, width / factor)`.

        Raises:
            ValueError: If `sample` is not floating point, or `factor` does not divide its height and width.
        """
        check_shape("sample", sample, ..., "height", "width", is_floating=True)
        height, width = sample.shape[-2:]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"`sample` must have a height and width divisible by the factor {self.factor}, got {height}x{width}."
            )
        return self._apply(sample, height // self.factor, width // self.factor, up=False)

    def upsample(self, low: torch.Tensor) -> torch.Tensor:
        """
        Bring a coarse version back to full size, `U(low)`.

        Args:
            low (`torch.Tensor` of shape `(..., height, width)`):
                Coarse images or latents, of any floating point dtype.

        Returns:
            `torch.Tensor` of shape `(..., height * factor, width * factor)`.

        Raises:
            ValueError: If `low` is not a floating point tensor with two spatial dimensions.
        """
        check_shape("low", low, ..., "height", "width", is_floating=True)
        return self._apply(low, *low.shape[-2:], up=True)

    def coarse_noise_scale(self, height: int, width: int) -> float:
        """
        Compute the largest `scale` for which white noise can contain `scale * U(n)`, where `n` is white coarse noise.

        It is `1 / |U|`, with the spectral norm; `1 / factor` for the orthogonal projections.

        Args:
            height (`int`), width (`int`):
                Size of the coarse noise.
        """
        if self.projection in ORTHOGONAL:
            return 1 / self.factor
        values = [_gram(low, self.factor, torch.float64, torch.device("cpu"))[0] for low in (height, width)]
        return (values[0].max() * values[1].max()).rsqrt().item()

    def remaining_noise(self, noise: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """
        Compute `(1 - scale^2 U U^T)^(1/2) noise`. Adding an independent `scale * U(n)` gives white noise again.

        Args:
            noise (`torch.Tensor` of shape `(..., channels, height, width)`):
                White noise.
            scale (`float` or `torch.Tensor` of shape `(channels, 1, 1)`):
                From 0 to [`~LowFrequencyProjection.coarse_noise_scale`], for each channel of the coarse noise.

        Returns:
            `torch.Tensor` of the shape of `noise`.
        """
        if self.projection in ORTHOGONAL:
            removed = 1 - (1 - (torch.as_tensor(scale) * self.factor) ** 2).clamp(min=0).sqrt()
            return noise - self.upsample(removed.to(noise) * self.downsample(noise))
        dtype = noise.dtype if noise.dtype in (torch.float32, torch.float64) else torch.float32
        lows = (noise.shape[-2] // self.factor, noise.shape[-1] // self.factor)
        of_height, of_width = (_gram(low, self.factor, dtype, noise.device) for low in lows)
        (row_values, rows), (column_values, columns) = of_height, of_width
        values = torch.as_tensor(scale).to(row_values) ** 2 * row_values[:, None] * column_values
        kept = (1 - values).clamp(min=0).sqrt()
        return (rows @ (kept * (rows.T @ noise.to(dtype) @ columns)) @ columns.T).to(noise.dtype)

    def __call__(self, sample: torch.Tensor) -> torch.Tensor:
        """Compute `T(x) = U(D(x))`, of the shape of `sample` (`(..., height, width)`)."""
        return self.upsample(self.downsample(sample))

    def complement(self, sample: torch.Tensor) -> torch.Tensor:
        """Compute what the projection removes, `x - T(x)`, of the shape of `sample` (`(..., height, width)`)."""
        return sample - self(sample)
