# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Pairs and conditions: what each mode makes of a batch, and the order in which it draws, which a resumed run relies on."""

import pytest
import torch
from tiny import make_autoencoder, make_prior, randn

from diffusers_lowfreq import LowFreqFlowMatchScheduler
from diffusers_lowfreq.autoencoding import normalize_latents
from diffusers_lowfreq.couplings import SemiDiscreteCoupling, minibatch_optimal_transport
from diffusers_lowfreq.training import Draws, keyed_generator, uniform
from diffusers_lowfreq.training.conditions import Captions, EncodedConditions, Labels, Unconditional
from diffusers_lowfreq.training.pairs import (
    DegradedShare,
    FlowPairs,
    MinibatchTransport,
    NoiseRatioRange,
    NoiseTransport,
    PriorPairs,
    SemiDiscretePairs,
)


BATCH = 12
SCHEDULER = LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio=0.5)


def generators() -> list[torch.Generator]:
    return [keyed_generator(0, 5, position) for position in range(BATCH)]


def draws() -> Draws:
    return Draws(generators(), torch.device("cpu"))


def batch(**more) -> dict[str, torch.Tensor]:
    labels = torch.arange(BATCH) % 3
    return {"sample": randn(BATCH, 4, 8, 8), "label": labels, "position": torch.arange(BATCH), **more}


def noise(*shape, of) -> torch.Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in of])


def no_labels(batch, draws):
    return None


def test_the_prior_is_given_noise_and_the_coarse_latent_at_unit_scale():
    prior, vae = make_prior(), make_autoencoder()
    labels = Labels(3, 0.1)
    pair = PriorPairs(SCHEDULER.projection, prior.normalize, vae, labels.choose)(batch(), draws())
    expected = prior.normalize(SCHEDULER.projection.downsample(normalize_latents(vae, batch()["sample"])))
    assert torch.equal(pair.sample, expected) and torch.equal(pair.labels, batch()["label"]) and not pair.condition
    assert torch.equal(pair.source, noise(4, 4, 4, of=generators()))


def test_the_flow_draws_noise_then_the_noise_ratio_then_what_is_degraded():
    of, degraded = generators(), randn(BATCH, 4, 8, 8, seed=1)
    scheduler = LowFreqFlowMatchScheduler(projection="area", factor=2, noise_ratio=0.5, noise_ratio_range=[0.2, 0.7])
    modes = {"noise_ratio": NoiseRatioRange(0.2, 0.7), "degraded": DegradedShare(0.5, None)}
    pair = FlowPairs(scheduler, None, no_labels, **modes)(batch(degraded=degraded), draws())
    eps, alpha = noise(4, 8, 8, of=of), 0.2 + 0.5 * uniform(BATCH, of)
    is_degraded = uniform(BATCH, of) < 0.5
    coarse = torch.where(is_degraded[:, None, None, None], degraded, batch()["sample"])
    assert 0 < is_degraded.sum() < BATCH and torch.equal(pair.sample, batch()["sample"])
    assert torch.equal(pair.condition["noise_ratio"], alpha) and alpha.min() >= 0.2 and alpha.max() <= 0.7
    assert torch.equal(pair.source, scheduler.make_source_from_sample(coarse, eps, alpha))


def test_a_caption_is_drawn_after_the_noise_and_before_all_else():
    class Texts:
        empty = 9

        def choose(self, positions, numbers):
            self.numbers = numbers
            return positions

    texts, of = Texts(), generators()
    captions = Captions(texts, 0.5, {})
    pair = FlowPairs(SCHEDULER, None, captions.choose, noise_ratio=NoiseRatioRange(0.2, 0.7))(batch(), draws())
    noise(4, 8, 8, of=of)
    assert torch.equal(texts.numbers, uniform(BATCH, of))
    assert torch.equal(pair.condition["noise_ratio"], 0.2 + (0.7 - 0.2) * uniform(BATCH, of))


def test_the_transport_of_noise_keeps_the_coarse_part_and_stays_within_a_class():
    labels = Labels(3, 0.1)
    pair = FlowPairs(SCHEDULER, None, labels.choose, transport=NoiseTransport(SCHEDULER.projection))(batch(), draws())
    eps, sample = noise(4, 8, 8, of=generators()), batch()["sample"]
    order = minibatch_optimal_transport(eps, SCHEDULER.projection.complement(sample), batch()["label"])
    assert torch.equal(pair.source, SCHEDULER.make_source_from_sample(sample, eps[order]))
    assert torch.equal(batch()["label"][order], batch()["label"]) and not torch.equal(order, torch.arange(BATCH))


def test_minibatch_transport_moves_a_source_with_its_noise_ratio():
    plain = FlowPairs(SCHEDULER, None, no_labels, noise_ratio=NoiseRatioRange(0.9, 1.0))
    before, after = plain(batch(), draws()), MinibatchTransport(plain)(batch(), draws())
    order = minibatch_optimal_transport(before.source, before.sample)
    assert not torch.equal(order, torch.arange(BATCH)) and torch.equal(after.sample, before.sample)
    assert torch.equal(after.source, before.source[order])
    assert torch.equal(after.condition["noise_ratio"], before.condition["noise_ratio"][order])


@pytest.mark.parametrize("is_labelled", [False, True])
def test_semi_discrete_noise_chooses_its_sample_among_all(is_labelled):
    class Cache:
        def __len__(self):
            return 30

        def __getitems__(self, items):
            rows = torch.tensor([i for i, _ in items])
            x = randn(30, 4, 8, 8, seed=3)[rows]
            x = torch.where(torch.tensor([flip for _, flip in items])[:, None, None, None], x.flip(-1), x)
            return {"sample": x, "label": rows % 3}

    prior = make_prior()
    choose = Labels(3, 0.1).choose if is_labelled else no_labels
    pairs = PriorPairs(SCHEDULER.projection, prior.normalize, None, choose)
    coupled = SemiDiscretePairs.fit(pairs, Cache(), (False, True), is_labelled, 0, "cpu")
    x = randn(30, 4, 8, 8, seed=3)
    low = prior.normalize(SCHEDULER.projection.downsample(torch.cat([x, x.flip(-1)])))
    assert torch.equal(coupled.samples, low)
    coupling = SemiDiscreteCoupling(low, torch.arange(30).repeat(2) % 3 if is_labelled else None)
    coupling.fit(generator=keyed_generator(0, "semi-discrete"))
    pair = coupled(batch(), draws())
    labels = batch()["label"] if is_labelled else None
    assert torch.equal(pair.source, noise(4, 4, 4, of=generators()))
    assert torch.equal(pair.sample, low[coupling.assign(pair.source, labels)])


# -------------------------------------------------------------------------------------------------------------- conditions


def test_dropped_labels_become_the_label_of_none():
    labels = torch.arange(BATCH) % 3
    inputs = Labels(3, 0.5)(labels, draws())["class_labels"]
    is_dropped = uniform(BATCH, generators()) < 0.5
    assert 0 < is_dropped.sum() < BATCH and torch.equal(inputs, torch.where(is_dropped, 3, labels))
    assert torch.equal(Labels(3, 0.0)(labels, draws())["class_labels"], labels)


def test_nothing_is_drawn_for_a_network_without_conditions():
    drawn, nothing = draws(), Unconditional()
    assert nothing.choose(batch(), drawn) is None and nothing(None, drawn) == {}
    assert torch.equal(drawn.uniform(), uniform(BATCH, generators()))


def test_encoded_conditions_are_drawn_among_those_of_an_image_and_dropped_to_the_last():
    table, of = {"rows": torch.arange(25.0)[:, None]}, generators()
    numbers = [[2 * i, 2 * i + 1] for i in range(BATCH)]
    conditions, drawn = EncodedConditions(table, {"shared": 1}, numbers, 0.5), draws()
    chosen = conditions.choose(batch(), drawn)
    inputs = conditions(chosen, drawn)
    second = (uniform(BATCH, of) * 2).long()
    assert torch.equal(chosen, 2 * torch.arange(BATCH) + second)
    is_dropped = uniform(BATCH, of) < 0.5
    assert inputs["shared"] == 1 and torch.equal(inputs["rows"][:, 0], torch.where(is_dropped, 24, chosen).float())
    # Without conditions the draws are the same, and what comes after them
    alone, same = EncodedConditions({}, {"shared": 1}, None, 0.5), draws()
    assert alone.choose(batch(), same) is None and alone(None, same) == {"shared": 1}
    assert torch.equal(same.uniform(), drawn.uniform())
