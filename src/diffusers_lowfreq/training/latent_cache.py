# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Encode every image once, keep the latents in safetensors shards, and serve batches of them."""

import hashlib
import json
import os

import torch
from safetensors.torch import load_file, save_file

from diffusers.utils import logging

from ..autoencoding import encode_images
from .images import ImageDataset


logger = logging.get_logger(__name__)

INDEX = "index.json"


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

    Items are addressed by `(index, flip)`; `__getitems__` returns a whole batch as
    `{"sample": (batch, channels, height, width) float32, "label": (batch,) int64, "position": (batch,) int64}`, the last being
    the rows in the image set. Latents come back raw, as the autoencoder made them (pixels: in [-1, 1]); `mean` and `std` hold
    their statistics per channel over the whole set.

    Args:
        folder (`str`):
            The folder of one cache.

    Raises:
        ValueError: If the index or a shard is missing.
    """

    def __init__(self, folder: str):
        self.folder = folder
        path = os.path.join(folder, INDEX)
        if not os.path.isfile(path):
            raise ValueError(f"`folder` {folder!r} holds no finished latent cache ({INDEX} is missing).")
        with open(path, encoding="utf-8") as file:
            self.index = json.load(file)
        self.mean, self.std = self.index["mean"], self.index["std"]
        self.id2label = self.index["id2label"] and {int(k): v for k, v in self.index["id2label"].items()}
        shards = []
        found = set(os.listdir(folder))
        for name in self.index["shards"]:
            if name not in found:  # nor a path out of it
                raise ValueError(
                    f"The latent cache {folder!r} lacks its shard {name}; delete the folder to rebuild it."
                )
            shards.append(load_file(os.path.join(folder, name)))  # memory-mapped
        self.latents = [shard["latents"] for shard in shards]
        self.labels = torch.cat([shard["labels"] for shard in shards])
        self.positions = torch.cat([shard["positions"] for shard in shards])  # row of each item in the image set
        lengths = torch.tensor([len(latents) for latents in self.latents])
        self._starts = lengths.cumsum(0) - lengths  # of each shard; a number for each image would fill the memory

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

        Every latent is stored in half precision in both orientations, since an autoencoder does not commute with
        mirroring. Shards are written beside and renamed, so that a killed run goes on where it stopped.

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
                The largest share of unreadable images that is tolerated.
            device (`str` or `torch.device`, defaults to `"cpu"`):
                Where to encode.
            progress (callable, *optional*):
                Wraps the iterable of shards, for example `tqdm`.

        Raises:
            ValueError: If more than `max_skipped` of the images cannot be read.
        """
        folder = os.path.join(cache_dir, f"latents-{_fingerprint(images, vae, shard_size)}")
        if os.path.isfile(os.path.join(folder, INDEX)):
            return cls(folder)
        os.makedirs(folder, exist_ok=True)
        temporary = f".{os.getpid()}.tmp"  # of this process alone: two runs may build the same cache at a time
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
                save_file(shard, path + temporary)
                os.replace(path + temporary, path)
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
        if skipped:
            logger.warning(f"{skipped} of {len(images)} images could not be read and were skipped.")
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
        with open(os.path.join(folder, INDEX + temporary), "w", encoding="utf-8") as file:
            json.dump(index, file, indent=1)
        os.replace(os.path.join(folder, INDEX + temporary), os.path.join(folder, INDEX))
        return cls(folder)


def _encode_shard(images: ImageDataset, rows: range, vae, batch_size: int, device) -> dict[str, torch.Tensor] | None:
    """Decode and encode some images: latents (n, orientations, channels, height, width), labels and row numbers."""
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
        both = [encode_images(vae, p.to(vae.dtype), normalize=False) for p in (pixels, pixels.flip(-1))]
        latents.append(torch.stack(both, dim=1).to("cpu", torch.float16))
    if not positions:
        return None
    positions = torch.tensor(positions)
    labels = torch.from_numpy(images.labels)[positions]
    return {"latents": torch.cat(latents), "labels": labels, "positions": positions}
