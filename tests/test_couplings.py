# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The exact assignment within a minibatch, and the semi-discrete one over a whole data set."""

from itertools import permutations

import pytest
import torch

from diffusers_lowfreq.couplings import SemiDiscreteCoupling, minibatch_optimal_transport


def pairs(num, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, *shape, generator=generator), 0.5 + torch.randn(num, *shape, generator=generator)


def cost(source, sample, order):
    return (source[order] - sample).square().sum().item()


@pytest.mark.parametrize("seed", range(3))
def test_the_assignment_is_the_best_of_all_permutations(seed):
    source, sample = pairs(6, 2, 3, 3, seed=seed)
    best = min(permutations(range(6)), key=lambda order: cost(source, sample, list(order)))
    assert minibatch_optimal_transport(source, sample).tolist() == list(best)


def test_in_one_dimension_the_assignment_sorts():
    source, sample = pairs(200, 1)
    order = minibatch_optimal_transport(source, sample)
    ranks = sample[:, 0].argsort()
    assert torch.equal(source[order, 0][ranks], source[:, 0].sort().values)


def test_a_shuffled_batch_is_put_back_in_order():
    """The identity coupling of a low-frequency source is recovered."""
    sample = pairs(32, 3, 4, 4)[1]
    shuffled = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    order = minibatch_optimal_transport((0.9 * sample)[shuffled], sample)
    assert torch.equal(shuffled[order], torch.arange(32))


@pytest.mark.parametrize("labels", [None, torch.arange(64) % 3, torch.full((64,), -1)])
def test_the_assignment_is_a_permutation_within_classes_and_beats_chance(labels):
    source, sample = pairs(64, 2, 2)
    order = minibatch_optimal_transport(source, sample, labels)
    assert torch.equal(order.sort().values, torch.arange(64))
    if labels is not None:
        assert torch.equal(labels[order], labels)
        for label in labels.unique():  # each class has the assignment that it has alone
            of_class = (labels == label).nonzero()[:, 0]
            alone = minibatch_optimal_transport(source[of_class], sample[of_class])
            assert torch.equal(order[of_class], of_class[alone])
    assert cost(source, sample, order) < 0.7 * cost(source, sample, torch.arange(64))


def test_labels_can_only_raise_the_cost():
    source, sample = pairs(64, 2, 2)
    without, with_labels = (minibatch_optimal_transport(source, sample, n) for n in (None, torch.arange(64) % 4))
    assert cost(source, sample, without) < cost(source, sample, with_labels)


def test_half_precision_is_assigned_in_float32():
    source, sample = (x.bfloat16() for x in pairs(32, 8))
    expected = minibatch_optimal_transport(source.float(), sample.float())
    assert torch.equal(minibatch_optimal_transport(source, sample), expected)


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"`source` must have the shape of `sample`, \(4, 2\), got \(3, 2\)"):
        minibatch_optimal_transport(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(4,\) and hold integers, got \(3,\)"):
        minibatch_optimal_transport(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(3))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def correlated(num, dim, seed=0):
    """Draw samples of different lengths, mostly along a few directions, in clusters far from the origin."""
    generator = seeded(seed)
    x = torch.randn(num, dim, generator=generator) * torch.linspace(2, 0.1, dim)
    return (
        3
        + x * (0.3 + torch.rand(num, 1, generator=generator))
        + torch.randn(4, dim, generator=generator)[torch.arange(num) % 4]
    )


def variation(hits):
    """Return the total variation distance from uniform."""
    return (hits / hits.sum() - 1 / len(hits)).abs().sum().item() / 2


def boundaries(coupling, x):
    """Return where the cells of ascending points meet, in one dimension."""
    bias = x.double() ** 2 - coupling.weights
    return bias.diff() / (2 * x.double().diff())


POINTS = torch.tensor([-2.0, -1.7, 0.1, 0.3, 3.0])


def test_in_one_dimension_the_cells_are_quantiles():
    coupling = SemiDiscreteCoupling(POINTS[:, None])
    coupling.fit(num_steps=1500, generator=seeded())
    masses = torch.special.ndtr(boundaries(coupling, POINTS))
    torch.testing.assert_close(masses, torch.arange(1, 5).double() / 5, rtol=0, atol=0.01)
    assert coupling.weights.mean().abs() < 1e-9
    # With the exact weights, a source belongs to the sample of its quantile
    quantiles = torch.special.ndtri(torch.arange(1, 5).double() / 5)
    steps = (quantiles - POINTS[1:].double()) ** 2 - (quantiles - POINTS[:-1].double()) ** 2
    coupling.weights = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0)])
    source = torch.randn(1000, 1, generator=seeded(1))
    expected = torch.bucketize(source[:, 0].double(), quantiles)
    assert torch.equal(coupling.assign(source), expected)


@pytest.mark.parametrize("pair", [[[1.0, 0.0], [-1.0, 0.0]], [[2.0, 1.0], [0.5, -3.0]]])
def test_two_points_share_gaussian_noise_at_a_hyperplane(pair):
    """Noise goes to x_0 if 2<z, x_0 - x_1> > |x_0|^2 - |x_1|^2 - (g_0 - g_1): the mass is known for any weights."""
    x = torch.tensor(pair, dtype=torch.float64)
    lengths = x.square().sum(1)
    coupling = SemiDiscreteCoupling(x)
    for difference in (0.0, 2.0, -3.0):
        coupling.weights = torch.tensor([difference, 0.0], dtype=torch.float64)
        offset = difference - (lengths[0] - lengths[1])
        mass = torch.special.ndtr(offset / (2 * (x[0] - x[1]).norm())).item()
        hits = coupling.count_hits(20000, seeded())
        assert hits.sum() == 20000 and hits[0].item() / 20000 == pytest.approx(mass, abs=0.015)
    coupling.fit(num_steps=1000, generator=seeded(1))
    offset = coupling.weights[0] - coupling.weights[1] - (lengths[0] - lengths[1])
    assert torch.special.ndtr(offset / (2 * (x[0] - x[1]).norm())).item() == pytest.approx(0.5, abs=0.005)


def test_a_source_belongs_to_the_sample_at_the_smallest_weighted_distance():
    """The definition, computed with all distances in float64."""
    x = correlated(50, 12).view(50, 3, 2, 2)
    coupling = SemiDiscreteCoupling(x)
    coupling.weights = 5 * torch.randn(50, generator=seeded(1), dtype=torch.float64)
    source = torch.randn(200, 3, 2, 2, generator=seeded(2))
    distances = (source[:, None].double() - x.double()).square().flatten(2).sum(2) - coupling.weights
    assert torch.equal(coupling.assign(source), distances.argmin(1))


def test_fitting_makes_the_masses_uniform():
    """With zero weights most samples are never hit; the initial weights help; fitted ones are uniform up to chance."""
    coupling = SemiDiscreteCoupling(correlated(200, 32))
    initial = coupling.weights
    coupling.weights = torch.zeros(200, dtype=torch.float64)
    with_zeros = variation(coupling.count_hits(20000, seeded(1)))
    coupling.weights = initial
    before = variation(coupling.count_hits(20000, seeded(1)))
    coupling.fit(num_steps=150, generator=seeded())
    hits = coupling.count_hits(20000, seeded(1))
    assert with_zeros > 0.7 and before < 0.3
    assert (
        variation(hits) < 0.09 and hits.min() > 30 and hits.max() < 170
    )  # no sample lost all of its mass in the first step


def test_initial_weights_are_right_for_samples_in_random_directions():
    """Before any fit, noise hits long and short samples about equally often, in each class too."""
    length = torch.linspace(0.5, 3.0, 500)[:, None]
    x = torch.nn.functional.normalize(torch.randn(500, 400, generator=seeded()), dim=1) * length * 400**0.5
    for labels in (None, torch.arange(500) % 2):
        hits = SemiDiscreteCoupling(x, labels).count_hits(20000, seeded(1))
        for share in hits.view(5, 100).sum(1) / hits.sum():
            assert share == pytest.approx(0.2, abs=0.12)


def test_fit_reaches_the_cost_of_the_exact_assignment():
    """Any weights give a lower bound on the cost of the exact assignment (weak duality); fitted weights attain it."""
    x = correlated(8, 3)
    source = torch.randn(512, 3, generator=seeded(1))
    copies = torch.arange(512) % 8
    order = minibatch_optimal_transport(source, x[copies])
    exact = cost(source, x[copies], order) / 512

    def dual():
        nearest = x[coupling.assign(source)]
        return ((source - nearest).square().sum(1) - coupling.weights[coupling.assign(source)]).mean().item()

    coupling = SemiDiscreteCoupling(x)
    for seed in range(3):
        coupling.weights = 3 * torch.randn(8, generator=seeded(seed), dtype=torch.float64)
        assert dual() + coupling.weights.mean() < exact
    coupling = SemiDiscreteCoupling(x)
    coupling.fit(num_steps=2000, generator=seeded(2))
    assert 0.99 * exact < dual() < exact * (1 + 1e-6)
    partners = coupling.assign(source)
    assert (partners[order] == copies).float().mean() > 0.85
    assert cost(source, x[partners], torch.arange(512)) / 512 == pytest.approx(exact, rel=0.03)


def test_labels_keep_classes_apart():
    """Each class has the fit and the assignment that it has alone, on the same noise; sizes may differ."""
    x = correlated(90, 6)
    labels = torch.tensor([7, -1, 7])[torch.arange(90) % 3]
    coupling = SemiDiscreteCoupling(x, labels)
    coupling.fit(num_steps=50, batch_size=32, generator=seeded())
    source = torch.randn(100, 6, generator=seeded(1))
    wanted = torch.tensor([7, -1])[torch.arange(100) % 2]
    indices = coupling.assign(source, wanted)
    assert torch.equal(labels[indices], wanted)
    hits = coupling.count_hits(1000, seeded(2))
    for label in (7, -1):
        rows = (labels == label).nonzero()[:, 0]
        alone = SemiDiscreteCoupling(x[rows])
        alone.fit(num_steps=50, batch_size=32, generator=seeded())
        torch.testing.assert_close(coupling.weights[rows], alone.weights, rtol=0, atol=1e-3)
        assert torch.equal(indices[wanted == label], rows[alone.assign(source[wanted == label])])
        assert hits[rows].sum() == 1000 and torch.equal(hits[rows], alone.count_hits(1000, seeded(2)))


def test_fits_depend_on_the_generator_and_a_second_fit_continues():
    x = correlated(40, 5)
    fits = []
    for seed, calls in ((0, 1), (0, 1), (1, 1), (0, 2)):
        coupling, generator = SemiDiscreteCoupling(x), seeded(seed)
        for _ in range(calls):
            coupling.fit(num_steps=30, batch_size=32, generator=generator)
        fits.append(coupling.weights)
    assert torch.equal(fits[0], fits[1])
    assert not torch.equal(fits[0], fits[2])
    by_hand = SemiDiscreteCoupling(x)
    by_hand.weights = fits[0]
    generator = seeded()
    torch.randn(30, 32, 5, generator=generator)
    by_hand.fit(num_steps=30, batch_size=32, generator=generator)
    torch.testing.assert_close(by_hand.weights, fits[3], rtol=0, atol=0.05)


@pytest.mark.parametrize("shift", [1.0, 1000.0])
def test_a_shift_of_all_samples_does_not_change_the_pairs(shift):
    """|z - x - m|^2 differs from |z - x|^2 by a term of z and a term of x; the weights absorb the second."""
    x = correlated(60, 4).double()
    source = torch.randn(500, 4, generator=seeded(1))
    indices = []
    for samples in (x, x + shift):
        coupling = SemiDiscreteCoupling(samples)
        coupling.fit(num_steps=100, generator=seeded())
        indices.append(coupling.assign(source))
    assert (indices[0] == indices[1]).float().mean() > 0.99


def test_neither_blocks_nor_precision_change_the_assignment():
    """The scores of 608 sources take 152 MiB, which is three blocks; those of 32 are one block."""
    coupling = SemiDiscreteCoupling(correlated(2**16, 4))
    source = torch.randn(608, 4, generator=seeded(1)).bfloat16()
    whole = coupling.assign(source)
    assert torch.equal(torch.cat([coupling.assign(rows.float()) for rows in source.split(32)]), whole)
    hits = coupling.count_hits(608, seeded(), batch_size=608)
    assert hits.sum() == 608 and torch.equal(coupling.count_hits(608, seeded(), batch_size=32), hits)


def test_one_sample_gets_all_noise():
    coupling = SemiDiscreteCoupling(torch.ones(1, 3), torch.tensor([2]))
    coupling.fit(num_steps=3, batch_size=4, generator=seeded())
    assert coupling.weights.tolist() == [0.0]
    assert coupling.assign(torch.zeros(4, 3), torch.full((4,), 2)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.zeros(0, 2),), r"`samples` must have shape \(num_samples >= 1, ...\), got \(0, 2\)"),
        ((torch.zeros(3),), r"`samples` must have shape .* got \(3,\)"),
        ((torch.tensor([[1.0], [float("nan")]]),), "`samples` must be finite, but 1 of 2 samples are not: 1"),
        ((torch.zeros(3, 2), torch.zeros(2).long()), r"`labels` must have shape \(3,\) and hold integers, got \(2,\)"),
        ((torch.zeros(3, 2), torch.zeros(3)), "`labels` must have .* got .* torch.float32"),
    ],
)
def test_samples_that_cannot_be_coupled_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SemiDiscreteCoupling(*arguments)


def test_calls_that_do_not_fit_the_samples_are_named():
    coupling = SemiDiscreteCoupling(correlated(6, 2), torch.arange(6) % 2)
    labels = torch.zeros(4, dtype=torch.long)
    for call, message in (
        (lambda: coupling.fit(num_steps=0), "`num_steps` must be a positive integer, got 0"),
        (lambda: coupling.fit(batch_size=-1), "`batch_size` must be a positive integer, got -1"),
        (lambda: coupling.count_hits(0), "`num_draws` must be a positive integer, got 0"),
        (lambda: coupling.assign(torch.zeros(4, 3), labels), r"`source` must have shape \(batch, 2\), got \(4, 3\)"),
        (lambda: coupling.assign(torch.zeros(4, 2)), "`labels` must be given"),
        (lambda: coupling.assign(torch.zeros(4, 2), labels[:3]), r"`labels` must have shape \(4,\)"),
        (lambda: coupling.assign(torch.zeros(4, 2), labels + 5), "`labels` must be among .* got 5"),
        (
            lambda: SemiDiscreteCoupling(correlated(6, 2)).assign(torch.zeros(4, 2), labels),
            "`labels` must not be given",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
