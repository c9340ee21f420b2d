# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The cache of latents: every image is encoded once, and its latents kept in safetensors shards."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import partial

import torch
from safetensors.torch import load_file
from tqdm.auto import tqdm

from diffusers.utils import logging

from ...autoencoding import encode_images, normalize_latents
from ..machine import is_main_process
from .images import ImageDataset
from .shards import is_complete, load_shards, save_index, save_shard


logger = logging.get_logger(__name__)

MAX_NAMED = 10  # of the images that cannot be read, at the end; each was named as it was decoded


def _fingerprint(images: ImageDataset, vae, shard_size: int) -> str:
    digest = hashlib.sha256(f"1|{images.fingerprint}|{shard_size}".encode())
    if vae is not None:
        # The latent statistics are *made* by the cache, so they are not part of what it depends on.
        config = {k: v for k, v in vae.config.items() if not k.startswith(("_", "latents_"))}
        digest.update(f"{type(vae).__name__}{json.dumps(config, sort_keys=True, default=str)}".encode())
        for name, value in sorted(vae.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class LatentCache(torch.utils.data.Dataset):
    """
    Read batches from a folder of latent shards made by [`LatentCache.build`].

    Items are addressed by `(index, flip)`. `__getitems__` returns a whole batch as
    `{"sample": (batch, channels, height, width) float32, "label": (batch,) int64, "position": (batch,) int64}`, where the
    position is the row in the image set. Latents are raw, as the autoencoder made them; pixels are in [-1, 1]. `mean` and
    `std` are their statistics per channel over the whole set.

    Args:
        folder (`str`):
            The folder of one cache.

    Raises:
        ValueError: If the index or a shard is missing.
    """

    def __init__(self, folder: str):
        self.folder = folder
        self.index, shards = load_shards(folder, "latent cache")
        self.mean, self.std = self.index["mean"], self.index["std"]
        self.id2label = self.index["id2label"] and {int(k): v for k, v in self.index["id2label"].items()}
        self.latents = [shard["latents"] for shard in shards]
        self.labels = torch.cat([shard["labels"] for shard in shards])
        self.positions = torch.cat([shard["positions"] for shard in shards])  # the row of each item in the image set
        lengths = torch.tensor([len(latents) for latents in self.latents])
        self._starts = lengths.cumsum(0) - lengths  # for each shard; for each image they would fill the memory

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, entry: tuple[int, bool]) -> dict[str, torch.Tensor]:
        return {k: v[0] for k, v in self.__getitems__([entry]).items()}

    def __getitems__(self, entries: list[tuple[int, bool]]) -> dict[str, torch.Tensor]:
        index, flip = (torch.tensor(column) for column in zip(*entries))
        shard = torch.bucketize(index, self._starts, right=True) - 1
        row = index - self._starts[shard]
        sample = torch.empty(len(index), *self.latents[0].shape[2:])
        for s in shard.unique().tolist():
            here = shard == s
            rows, flips = row[here], flip[here]
            if self.latents[s].dtype == torch.uint8:  # pixels: one orientation is stored, the other is a mirror
                value = self.latents[s][rows, 0].float() / 127.5 - 1
                sample[here] = torch.where(flips[:, None, None, None], value.flip(-1), value)
            else:
                sample[here] = self.latents[s][rows, flips.long()].float()
        return {"sample": sample, "label": self.labels[index], "position": self.positions[index]}

    @classmethod
    @torch.no_grad()
    def build(
        cls,
        images: ImageDataset,
        vae,
        cache_dir: str,
        *,
        batch_size: int = 64,
        shard_size: int = 8192,
        max_skipped: float = 0.01,
        device: str | torch.device = "cpu",
        progress=None,
    ) -> "LatentCache":
        """
        Encode `images` with `vae`, or return the finished cache of the same images, autoencoder and resolution.

        Every latent is stored in half precision and in both orientations, since an autoencoder does not commute with
        mirroring. A killed run goes on with the next shard.

        Args:
            images ([`ImageDataset`]):
                The images.
            vae (`ModelMixin` or `None`):
                Any autoencoder of diffusers; `None` keeps pixels (`uint8`).
            cache_dir (`str`):
                Parent folder; the cache lives in `latents-<fingerprint>` below it.
            batch_size (`int`, defaults to `64`), shard_size (`int`, defaults to `8192`):
                Images per encoder call and per file.
            max_skipped (`float`, defaults to `0.01`):
                The largest share of unreadable images to tolerate.
            device (`str` or `torch.device`, defaults to `"cpu"`):
                Where to encode.
            progress (callable, *optional*):
                Wraps the iterable of shards, for example `tqdm`.

        Raises:
            ValueError: If more than `max_skipped` of the images cannot be read.
        """
        folder = os.path.join(cache_dir, f"latents-{_fingerprint(images, vae, shard_size)}")
        if is_complete(folder):
            cache = cls(folder)
            _name_skipped(images, cache)
            return cache
        os.makedirs(folder, exist_ok=True)
        names, total, square, count, skipped = [], 0.0, 0.0, 0, 0
        starts = range(0, len(images), shard_size)
        for start in progress(starts) if progress is not None else starts:
            name = f"latents-{start // shard_size:05d}.safetensors"
            path = os.path.join(folder, name)
            rows = range(start, min(start + shard_size, len(images)))
            if not os.path.isfile(path):
                shard = _encode_shard(images, rows, vae, batch_size, device)
                if shard is None:
                    skipped += len(rows)
                    continue
                save_shard(shard, path)
            shard = load_file(path)
            latents = shard["latents"].double()
            if shard["latents"].dtype == torch.uint8:
                latents = latents / 127.5 - 1
            names.append(name)
            total = total + latents.mean((1, 3, 4)).sum(0)
            square = square + latents.square().mean((1, 3, 4)).sum(0)
            count += len(latents)
            skipped += len(rows) - len(latents)
            if skipped > max_skipped * len(images):
                break
        if skipped > max_skipped * len(images) or not count:
            raise ValueError(
                f"`images`: {skipped} of the first {rows.stop} images cannot be read, more than "
                f"{max_skipped:.0%} of the whole {len(images)}. The log above names them."
            )
        mean = total / count
        std = (square / count - mean**2).clamp(min=1e-12).sqrt()
        index = {
            "shards": names,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "images": count,
            "skipped": skipped,
            "resolution": images.resolution,
            "id2label": images.id2label,
        }
        save_index(index, folder, indent=1)
        cache = cls(folder)
        _name_skipped(images, cache)
        return cache


def open_latents(accelerator, images: ImageDataset, vae, args) -> LatentCache:
    """
    Open the cache of the latents of some images, by the options of a script. The main process encodes them, the others wait.

    Args:
        accelerator (`Accelerator`):
            The accelerator.
        images ([`ImageDataset`]), vae (`ModelMixin`, *optional*):
            As in [`LatentCache.build`].
        args ([`Options`]):
            The options, see [`add_cache_options`].
    """
    with accelerator.main_process_first():
        return LatentCache.build(
            images,
            vae.to(accelerator.device) if vae is not None else None,
            args.cache_dir or os.path.join(args.output_dir, "cache"),
            batch_size=args.cache_batch_size,
            max_skipped=args.max_skipped_images,
            device=accelerator.device,
            progress=partial(tqdm, desc="encode", disable=not accelerator.is_main_process),
        )


def _name_skipped(images: ImageDataset, cache: LatentCache):
    """Say how many images a cache lacks since they cannot be read, and name the first."""
    if not cache.index["skipped"] or not is_main_process():
        return
    is_read = torch.zeros(len(images), dtype=torch.bool)
    is_read[cache.positions] = True
    rows = (~is_read).nonzero().flatten().tolist()
    names = [*(images.name(row) for row in rows[:MAX_NAMED]), *["…"] * (len(rows) > MAX_NAMED)]
    logger.warning(
        f"{len(rows)} of {len(images)} images could not be read and were skipped: {', '.join(names)}; {len(cache)} are used."
    )


def _encode_shard(images: ImageDataset, rows: range, vae, batch_size: int, device) -> dict[str, torch.Tensor] | None:
    """Encode some images: latents `(n, orientations, channels, height, width)`, labels and positions. `None` if none is readable."""
    positions, latents = [], []
    for start in range(0, len(rows), batch_size):
        decoded = list(images.decode_all(rows[start : start + batch_size]))
        if not decoded:
            continue
        positions += [row for row, _ in decoded]
        pixels = torch.stack([image for _, image in decoded])
        if vae is None:
            latents.append(pixels[:, None])
            continue
        pixels = pixels.to(device, torch.float32) / 127.5 - 1
        both = [encode_images(vae, p, normalize=False) for p in (pixels, pixels.flip(-1))]
        latents.append(torch.stack(both, dim=1).to("cpu", torch.float16))
    if not positions:
        return None
    positions = torch.tensor(positions)
    labels = torch.from_numpy(images.labels)[positions]
    return {"latents": torch.cat(latents), "labels": labels, "positions": positions}


def spread_items(cache, most: int = 65_536) -> list[tuple[int, bool]]:
    """Choose items of a cache, evenly spread, at least as many as statistics need."""
    return [(i, False) for i in range(0, len(cache), max(1, len(cache) // most))]


def read_samples(cache, items: list[tuple[int, bool]], vae) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the latents at unit scale and the labels of some items, in batches."""
    for start in range(0, len(items), 1024):
        batch = cache.__getitems__(items[start : start + 1024])
        yield normalize_latents(vae, batch["sample"]), batch["label"]
