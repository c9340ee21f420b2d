# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The exact assignment between sources and samples."""

from itertools import permutations

import pytest
import torch
from tiny import randn, seeded

from diffusers_lowfreq import LowFrequencyProjection
from diffusers_lowfreq.evaluation import coupling_check


def cost(source, sample):
    return (source.double() - sample.double()).square().sum().item()


def test_best_of_all_permutations():
    """With six pairs, the assignment is the cheapest of all 720 permutations."""
    source, sample = randn(6, 2, 3), randn(6, 2, 3, seed=1)
    best = min(permutations(range(6)), key=lambda order: cost(source, sample[list(order)]))
    output = coupling_check(source, sample)
    assert output.partner.tolist() == list(best) and output.num_pairs == 6
    assert output.cost_ratio == pytest.approx(cost(source, sample[list(best)]) / cost(source, sample))
    assert output.identity_fraction == sum(i == j for i, j in enumerate(best)) / 6


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_sorting_is_optimal_on_a_line(offset):
    """In one dimension the optimal partner has the same rank, also for several blocks and for data far from zero."""
    source, sample = randn(600, 1, dtype=torch.float64) + offset, randn(600, 1, seed=1, dtype=torch.float64)
    partner = coupling_check(source, sample).partner
    assert torch.equal(partner[source[:, 0].argsort()], sample[:, 0].argsort())


def test_a_permutation_is_found():
    sample = randn(50, 3, 4, 4)
    order = torch.randperm(50, generator=seeded())
    output = coupling_check(sample[order] + 0.01 * randn(50, 3, 4, 4, seed=1), sample)
    assert torch.equal(output.partner, order)
    assert output.identity_fraction == (order == torch.arange(50)).double().mean() and output.cost_ratio < 1e-3


@pytest.mark.parametrize("kind", ["area", "dct"])
def test_orthogonal_projections_keep_the_identity(kind):
    """A positive semi-definite symmetric T makes the identity optimal (Brenier), without noise, whatever the data."""
    sample = randn(100, 3, 8, 8)
    output = coupling_check(LowFrequencyProjection(kind, factor=4)(sample), sample)
    assert output.identity_fraction == 1 and output.cost_ratio == 1
    # and its negative makes it the worst: something must be gained by leaving it
    assert coupling_check(-LowFrequencyProjection(kind, factor=4)(sample), sample).cost_ratio < 1


def test_ties_count_as_kept():
    """Equal samples, equal sources or both: no assignment is cheaper than the identity."""
    sample = randn(40, 3, 4, 4)[torch.arange(80) % 40]
    for source in (0.5 * sample + 0.1 * randn(80, 3, 4, 4, seed=1), 0.5 * sample, sample, torch.zeros_like(sample)):
        output = coupling_check(source, sample)
        assert output.identity_fraction == 1 and output.cost_ratio == 1


def test_blocks_do_not_matter_and_progress_sees_them_all():
    """1100 pairs make three blocks of rows. A pair keeps its partner when the rows are reordered."""
    sample = randn(1100, 4, seed=2)
    source = 0.3 * sample + 0.3 * randn(1100, 4, seed=3)
    seen = []
    one = coupling_check(source, sample, progress=lambda blocks: (seen.append(b) or b for b in blocks))
    assert len(seen) == 3 and 0 < one.identity_fraction < 1
    order = torch.randperm(1100, generator=seeded())
    other = coupling_check(source[order], sample[order])
    assert torch.equal(order[other.partner], one.partner[order])
    assert other.cost_ratio == pytest.approx(one.cost_ratio, rel=1e-12)
    assert one.cost_ratio == pytest.approx(cost(source, sample[one.partner]) / cost(source, sample), rel=1e-12)


@pytest.mark.parametrize(
    "source, sample, options, message",
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), {}, "must have one shape"),
        (torch.zeros(0, 2), torch.zeros(0, 2), {}, "must have one shape"),
        (torch.zeros(3, 2), torch.tensor([[0, 1], [torch.nan, 1], [torch.inf, 1]]), {}, "`sample` .* 2 of 3 .*: 1, 2"),
        (torch.zeros(1000, 2), torch.zeros(1000, 2), {"memory_limit": 8 * 1000**2}, "1000 pairs need .* `memory_limit`"),
        (torch.zeros(1, 2).expand(10**8, 2),) * 2 + ({"memory_limit": 2**63}, "100000000 pairs need .* free memory"),
    ],
)  # fmt: skip
def test_bad_input(source, sample, options, message):
    with pytest.raises(ValueError, match=message):
        coupling_check(source, sample, **options)
