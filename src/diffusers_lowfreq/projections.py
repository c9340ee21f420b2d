# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Low-frequency projections: downsample D, upsample U, T = U∘D and its complement x − T(x).

The fixed projections are separable: a pair of small dense matrices, one along the height and one along the width. Two
matrix products are exact in any dtype, deterministic on a GPU, differentiable in both modes, and compile. The fitted one,
`"pca"`, is a product along the channels and a choice of cosines besides.
"""

import math
from collections.abc import Iterable
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


MAX_NUMBERS = 2**31  # of a tensor; there torch's indices end in places


_PAIRS = {"bicubic": _bicubic_pair, "area": _area_pair, "dct": _dct_pair}
PROJECTIONS = tuple(_PAIRS)  # those that need nothing but a factor


@lru_cache(maxsize=256)
def _matrices(
    projection: str, low: int, factor: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (D, U) along one axis, of shapes (low, low * factor) and (low * factor, low)."""
    with torch.inference_mode(False):  # a cached inference tensor could not be used in training afterwards
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


def _check_factor(factor: int):
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"`factor` must be a positive integer, got {factor!r}.")


def fit_projection_basis(batches: Iterable[torch.Tensor], factor: int) -> dict:
    """
    Choose what the projection `"pca"` keeps: the principal components over the channels, and of them the cosines.

    Low frequency by channel wastes dimensions where channels are correlated, as colours are. Here the channels are rotated
    to their principal components, and of all (component, cosine) pairs the `1 / factor^2` of most energy are kept: strong
    components to a finer scale than weak ones, which is what chroma subsampling does. The constant of each is always kept.

    Args:
        batches (`Iterable[torch.Tensor]` of shape `(batch, channels, height, width)`):
            Samples at the scale of the latents; one pass, memory independent of their number.
        factor (`int`):
            The number of samples along each axis that become one.

    Returns:
        `dict`: The `basis` of a [`LowFrequencyProjection`], ready for JSON: `"channels"`, an orthogonal matrix with the
        components as rows, the strongest first; `"size"`, height and width; `"kept"`, for each number of a coarse sample in
        the cosine domain its place among `(component, row, column)`. A cosine that the projection `"dct"` would keep has its
        own place, the others take the places of those that are left out.

    Raises:
        ValueError: If there are no samples, they are not finite, their shapes differ, or `factor` does not divide their height
            and width.
    """
    _check_factor(factor)
    if not isinstance(batches, Iterable):
        raise ValueError(f"`batches` must be an iterable of tensors, got {batches!r}.")
    total, shape = 0.0, None
    for batch in batches:
        is_batch = (
            isinstance(batch, torch.Tensor) and batch.is_floating_point() and batch.ndim == 4 and batch.numel() > 0
        )
        shape = batch.shape[1:] if is_batch and shape is None else shape
        if not is_batch or batch.shape[1:] != shape or shape[1] % factor or shape[2] % factor:
            got = tuple(batch.shape) if isinstance(batch, torch.Tensor) else type(batch).__name__
            raise ValueError(
                f"`batches` must be floating point and of one shape (batch, channels, height, width) divisible by the factor "
                f"{factor}, got {got}."
            )
        cosines = _dct(shape[1]).to(batch.device) @ batch.double() @ _dct(shape[2]).T.to(batch.device)
        total = total + torch.einsum("bchw,bdhw->hwcd", cosines, cosines).cpu()
    if shape is None:
        raise ValueError("`batches` must hold at least one batch, got none.")
    if not total.isfinite().all():
        raise ValueError("`batches` must be finite, some numbers are not.")
    channels = torch.linalg.eigh(total.sum((0, 1)))[1].flip(1).T
    channels = channels * channels.gather(1, channels.abs().argmax(1, keepdim=True)).sign()
    energy = torch.einsum("ec,hwcd,ed->ehw", channels, total, channels)
    energy[:, 0, 0] = torch.inf
    places = torch.arange(energy.numel()).view(energy.shape)
    own = places[:, : shape[1] // factor, : shape[2] // factor].flatten().tolist()
    ranking = energy.flatten().argsort(descending=True, stable=True).tolist()[: len(own)]
    strong, box = set(ranking), set(own)
    others = iter([place for place in ranking if place not in box])
    kept = [place if place in strong else next(others) for place in own]
    return {"channels": channels.tolist(), "size": list(shape[1:]), "kept": kept}


class LowFrequencyProjection:
    r"""
    Project images or latents on their low frequencies: `T(x) = U(D(x))`.

    `"area"` (block means) and `"dct"` (truncated cosine transform) are orthogonal projections: `T` is idempotent and
    self-adjoint, so that pairing every sample with its own `T(x)` is an optimal transport by design. `"bicubic"`
    (antialiased down, bicubic up; the paper's choice) is neither exactly; there the pairing is optimal empirically.
    `"pca"` is an orthogonal projection too, fitted to a data set by [`fit_projection_basis`]: its coarse version has the
    same shape and keeps more energy, but is no picture, and it is for samples of one size.

    Args:
        projection (`str`, defaults to `"bicubic"`):
            `"bicubic"`, `"area"`, `"dct"` or `"pca"`.
        factor (`int`, defaults to `4`):
            The number of samples along each axis that become one. Height and width must be multiples of it.
        basis (`dict`, *optional*):
            What [`fit_projection_basis`] returned, for `"pca"` only.

    Raises:
        ValueError: If `projection` is unknown, `factor` is not a positive integer, or `basis` does not fit them.
    """

    def __init__(self, projection: str = "bicubic", factor: int = 4, basis: dict | None = None):
        if not isinstance(projection, str) or projection not in (*PROJECTIONS, "pca"):
            raise ValueError(f"`projection` must be one of {[*PROJECTIONS, 'pca']}, got {projection!r}.")
        _check_factor(factor)
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

    def _apply(self, x: torch.Tensor, low_height: int, low_width: int, which: int) -> torch.Tensor:
        matrix, full = max(low_height, low_width) ** 2 * self.factor, low_height * low_width * self.factor**2
        if max(matrix, math.prod(x.shape[:-2]) * full) > MAX_NUMBERS:
            raise ValueError(
                f"`{'low' if which else 'sample'}` of shape {tuple(x.shape)} is too large for the `factor` {self.factor}."
            )
        # Half precision is computed in float32 and rounded once at the end.
        dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
        apply = self._separable if self.projection in _PAIRS else self._components
        if not torch.amp.is_autocast_available(x.device.type):
            return apply(x.to(dtype), low_height, low_width, which).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return apply(x.to(dtype), low_height, low_width, which).to(x.dtype)

    @staticmethod
    def _cached(function, x: torch.Tensor):
        # Traced calls (compile, export) build their own matrices: their fake tensors must not stay in the cache.
        traced = torch.compiler.is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter)
        return function.__wrapped__ if traced else function

    def _separable(self, x: torch.Tensor, low_height: int, low_width: int, which: int) -> torch.Tensor:
        matrices = self._cached(_matrices, x)
        along_height = matrices(self.projection, low_height, self.factor, x.dtype, x.device)[which]
        along_width = matrices(self.projection, low_width, self.factor, x.dtype, x.device)[which]
        return along_height @ x @ along_width.T

    def _components(self, x: torch.Tensor, low_height: int, low_width: int, which: int) -> torch.Tensor:
        channels, kept = self._channels.to(x.device, x.dtype), self._kept.to(x.device)
        shape, low_shape = (len(channels), *self._size), (len(channels), low_height, low_width)
        if x.ndim < 3 or tuple(x.shape[-3:]) != (low_shape if which else shape):
            name, expected = ("low", low_shape) if which else ("sample", shape)
            raise ValueError(f"`{name}` must have shape (..., {', '.join(map(str, expected))}), got {tuple(x.shape)}.")
        cosines = self._cached(_cosines, x)
        sizes = (*self._size, low_height, low_width)
        rows, columns, low_rows, low_columns = (cosines(size, x.dtype, x.device) for size in sizes)
        if which == 0:
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

    def coarse_noise_scale(self, height: int, width: int) -> float:
        """
        Compute the largest `scale` for which white noise can hold `scale * U(n)`, with `n` white coarse noise.

        It is `1 / |U|`, with the spectral norm; `1 / factor` for the orthogonal projections.

        Args:
            height (`int`), width (`int`):
                Size of the coarse noise.
        """
        if self.projection != "bicubic":
            return 1 / self.factor
        values = [_gram(low, self.factor, torch.float64, torch.device("cpu"))[0] for low in (height, width)]
        return (values[0].max() * values[1].max()).rsqrt().item()

    def remaining_noise(self, noise: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
        """
        Compute `(1 - scale^2 U U^T)^(1/2) noise`, which with independent `scale * U(n)` makes white noise again.

        Args:
            noise (`torch.Tensor` of shape `(..., channels, height, width)`):
                White noise.
            scale (`float` or `torch.Tensor` of shape `(channels, 1, 1)`):
                Between 0 and [`~LowFrequencyProjection.coarse_noise_scale`], for each channel of the coarse noise.

        Returns:
            `torch.Tensor` of the shape of `noise`.
        """
        if self.projection != "bicubic":
            held = 1 - (1 - (torch.as_tensor(scale) * self.factor) ** 2).clamp(min=0).sqrt()
            return noise - self.upsample(held.to(noise) * self.downsample(noise))
        dtype = noise.dtype if noise.dtype in (torch.float32, torch.float64) else torch.float32
        lows = (noise.shape[-2] // self.factor, noise.shape[-1] // self.factor)
        (values, rows), (others, columns) = (_gram(low, self.factor, dtype, noise.device) for low in lows)
        kept = (1 - torch.as_tensor(scale).to(values) ** 2 * values[:, None] * others).clamp(min=0).sqrt()
        return (rows @ (kept * (rows.T @ noise.to(dtype) @ columns)) @ columns.T).to(noise.dtype)

    def __call__(self, sample: torch.Tensor) -> torch.Tensor:
        """Compute `T(x) = U(D(x))`, of the shape of `sample` (`(..., height, width)`)."""
        return self.upsample(self.downsample(sample))

    def complement(self, sample: torch.Tensor) -> torch.Tensor:
        """Compute what the projection removes, `x - T(x)`, of the shape of `sample` (`(..., height, width)`)."""
        return sample - self(sample)

    @staticmethod
    def _check(x: torch.Tensor, name: str) -> tuple[int, int]:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.ndim < 2 or 0 in x.shape[-2:]:
            got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
            raise ValueError(f"`{name}` must be a floating point tensor of shape (..., height, width), got {got}.")
        return x.shape[-2], x.shape[-1]
