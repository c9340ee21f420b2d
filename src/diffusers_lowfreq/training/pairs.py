# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Which source goes with which sample.

[`PriorPairs`] are for the prior model, [`FlowPairs`] for the flow. A flow may also have a [`NoiseRatioRange`], a
[`NoiseTransport`] and a [`DegradedShare`]. [`MinibatchTransport`] and [`SemiDiscretePairs`] wrap one of these: the first
exchanges its sources, the second its samples. The order of the draws must not change: a resumed run relies on it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ..autoencoding import normalize_latents
from ..couplings import SemiDiscreteCoupling, minibatch_optimal_transport
from ..projections import LowFrequencyProjection
from ..schedulers import LowFreqFlowMatchScheduler
from .data.latent_cache import read_samples
from .keyed import Draws, keyed_generator


@dataclass
class Pair:
    """
    A batch of pairs.

    Args:
        source (`torch.Tensor` of shape `(batch, channels, height, width)`):
            The state at `sigma = 1`.
        sample (`torch.Tensor` of the shape of `source`):
            The data, the state at `sigma = 0`.
        labels (`torch.Tensor` of shape `(batch,)`, *optional*):
            The number of the condition of each sample, its class or its caption, see [`conditions`].
        condition (`dict[str, torch.Tensor]`):
            Inputs of the network that belong to the source, such as its `noise_ratio`.
    """

    source: torch.Tensor
    sample: torch.Tensor
    labels: torch.Tensor | None = None
    condition: dict[str, torch.Tensor] = field(default_factory=dict)


def read_latents(vae, batch: dict, draws: Draws, name: str = "sample") -> torch.Tensor:
    """Bring the raw latents of a batch to the device and to unit scale."""
    return normalize_latents(vae, batch[name].to(draws.device, non_blocking=True))


class PriorPairs:
    """
    Pairs of Gaussian noise and D(x) at unit scale, for the prior model.

    Args:
        projection ([`LowFrequencyProjection`]):
            The projection, which defines D.
        normalize (`Callable`):
            Brings D(x) to unit scale, [`~LowFreqTransformer2DModel.normalize`] of the prior model.
        vae (`ModelMixin`, *optional*):
            The autoencoder; `None` for pixels.
        choose (`Callable`):
            `choose(batch, draws)` returns the number of each sample's condition.
    """

    def __init__(self, projection: LowFrequencyProjection, normalize: Callable, vae, choose: Callable):
        self.projection, self.normalize, self.vae, self.choose = projection, normalize, vae, choose

    def __call__(self, batch: dict, draws: Draws) -> Pair:
        sample = self.normalize(self.projection.downsample(read_latents(self.vae, batch, draws)))
        noise = draws.normal_like(sample)
        return Pair(noise, sample, self.choose(batch, draws))


class FlowPairs:
    """
    Pairs of a sample and the low-frequency source that is made from it, for the flow.

    Args:
        scheduler ([`LowFreqFlowMatchScheduler`]):
            The scheduler that makes the source.
        vae (`ModelMixin`, *optional*):
            The autoencoder; `None` for pixels.
        choose (`Callable`):
            `choose(batch, draws)` returns the number of each sample's condition.
        transport ([`NoiseTransport`], *optional*):
            Assigns the noise within a batch. Omitted: the noise stays as it is drawn.
        noise_ratio ([`NoiseRatioRange`], *optional*):
            Draws the noise ratio of each sample. Omitted: that of the scheduler.
        degraded ([`DegradedShare`], *optional*):
            Chooses some degraded copies to make the source from, instead of the samples. Omitted: none.
    """

    def __init__(
        self,
        scheduler: LowFreqFlowMatchScheduler,
        vae,
        choose: Callable,
        transport: Callable | None = None,
        noise_ratio: Callable | None = None,
        degraded: Callable | None = None,
    ):
        self.scheduler, self.vae, self.choose = scheduler, vae, choose
        self.transport, self.noise_ratio, self.degraded = transport, noise_ratio, degraded

    def __call__(self, batch: dict, draws: Draws) -> Pair:
        sample = origin = read_latents(self.vae, batch, draws)  # the source is made from `origin`
        noise, noise_ratio, condition = draws.normal_like(sample), None, {}
        labels = self.choose(batch, draws)
        if self.transport is not None:
            noise = self.transport(noise, sample, labels)
        if self.noise_ratio is not None:
            noise_ratio = condition["noise_ratio"] = self.noise_ratio(draws)
        if self.degraded is not None:
            origin = self.degraded(sample, batch, draws)
        source = self.scheduler.make_source_from_sample(origin, noise, noise_ratio)
        return Pair(source, sample, labels, condition)


@dataclass
class NoiseRatioRange:
    """Draw the noise ratio of each sample, uniform from `lowest` to `highest`. The noise ratio is then an input of the network."""

    lowest: float
    highest: float

    def __call__(self, draws: Draws) -> torch.Tensor:
        return self.lowest + (self.highest - self.lowest) * draws.uniform()


@dataclass
class NoiseTransport:
    """
    Assign the noise within a batch by optimal transport. Each sample keeps its own coarse version.

    The cost compares the noise with what the projection removes, so that the noise stays nearly independent of the coarse
    version.
    """

    projection: LowFrequencyProjection

    def __call__(self, noise: torch.Tensor, sample: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return noise[minibatch_optimal_transport(noise, self.projection.complement(sample), labels)]


@dataclass
class DegradedShare:
    """Make the source of a `share` of the pairs from a degraded copy of the sample. The pair keeps its sample."""

    share: float
    vae: torch.nn.Module | None

    def __call__(self, sample: torch.Tensor, batch: dict, draws: Draws) -> torch.Tensor:
        degraded = read_latents(self.vae, batch, draws, "degraded")
        is_degraded = draws.uniform() < self.share
        return torch.where(is_degraded[:, None, None, None], degraded, sample)


@dataclass
class MinibatchTransport:
    """Exchange the sources of pairs within a batch by optimal transport (Tong et al. 2023, arXiv 2302.00482)."""

    pairs: Callable[[dict, Draws], Pair]

    def __call__(self, batch: dict, draws: Draws) -> Pair:
        pair = self.pairs(batch, draws)
        order = minibatch_optimal_transport(pair.source, pair.sample, pair.labels)
        condition = {k: v[order] for k, v in pair.condition.items()}
        return replace(pair, source=pair.source[order], condition=condition)


@dataclass
class SemiDiscretePairs:
    """
    Replace the sample of each pair by the one, among all samples of its class, that the noise is coupled with.

    Args:
        pairs (`Callable`):
            The pairs that give noise and classes.
        samples (`torch.Tensor` of shape `(num_samples, channels, height, width)`):
            All samples.
        coupling ([`SemiDiscreteCoupling`]):
            The coupling, fitted to them.
    """

    pairs: Callable[[dict, Draws], Pair]
    samples: torch.Tensor
    coupling: SemiDiscreteCoupling

    def __call__(self, batch: dict, draws: Draws) -> Pair:
        pair = self.pairs(batch, draws)
        return replace(pair, sample=self.samples[self.coupling.assign(pair.source, pair.labels)])

    @classmethod
    def fit(
        cls, pairs: PriorPairs, cache, flips: tuple[bool, ...], is_labelled: bool, seed: int, device, progress=None
    ):
        """
        Fit the coupling to D(x) of a whole cache.

        Args:
            pairs ([`PriorPairs`]):
                The pairs that give noise and classes.
            cache ([`LatentCache`]):
                The data.
            flips (`tuple[bool, ...]`):
                The orientations that are trained on: `(False,)`, or `(False, True)` with random flips.
            is_labelled (`bool`):
                Whether to couple within each class.
            seed (`int`), device (`torch.device`), progress (`Callable`, *optional*):
                See [`SemiDiscreteCoupling.fit`].
        """
        items = [(i, flip) for flip in flips for i in range(len(cache))]
        batches = read_samples(cache, items, pairs.vae)
        low, labels = zip(*((pairs.projection.downsample(x), labels) for x, labels in batches))
        samples, labels = pairs.normalize(torch.cat(low).to(device)), torch.cat(labels).to(device)
        coupling = SemiDiscreteCoupling(samples, labels if is_labelled else None)
        coupling.fit(generator=keyed_generator(seed, "semi-discrete"), progress=progress)
        return cls(pairs, samples, coupling)
