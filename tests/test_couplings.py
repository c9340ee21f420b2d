# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The exact assignment inside a minibatch."""

from itertools import permutations

import pytest
import torch

from diffusers_lowfreq.couplings import minibatch_optimal_transport


def pairs(num, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, *shape, generator=generator), 0.5 + torch.randn(num, *shape, generator=generator)


def cost(source, sample, order):
    return (source[order] - sample).square().sum().item()


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_best_of_all_permutations(seed):
    source, sample = pairs(6, 2, 3, 3, seed=seed)
    best = min(permutations(range(6)), key=lambda order: cost(source, sample, list(order)))
    assert minibatch_optimal_transport(source, sample).tolist() == list(best)


def test_in_one_dimension_it_sorts():
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
def test_is_a_permutation_within_classes_that_beats_chance(labels):
    source, sample = pairs(64, 2, 2)
    order = minibatch_optimal_transport(source, sample, labels)
    assert torch.equal(order.sort().values, torch.arange(64))
    if labels is not None:
        assert torch.equal(labels[order], labels)
        for label in labels.unique():  # each class is assigned as if it were alone
            of_class = (labels == label).nonzero()[:, 0]
            alone = minibatch_optimal_transport(source[of_class], sample[of_class])
            assert torch.equal(order[of_class], of_class[alone])
    assert cost(source, sample, order) < 0.7 * cost(source, sample, torch.arange(64))


def test_labels_can_only_raise_the_cost():
    source, sample = pairs(64, 2, 2)
    free, bound = (minibatch_optimal_transport(source, sample, n) for n in (None, torch.arange(64) % 4))
    assert cost(source, sample, free) < cost(source, sample, bound)


def test_half_precision_is_assigned_in_float32():
    source, sample = (x.bfloat16() for x in pairs(32, 8))
    expected = minibatch_optimal_transport(source.float(), sample.float())
    assert torch.equal(minibatch_optimal_transport(source, sample), expected)


def test_shapes_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"`source` must have the shape of `sample`, \(4, 2\), got \(3, 2\)"):
        minibatch_optimal_transport(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(4,\), got \(3,\)"):
        minibatch_optimal_transport(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(3))
