# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Laws of the low-frequency projections, and the resizing of torch and scipy as oracles."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn

from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFrequencyProjection, fit_projection_basis
from diffusers_lowfreq.projections import PROJECTIONS


FACTORS = [1, 2, 3, 4]
ORTHOGONAL = ["area", "dct"]


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def as_matrix(projection: LowFrequencyProjection, height: int, width: int) -> torch.Tensor:
    """Return T as a matrix that acts on flattened images: column j is T of the j-th unit image."""
    units = torch.eye(height * width, dtype=torch.float64).view(-1, height, width)
    return projection(units).flatten(1).T


# ------------------------------------------------------------------------------------------------------------ oracles


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("channels", [1, 5])
def test_bicubic_is_the_antialiased_resize_of_torch(factor, channels):
    projection, x = LowFrequencyProjection("bicubic", factor), draw(2, channels, 12, 24)
    low = F.interpolate(x, (12 // factor, 24 // factor), mode="bicubic", antialias=True)
    torch.testing.assert_close(projection.downsample(x), low)
    torch.testing.assert_close(projection.upsample(low), F.interpolate(low, (12, 24), mode="bicubic", antialias=True))


@pytest.mark.parametrize("factor", FACTORS)
def test_area_is_mean_pooling_and_nearest(factor):
    projection, x = LowFrequencyProjection("area", factor), draw(2, 3, 12, 24)
    low = F.avg_pool2d(x, factor)
    torch.testing.assert_close(projection.downsample(x), low)
    torch.testing.assert_close(projection.upsample(low), F.interpolate(low, scale_factor=factor, mode="nearest"))


@pytest.mark.parametrize("factor", FACTORS)
def test_dct_keeps_the_lowest_cosines(factor):
    """D and T against scipy's multidimensional DCT, truncated."""
    projection, x = LowFrequencyProjection("dct", factor), draw(2, 3, 12, 24)
    spectrum = dctn(x.numpy(), axes=(-2, -1), norm="ortho")
    kept = spectrum[..., : 12 // factor, : 24 // factor]
    low = idctn(kept, axes=(-2, -1), norm="ortho") / factor
    torch.testing.assert_close(projection.downsample(x), torch.from_numpy(low))
    truncated = 0 * spectrum
    truncated[..., : 12 // factor, : 24 // factor] = kept
    torch.testing.assert_close(projection(x), torch.from_numpy(idctn(truncated, axes=(-2, -1), norm="ortho")))


# --------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name", ORTHOGONAL)
def test_orthogonal_projections_are_orthogonal(name, factor):
    """T is idempotent and self-adjoint, D∘U is the identity, and U is D's adjoint times factor²."""
    projection = LowFrequencyProjection(name, factor)
    matrix = as_matrix(projection, 12, 24 if factor == 3 else 8)
    torch.testing.assert_close(matrix @ matrix, matrix)
    torch.testing.assert_close(matrix.T, matrix)
    low, x = draw(2, 3, 4, 2), draw(2, 3, 4 * factor, 2 * factor, seed=1)
    torch.testing.assert_close(projection.downsample(projection.upsample(low)), low)
    inner = (projection.downsample(x) * low).sum()
    torch.testing.assert_close((x * projection.upsample(low)).sum(), factor**2 * inner)
    kept, removed = projection(x), projection.complement(x)
    torch.testing.assert_close((kept * removed).sum(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_bicubic_is_neither_idempotent_nor_self_adjoint(factor):
    """The warning in the documentation is true, by far more than rounding."""
    matrix = as_matrix(LowFrequencyProjection("bicubic", factor), 12, 12)
    assert (matrix @ matrix - matrix).norm() > 0.1 * matrix.norm()
    assert (matrix - matrix.T).norm() > 0.05 * matrix.norm()


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("factor", FACTORS)
def test_constants_are_kept_and_the_complement_adds_up(name, factor):
    projection, constant = LowFrequencyProjection(name, factor), torch.full((1, 2, 12, 24), 0.7, dtype=torch.float64)
    low = torch.full((1, 2, 12 // factor, 24 // factor), 0.7, dtype=torch.float64)
    torch.testing.assert_close(projection.downsample(constant), low)
    torch.testing.assert_close(projection.upsample(low), constant)
    x = draw(2, 3, 12, 24)
    torch.testing.assert_close(projection(x), projection.upsample(projection.downsample(x)))
    torch.testing.assert_close(projection(x) + projection.complement(x), x)
    if factor == 1:
        torch.testing.assert_close(projection(x), x)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_height_and_width_are_treated_alike(name):
    """Transposing commutes with D, U and T, and every leading dimension is a batch dimension."""
    projection, x = LowFrequencyProjection(name, 2), draw(2, 3, 4, 8, 12)
    torch.testing.assert_close(projection(x.mT), projection(x).mT)
    torch.testing.assert_close(projection.downsample(x)[1, 2], projection.downsample(x[1, 2]))
    torch.testing.assert_close(projection.upsample(x)[1, 2, 3], projection.upsample(x[1, 2, 3]))


# ------------------------------------------------------------------------------------------------ dtypes and gradients


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_exact_to_its_own_rounding(name, dtype):
    projection, x = LowFrequencyProjection(name, 4), draw(2, 3, 16, 8, dtype=dtype)
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    for apply in (projection.downsample, projection.upsample):
        result, exact = apply(x), apply(x.double())
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), exact, **tolerance)
        if dtype.itemsize == 2:  # computed in float32 and rounded once
            assert torch.equal(result, apply(x.float()).to(dtype))


@pytest.mark.parametrize("name", PROJECTIONS)
def test_autocast_does_not_change_the_arithmetic(name):
    projection, x = LowFrequencyProjection(name, 4), draw(2, 3, 16, 8, dtype=torch.float32)
    expected = projection(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = projection(x)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_gradients_are_right_in_both_modes(name):
    projection, x = LowFrequencyProjection(name, 2), draw(1, 2, 4, 6).requires_grad_()
    low = projection.downsample(x.detach()).requires_grad_()
    assert torch.autograd.gradcheck(projection.downsample, x, check_forward_ad=True)
    assert torch.autograd.gradcheck(projection.upsample, low, check_forward_ad=True)
    tangent = draw(1, 2, 4, 6, seed=1)
    value, derivative = torch.func.jvp(projection, (x.detach(),), (tangent,))
    torch.testing.assert_close(value, projection(x.detach()))
    torch.testing.assert_close(derivative, projection(tangent))  # T is linear: its own derivative


# --------------------------------------------------------------------------------------------- compile, caches, modes


@pytest.mark.parametrize("name", PROJECTIONS)
def test_compiles_to_the_same_function(name):
    torch._dynamo.reset()
    projection, x = LowFrequencyProjection(name, 2), draw(1, 2, 4, 6, dtype=torch.float32)
    compiled = torch.compile(projection.complement, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), projection.complement(x))


def test_training_works_after_inference_mode():
    projection, x = (
        LowFrequencyProjection("bicubic", 2),
        draw(1, 2, 26, 38),
    )  # no other test has this size: not cached yet
    with torch.inference_mode():
        expected = projection(x).clone()
    x.requires_grad_()
    result = projection(x)
    result.sum().backward()
    assert torch.equal(result.detach(), expected)
    assert torch.allclose(x.grad.sum(), torch.tensor(x.numel(), dtype=x.dtype))  # the rows of T sum to one


def test_an_ordinary_run_works_after_export():
    """Tracing leaves no fake tensor in the cache of matrices."""

    class Project(torch.nn.Module):
        def forward(self, x):
            return LowFrequencyProjection("bicubic", 2)(x)

    x = draw(1, 2, 34, 46, dtype=torch.float32)  # no other test has this size: not cached yet
    exported = torch.export.export(Project(), (x,), strict=False).module()
    result = Project()(x)
    assert type(result) is torch.Tensor
    torch.testing.assert_close(exported(x), result)


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lanczos", 4), "`projection` must be 'bicubic', 'area', 'dct' or 'pca', got 'lanczos'"),
        (("pca", 4), "`basis` must be given with the projection 'pca'"),
        (("area", 4, {}), "`basis` must be given with the projection 'pca', and with no other"),
        (("pca", 4, {"size": [8, 8]}), "`basis` must be what `fit_projection_basis` returned"),
        (("area", 0), "`factor` must be a positive integer, got 0"),
        (("area", 2.0), "`factor` must be a positive integer, got 2.0"),
        (("area", True), "`factor` must be a positive integer, got True"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LowFrequencyProjection(*arguments)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (torch.zeros(1, 1, 6, 8), "`sample` must have a height and width divisible by the factor 4, got 6x8"),
        (torch.zeros(1, 1, 8, 6), "`sample` must have a height and width divisible by the factor 4, got 8x6"),
        (torch.zeros(8), r"`sample` must be a floating point tensor of shape \(..., height, width\)"),
        (torch.zeros(8, 8, dtype=torch.uint8), "`sample` must be a floating point tensor .* got torch.uint8"),
        ([[0.0]], "`sample` must be a floating point tensor .* got list"),
    ],
)
def test_bad_samples_are_named(sample, message):
    with pytest.raises(ValueError, match=message):
        LowFrequencyProjection("bicubic", 4)(sample)


def test_bad_low_is_named():
    with pytest.raises(ValueError, match="`low` must be a floating point tensor"):
        LowFrequencyProjection("bicubic", 4).upsample(torch.zeros(1, 2, 2, dtype=torch.long))


# --------------------------------------------------------------------------------------------- the fitted projection


def correlated(number=64, height=8, width=12, seed=0):
    """Three channels that share one strong smooth component, as colours do."""
    fade = 1 / (1 + torch.arange(height)[:, None] + torch.arange(width)) ** 1.5
    cosines = draw(number, 3, height, width, seed=seed) * torch.tensor([1.0, 0.3, 0.1]).view(3, 1, 1) * fade
    components = torch.from_numpy(idctn(cosines.numpy(), axes=(-2, -1), norm="ortho"))
    mix = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
    return torch.einsum("nehw,ec->nchw", components, mix / mix.norm(dim=1, keepdim=True))


def fitted(factor=2, **options):
    x = correlated(**options)
    return LowFrequencyProjection("pca", factor, fit_projection_basis(x.split(10), factor)), x


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pca_is_an_orthogonal_projection_onto_the_strongest_cosines(factor):
    projection, x = fitted(factor)
    units = torch.eye(3 * 8 * 12, dtype=torch.float64).view(-1, 3, 8, 12)
    matrix = projection(units).flatten(1).T
    torch.testing.assert_close(matrix @ matrix, matrix)
    torch.testing.assert_close(matrix.T, matrix)
    assert round(matrix.trace().item()) == len(units) // factor**2
    low = draw(2, 3, 8 // factor, 12 // factor)
    torch.testing.assert_close(projection.downsample(projection.upsample(low)), low)
    inner = (projection.downsample(units) * low[:1]).sum((1, 2, 3))
    torch.testing.assert_close(projection.upsample(low[:1]).flatten(), factor**2 * inner)
    # The oracle, with numpy and scipy: rotate, transform, take the largest
    rotated = torch.linalg.eigh(torch.einsum("nchw,ndhw->cd", x, x))[1].T.numpy()
    energy = (dctn(np.einsum("ec,nchw->nehw", rotated, x.numpy()), axes=(-2, -1), norm="ortho") ** 2).sum(0)
    most = np.sort(energy.flatten())[::-1][: len(units) // factor**2].sum()
    assert projection(x).square().sum().item() == pytest.approx(most, rel=1e-9)
    other = correlated(seed=1)
    dct = LowFrequencyProjection("dct", factor)
    assert factor == 1 or projection(other).square().sum() > 1.02 * dct(other).square().sum()


def test_pca_keeps_constants_and_the_low_frequencies_of_one_channel():
    projection, x = fitted(2)
    constant = torch.tensor([0.7, -0.2, 0.1], dtype=torch.float64).view(3, 1, 1).expand(3, 8, 12)
    torch.testing.assert_close(projection(constant), constant)
    # A kept cosine that "dct" keeps too stays at its index; with a single channel, "pca" keeps at least as much energy
    kept = torch.tensor(fit_projection_basis([x], 2)["kept"]).view(3, 4, 6)
    indices = torch.arange(3 * 8 * 12).view(3, 8, 12)[:, :4, :6]
    assert torch.equal(kept[0], indices[0]) and not torch.equal(kept, indices)
    single = fit_projection_basis([x[:, :1]], 2)
    dct = LowFrequencyProjection("dct", 2)
    x = x[:, :1]
    assert LowFrequencyProjection("pca", 2, single)(x).square().sum() >= dct(x).square().sum() - 1e-9


def test_pca_survives_json_dtypes_autocast_modes_and_compile(tmp_path):
    projection, x = fitted(2)
    basis = fit_projection_basis([x], 2)
    LowFreqFlowMatchScheduler(projection="pca", factor=2, projection_basis=basis).save_pretrained(tmp_path)
    again = LowFreqFlowMatchScheduler.from_pretrained(tmp_path).projection
    torch.testing.assert_close(again(x), projection(x))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        y = x.to(dtype)
        result = projection(y)
        torch.testing.assert_close(result.double(), projection(y.double()), rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps)  # fmt: skip
        assert result.dtype == dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(projection(y), result)
    single = x[:1].clone().requires_grad_()
    assert torch.autograd.gradcheck(projection, single, check_forward_ad=True)
    torch._dynamo.reset()
    compiled = torch.compile(projection.complement, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x.float()), projection.complement(x.float()))


def test_bad_samples_and_bases_of_pca_are_named():
    projection, x = fitted(2)
    basis = fit_projection_basis([x], 2)
    with pytest.raises(ValueError, match=r"`sample` must have shape \(..., 3, 8, 12\), got \(64, 3, 12, 8\)"):
        projection(x.mT)
    with pytest.raises(ValueError, match=r"`low` must have shape \(..., 3, 4, 6\), got \(1, 2, 4, 6\)"):
        projection.upsample(draw(1, 2, 4, 6))
    skewed = [[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    for change in (
        {"kept": basis["kept"][1:]},
        {"kept": [0] * 72},
        {"channels": skewed},
        {"size": [8, 11]},
        {"kept": ["a"]},
    ):
        with pytest.raises(ValueError, match="`basis`"):
            LowFrequencyProjection("pca", 2, basis | change)
    with pytest.raises(ValueError, match="`basis`"):
        LowFrequencyProjection("pca", 4, basis)
    for batches in ([], [x[0]], [x, x.mT], [x[..., 1:]]):
        with pytest.raises(ValueError, match="`batches`"):
            fit_projection_basis(batches, 2)


# ---------------------------------------------------------------------------------------- coarse and remaining noise


@pytest.mark.parametrize("name", [*PROJECTIONS, "pca"])
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_remaining_noise_and_coarse_noise_are_white_together(name, share):
    """The covariances (1 - s^2 U U^T) and s^2 U U^T sum to 1, with a scale s for each channel, up to the largest."""
    projection = fitted(2)[0] if name == "pca" else LowFrequencyProjection(name, 2)
    largest = projection.coarse_noise_scale(4, 6)
    scale = share * largest * torch.tensor([1.0, 0.8, 0.5], dtype=torch.float64).view(3, 1, 1)
    units = torch.eye(3 * 8 * 12, dtype=torch.float64).view(-1, 3, 8, 12)
    remaining = projection.remaining_noise(units, scale).flatten(1)
    coarse = torch.eye(3 * 4 * 6, dtype=torch.float64).view(-1, 3, 4, 6)
    upsampled = projection.upsample(scale * coarse).flatten(1)
    torch.testing.assert_close(
        remaining.T @ remaining + upsampled.T @ upsampled, torch.eye(len(units), dtype=torch.float64)
    )
    # The largest scale is the limit
    full = projection.upsample(largest * coarse).flatten(1)
    assert torch.linalg.matrix_norm(full, 2).item() == pytest.approx(1)
    torch.testing.assert_close(projection.remaining_noise(units, 0.0), units)
    assert projection.remaining_noise(units.bfloat16(), 0.1).dtype == torch.bfloat16
