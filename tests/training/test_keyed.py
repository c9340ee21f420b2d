# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Keyed draws: nothing depends on how a global batch is split, nor on where a run was resumed."""

import pytest
import torch

from diffusers_lowfreq.training import KeyedBatchSampler, keyed_generator, uniform


NUM_SAMPLES, GLOBAL, SEED = 21, 8, 3  # 21 is no multiple of 8: batches run over the ends of epochs
SPLITS = [(8, 1, 1), (4, 1, 2), (2, 1, 4), (2, 4, 1), (4, 2, 1), (2, 2, 2), (1, 2, 4)]


def samplers(batch_size, accumulation, num_processes, steps=range(12), seed=SEED, random_flip=True):
    return [
        KeyedBatchSampler(NUM_SAMPLES, batch_size, seed, steps, accumulation, rank, num_processes, random_flip)
        for rank in range(num_processes)
    ]


def global_stream(*split, **settings):
    """All `(index, flip)` in the order of the global batches, put together from every process and micro-batch."""
    processes = samplers(*split, **settings)
    per_process = [list(sampler) for sampler in processes]
    assert all(len(batches) == len(sampler) for batches, sampler in zip(per_process, processes, strict=True))
    return [sample for micro_step in zip(*per_process, strict=True) for batch in micro_step for sample in batch]


@pytest.mark.parametrize("split", SPLITS[1:])
def test_the_global_stream_is_the_same_for_every_split(split):
    assert global_stream(*split) == global_stream(*SPLITS[0])


@pytest.mark.parametrize("split", SPLITS)
def test_positions_share_out_the_global_batch(split):
    """In each step every position is held once, and its generator is that of seed, step and position."""
    processes = samplers(*split)
    held = {}
    for sampler in processes:
        for micro_step in range(sampler.accumulation):
            generators = sampler.generators(5, micro_step)
            for position, generator in zip(sampler.positions(micro_step), generators, strict=True):
                assert position not in held
                held[position] = torch.randn(3, generator=generator)
    assert sorted(held) == list(range(GLOBAL))
    for position, drawn in held.items():
        assert torch.equal(drawn, torch.randn(3, generator=keyed_generator(SEED, 5, position)))


def test_every_epoch_visits_every_sample_once_in_its_own_order():
    stream = [index for index, _ in global_stream(8, 1, 1, steps=range(21))]  # 168 samples: eight epochs
    epochs = [stream[i : i + NUM_SAMPLES] for i in range(0, len(stream), NUM_SAMPLES)]
    assert len(epochs) == 8
    assert all(sorted(epoch) == list(range(NUM_SAMPLES)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


def test_a_batch_larger_than_the_set_runs_through_several_epochs():
    (batch,) = KeyedBatchSampler(5, 20, SEED, range(1))
    assert all(sorted(i for i, _ in batch[k : k + 5]) == list(range(5)) for k in range(0, 20, 5))


@pytest.mark.parametrize("start", [1, 2, 7])
@pytest.mark.parametrize("split", [(8, 1, 1), (2, 2, 2)])
def test_a_resume_continues_the_stream(start, split):
    whole = global_stream(*split)
    assert global_stream(*split, steps=range(start, 12)) == whole[start * GLOBAL :]


@pytest.mark.parametrize("num_samples", [1, 21, 100_003])
def test_the_order_of_an_epoch_takes_five_bytes_for_each_image_and_is_that_of_long_integers(num_samples):
    """Two epochs of `int64` orders and flips would be 18 bytes, for a billion images more than a machine has for a process."""
    sampler = KeyedBatchSampler(num_samples, 1, SEED, range(1), random_flip=True)
    for epoch in (0, 1):
        drawn = sampler.order(epoch)
        generator = keyed_generator(SEED, "epoch", epoch)
        assert torch.equal(drawn[0], torch.randperm(num_samples, generator=generator))
        assert torch.equal(drawn[1], torch.randint(2, (num_samples,), generator=generator))
        held = [x for x in vars(sampler).values() if isinstance(x, tuple)]
        assert held == [drawn] and sum(x.nbytes for x in drawn) == 5 * num_samples


def test_an_iteration_can_be_repeated():
    (sampler,) = samplers(8, 1, 1)
    assert list(sampler) == list(sampler)


def test_flips_are_keyed_fair_and_off_unless_asked_for():
    stream = global_stream(8, 1, 1, steps=range(210))
    flips = torch.tensor([flip for _, flip in stream], dtype=torch.float64)
    assert abs(flips.mean() - 0.5) < 4 * 0.5 / len(flips) ** 0.5
    by_image = [{flip for index, flip in stream if index == i} for i in range(NUM_SAMPLES)]
    assert all(seen == {True, False} for seen in by_image)  # redrawn at every visit
    unflipped = global_stream(8, 1, 1, steps=range(210), random_flip=False)
    assert [index for index, _ in unflipped] == [index for index, _ in stream]
    assert not any(flip for _, flip in unflipped)


def test_seeds_give_other_streams_and_other_draws():
    assert global_stream(8, 1, 1) != global_stream(8, 1, 1, seed=SEED + 1)
    keys = [(0, 1, 2), (1, 1, 2), (0, 2, 1), (0, 12), (0, "1", 2), (0, 1, 3)]
    draws = [tuple(torch.randn(4, generator=keyed_generator(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)


def test_keyed_generators_ignore_the_global_state():
    torch.manual_seed(1)
    first = torch.randn(4, generator=keyed_generator(0, 1, 2))
    torch.randn(7)
    state = torch.get_rng_state()
    assert torch.equal(torch.randn(4, generator=keyed_generator(0, 1, 2)), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_keyed_normals_are_independent_across_steps_and_positions():
    """First draws over steps × positions: mean 0, variance 1, and no correlation between neighbours."""
    grid = torch.tensor(
        [[torch.randn((), generator=keyed_generator(0, step, i)).item() for i in range(64)] for step in range(64)]
    )
    assert abs(grid.mean()) < 4 / 64 and abs(grid.var() - 1) < 4 * 2**0.5 / 64
    for a, b in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid, grid.T)):
        assert abs((a * b).mean()) < 5 / 64


def test_uniform_is_uniform_and_one_generator_per_sample_equals_single_draws():
    from scipy.stats import kstest

    drawn = uniform(4000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32 and 0 < drawn.min() and drawn.max() < 1
    assert kstest(drawn.numpy(), "uniform").pvalue > 0.01
    together = uniform(4, [keyed_generator(0, i) for i in range(4)])
    alone = torch.cat([uniform(1, keyed_generator(0, i)) for i in range(4)])
    assert torch.equal(together, alone)
