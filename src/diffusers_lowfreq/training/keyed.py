# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Random draws keyed by seed, optimizer step and position in the global batch.

They do not depend on how a global batch is split over processes and accumulation steps (batch 8 = 4 x 2 = two processes of 4),
and a resumed run needs no generator state.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from diffusers.utils.torch_utils import randn_tensor


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose stream is a function of `key` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def uniform(batch_size: int, generator, device=None) -> torch.Tensor:
    """Draw `(batch_size,)` float32 numbers uniform in (0, 1) from one generator or one per sample."""
    return torch.special.ndtr(randn_tensor((batch_size,), generator=generator, device=device, dtype=torch.float32))


@dataclass
class Draws:
    """
    The random numbers of a micro-batch.

    What is drawn first stays first: another order would take a resumed run off its path.

    Args:
        generators (`list[torch.Generator]`):
            One for each sample, keyed by seed, step and position in the global batch.
        device (`torch.device`):
            Where the numbers are needed.
    """

    generators: list[torch.Generator]
    device: torch.device

    def normal_like(self, sample: torch.Tensor) -> torch.Tensor:
        """Draw standard normal noise of the shape of `sample`."""
        return randn_tensor(sample.shape, generator=self.generators, device=self.device, dtype=sample.dtype)

    def uniform(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Draw a number in (0, 1) for each sample, on the device of the draws unless another is given."""
        return uniform(len(self.generators), self.generators, self.device if device is None else torch.device(device))


class KeyedBatchSampler:
    """
    Walk through a data set in seeded epochs, and yield the micro-batches of this process as lists of `(index, flip)`.

    The stream of samples is one endless concatenation of shuffled epochs. Step `s` takes the `global_batch_size` samples from
    `s * global_batch_size` on, so neither the end of an epoch nor a resume skips or repeats an image. Each process holds the
    order of one epoch, 5 bytes for each image.

    Args:
        num_samples (`int`):
            Size of the data set.
        batch_size (`int`):
            Samples per process and micro-batch.
        seed (`int`):
            Seed of the order and of the flips.
        steps (`range`):
            The optimiser steps to serve.
        accumulation (`int`, defaults to `1`), process_index (`int`, defaults to `0`), num_processes (`int`, defaults to `1`):
            How the global batch is split.
        random_flip (`bool`, defaults to `False`):
            Whether to mirror each visit of an image with probability one half.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        steps: range,
        accumulation: int = 1,
        process_index: int = 0,
        num_processes: int = 1,
        random_flip: bool = False,
    ):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.steps = steps
        self.accumulation = accumulation
        self.process_index = process_index
        self.num_processes = num_processes
        self.global_batch_size = batch_size * accumulation * num_processes
        self.random_flip = random_flip
        self._epoch, self._order = None, None

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def positions(self, micro_step: int) -> range:
        """Positions in the global batch that this process holds in one micro-batch."""
        start = (micro_step * self.num_processes + self.process_index) * self.batch_size
        return range(start, start + self.batch_size)

    def generators(self, step: int, micro_step: int) -> list[torch.Generator]:
        """One generator per sample of this process's micro-batch, for every draw of the training step."""
        return [keyed_generator(self.seed, step, position) for position in self.positions(micro_step)]

    def order(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The order in which an epoch visits the samples, and which visits are mirrored if any are."""
        if epoch != self._epoch:
            self._order = None  # free the last epoch first: that of a large set fills the memory
            generator = keyed_generator(self.seed, "epoch", epoch)
            dtype = torch.int32 if self.num_samples <= 2**31 else torch.int64  # the values are the same
            order = torch.randperm(self.num_samples, generator=generator, dtype=dtype)
            flips = torch.randint(2, (self.num_samples,), generator=generator, dtype=torch.bool)
            self._epoch, self._order = epoch, (order, flips)
        return self._order

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        for step in self.steps:
            for micro_step in range(self.accumulation):
                batch = []
                for position in self.positions(micro_step):
                    epoch, offset = divmod(step * self.global_batch_size + position, self.num_samples)
                    index, flip = (values[offset].item() for values in self.order(epoch))
                    batch.append((index, flip and self.random_flip))
                yield batch
