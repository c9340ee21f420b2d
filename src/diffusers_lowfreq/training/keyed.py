# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Draws keyed by seed, optimiser step and position in the global batch.

Nothing random depends on how a global batch is split over processes and accumulation steps, and a resumed run needs no
generator state: batch 8 = 4 x 2 = two processes of 4.
"""

import hashlib
from collections.abc import Iterator

import torch

from diffusers.utils.torch_utils import randn_tensor


def keyed_generator(*key: int | str) -> torch.Generator:
    """Return a CPU generator whose stream is a function of `key` alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def uniform(batch_size: int, generator, device=None) -> torch.Tensor:
    """Draw `(batch_size,)` float32 numbers uniform in (0, 1) from one generator or one per sample."""
    return torch.special.ndtr(randn_tensor((batch_size,), generator=generator, device=device, dtype=torch.float32))


class KeyedBatchSampler:
    """
    Walk through a data set in seeded epochs, yielding this process's micro-batches as lists of `(index, flip)`.

    The stream of samples is one endless concatenation of shuffled epochs; step `s` takes the `global_batch_size`
    samples from `s * global_batch_size` on, so no image is skipped or repeated at the end of an epoch or by a resume.
    Each process holds the order of one epoch: 5 bytes for each image.

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
            Whether each visit of an image is mirrored with probability one half.
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
        self._epoch, self._drawn = None, None

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def positions(self, micro_step: int) -> range:
        """Positions in the global batch that this process holds in one micro-batch."""
        start = (micro_step * self.num_processes + self.process_index) * self.batch_size
        return range(start, start + self.batch_size)

    def generators(self, step: int, micro_step: int) -> list[torch.Generator]:
        """One generator per sample of this process's micro-batch, for every draw of the training step."""
        return [keyed_generator(self.seed, step, position) for position in self.positions(micro_step)]

    def _draw(self, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if epoch != self._epoch:
            self._drawn = None  # epochs come one after the other, and those of a large set fill the memory
            generator = keyed_generator(self.seed, "epoch", epoch)
            dtype = torch.int32 if self.num_samples <= 2**31 else torch.int64  # of equal values
            order = torch.randperm(self.num_samples, generator=generator, dtype=dtype)
            flips = torch.randint(2, (self.num_samples,), generator=generator, dtype=torch.bool)
            self._epoch, self._drawn = epoch, (order, flips)
        return self._drawn

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        for step in self.steps:
            for micro_step in range(self.accumulation):
                batch = []
                for position in self.positions(micro_step):
                    epoch, offset = divmod(step * self.global_batch_size + position, self.num_samples)
                    index, flip = (drawn[offset].item() for drawn in self._draw(epoch))
                    batch.append((index, flip and self.random_flip))
                yield batch
