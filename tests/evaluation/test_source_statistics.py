# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Energy kept and path length of a source, against closed forms and against direct sums."""

import pytest
import torch
from tiny import randn

from diffusers_lowfreq import LowFreqFlowMatchScheduler
from diffusers_lowfreq.evaluation.source_statistics import SourceStatistics
from diffusers_lowfreq.projections import PROJECTIONS, LowFrequencyProjection


def correlated(num: int = 64, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Three channels with different means, scales and smoothness. Their means vary over the image."""
    x = randn(num, 3, size, size, seed=seed, dtype=torch.float64)
    x[:, 1] = LowFrequencyProjection("dct", 4)(x[:, 1]) * 3 + 0.1 * x[:, 1]
    x[:, 2] += torch.linspace(-1, 1, size)
    return x * torch.tensor([0.5, 2.0, 7.0]).view(3, 1, 1) + torch.tensor([3.0, -1.0, 20.0]).view(3, 1, 1)


def measured(x: torch.Tensor, *sizes: int, **options) -> SourceStatistics:
    statistics = SourceStatistics(**options)
    for part in x.split(list(sizes) or len(x)):
        statistics.update(part)
    return statistics


def normalized(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.var((0, 2, 3), correction=0, keepdim=True).sqrt()


def test_of_white_noise_an_orthogonal_projection_keeps_the_share_of_dimensions():
    """1 / factor^2, to a few standard deviations of 800 x 3 x 256 draws."""
    statistics = measured(randn(800, 3, 16, 16), projections=("area", "dct"))
    for projection, factor in statistics.projections:
        assert abs(statistics.energy_kept(projection, factor) - 1 / factor**2) < 0.005


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_of_images_constant_in_space_everything_is_kept(projection):
    x = randn(10, 3, 1, 1, dtype=torch.float64).expand(-1, -1, 16, 16)
    for factor in (2, 4, 8):
        assert measured(x).energy_kept(projection, factor) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("factor, kept", [(2, 1.0), (4, 1.0), (8, 0.0)])
def test_of_one_cosine_dct_keeps_all_below_the_cut_and_nothing_above(factor, kept):
    """The third cosine of 16: below the cut of 8 and of 4 cosines, above that of 2."""
    cosine = torch.cos(torch.pi / 16 * 3 * (torch.arange(16, dtype=torch.float64) + 0.5))
    x = (randn(10, 2, 1, 1, dtype=torch.float64) * cosine).expand(-1, -1, 16, -1)
    assert measured(x).energy_kept("dct", factor) == pytest.approx(kept, abs=1e-12)


@pytest.mark.parametrize("unit_scale", [True, False])
@pytest.mark.parametrize("projection", PROJECTIONS)
def test_energy_kept_is_one_minus_the_lost_share_of_the_variance(projection, unit_scale):
    x = correlated()
    at_scale = normalized(x) if unit_scale else x
    centred = at_scale - at_scale.mean((0, 2, 3), keepdim=True)
    lost = at_scale - LowFrequencyProjection(projection, 4)(at_scale)
    expected = 1 - lost.square().sum() / centred.square().sum()
    kept = measured(x, unit_scale=unit_scale).energy_kept(projection, 4)
    assert kept == pytest.approx(expected.item(), abs=1e-9)
    assert 0.05 < kept < 0.95


@pytest.mark.parametrize("unit_scale", [True, False])
@pytest.mark.parametrize("noise_ratio", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("projection, factor", [("bicubic", 4), ("area", 2), ("dct", 8)])
def test_path_length_is_that_of_the_sources_of_the_scheduler(projection, factor, noise_ratio, unit_scale):
    """Against sources from the scheduler. Each draw of the noise is used with both signs."""
    x = correlated(16)
    at_scale = normalized(x) if unit_scale else x / 4
    scheduler = LowFreqFlowMatchScheduler(projection=projection, factor=factor, noise_ratio=noise_ratio)
    draws = [sign * randn(*x.shape, seed=seed).double() for seed in range(24) for sign in (1, -1)]
    squares = [(scheduler.make_source_from_sample(at_scale, noise) - at_scale).square().mean() for noise in draws]
    expected = torch.stack(squares).mean().item()
    statistics = measured(x if unit_scale else x / 4, unit_scale=unit_scale)
    assert statistics.path_length(projection, factor, noise_ratio) == pytest.approx(expected, rel=4e-3)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_path_from_gaussian_noise_is_two_at_unit_scale_and_without_noise_it_is_what_is_lost(projection):
    statistics = measured(correlated())
    assert statistics.path_length(projection, 4, 1.0) == pytest.approx(2, abs=1e-12)
    lost = 1 - statistics.energy_kept(projection, 4)
    assert statistics.path_length(projection, 4, 0.0) == pytest.approx(lost, abs=1e-12)


def test_the_order_and_the_size_of_batches_do_not_matter():
    x = correlated()
    whole, parts = measured(x), measured(x[torch.randperm(64)], 1, 40, 23)
    for projection, factor in whole.projections:
        assert parts.energy_kept(projection, factor) == pytest.approx(whole.energy_kept(projection, factor), rel=1e-12)
        for noise_ratio in (0.0, 0.5):
            expected = whole.path_length(projection, factor, noise_ratio)
            assert parts.path_length(projection, factor, noise_ratio) == pytest.approx(expected, rel=1e-12)
    assert parts.num_samples == 64


def test_moments_are_those_of_the_raw_samples():
    x = correlated()
    statistics = measured(x, 20, 44)
    torch.testing.assert_close(statistics.mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(statistics.std, x.std((0, 2, 3), correction=0))


def test_at_unit_scale_shift_and_scale_of_a_channel_do_not_matter():
    """Also far from zero, where a difference of squares would lose all digits in float32."""
    x = correlated().float()
    moved = x * torch.tensor([100.0, 1.0, 0.5]).view(3, 1, 1) + torch.tensor([0.0, 4096.0, 0.0]).view(3, 1, 1)
    a, b = measured(x), measured(moved)
    for projection, factor in a.projections:
        assert b.energy_kept(projection, factor) == pytest.approx(a.energy_kept(projection, factor), abs=1e-4)
        expected = a.path_length(projection, factor, 0.5)
        assert b.path_length(projection, factor, 0.5) == pytest.approx(expected, abs=1e-4)


def test_a_channel_that_never_varies_changes_no_share():
    x = correlated()
    dead = torch.cat([x, torch.full_like(x[:, :1], 0.3)], dim=1)
    expected = measured(x).energy_kept("bicubic", 4)
    assert measured(dead).energy_kept("bicubic", 4) == pytest.approx(expected, abs=1e-9)


def test_a_refused_batch_leaves_the_sums_alone():
    x = correlated()
    statistics = measured(x)
    expected = statistics.path_length("area", 2, 0.5)
    broken = x.clone()
    broken[3, 0, 0, 0] = torch.nan
    broken[7, 2, 1, 1] = torch.inf
    with pytest.raises(ValueError, match="`sample` must be finite, but 2 of 64 samples are not: 67, 71"):
        statistics.update(broken)
    with pytest.raises(ValueError, match=r"`sample` must have shape \(batch, 3, 16, 16\), got \(64, 3, 8, 8\)"):
        statistics.update(x[..., :8, :8])
    assert statistics.path_length("area", 2, 0.5) == expected and statistics.num_samples == 64


def test_what_cannot_be_answered_is_refused():
    with pytest.raises(ValueError, match="`update` must be called"):
        SourceStatistics().energy_kept("dct", 2)
    with pytest.raises(ValueError, match="divisible by the factor 8, got 12x12"):
        SourceStatistics().update(randn(2, 3, 12, 12))
    with pytest.raises(ValueError, match="every image is the same constant"):
        measured(torch.full((4, 3, 8, 8), 0.5)).energy_kept("dct", 2)
    statistics = measured(randn(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"`projection` and `factor` must be one of .*got \('dct', 3\)"):
        statistics.energy_kept("dct", 3)
    with pytest.raises(ValueError, match=r"`noise_ratio` must be a number in \[0, 1\], got 1.5"):
        statistics.path_length("dct", 2, 1.5)
