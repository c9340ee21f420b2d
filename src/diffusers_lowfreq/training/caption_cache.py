# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Encode every distinct caption once, keep the text embeddings in safetensors shards, and serve batches of them."""

import hashlib
import json
import os

import torch
from safetensors.torch import load_file, save_file

from ..text_encoding import encode_text, fingerprint


INDEX = "index.json"


class CaptionCache:
    """
    Serve text embeddings, by the number of their text, from a folder of shards made by [`CaptionCache.build`].

    Args:
        folder (`str`):
            The folder of one cache.
        captions (`list[list[str]]`):
            The captions of each image, at least one.

    Attributes:
        texts (`list[str]`): The distinct captions, and last the empty string, which stands for a dropped one.

    Raises:
        ValueError: If the index or a shard is missing, or a caption is none of the folder's.
    """

    def __init__(self, folder: str, captions: list[list[str]]):
        path = os.path.join(folder, INDEX)
        if not os.path.isfile(path):
            raise ValueError(f"`folder` {folder!r} holds no finished caption cache ({INDEX} is missing).")
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        self.texts = index["texts"]
        self._embeddings, starts, lengths = [], [], []
        found = set(os.listdir(folder))
        for name in index["shards"]:
            if name not in found:  # nor a path out of it
                raise ValueError(
                    f"The caption cache {folder!r} lacks its shard {name}; delete the folder to rebuild it."
                )
            shard = load_file(os.path.join(folder, name))  # memory-mapped
            self._embeddings.append(shard["embeddings"])
            lengths.append(shard["lengths"])
            starts.append(shard["lengths"].cumsum(0) - shard["lengths"])
        self._shard = torch.cat([torch.full((len(x),), i) for i, x in enumerate(lengths)])
        self._start, self._length = torch.cat(starts), torch.cat(lengths)
        number = {text: i for i, text in enumerate(self.texts)}
        missing = next((text for texts in captions for text in texts if text not in number), None)
        if missing is not None:
            raise ValueError(f"`captions` must be among those of the caption cache {folder!r}, got {missing!r}.")
        self._numbers = torch.tensor([number[text] for texts in captions for text in texts])
        self._counts = torch.tensor([len(texts) for texts in captions])
        self._first = self._counts.cumsum(0) - self._counts

    @property
    def empty(self) -> int:
        """The number of the empty string."""
        return len(self.texts) - 1

    @property
    def mean_tokens(self) -> int:
        """Tokens of a distinct caption, on average."""
        return round(self._length.float().mean().item())

    def choose(self, images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """
        Choose a caption of each image.

        Args:
            images (`torch.Tensor` of shape `(batch,)`):
                Row numbers of the images.
            uniform (`torch.Tensor` of shape `(batch,)`):
                A number in (0, 1) for each, which decides among its captions.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The numbers of the texts.
        """
        counts = self._counts[images]
        which = (uniform.cpu() * counts).long().minimum(counts - 1)
        return self._numbers[self._first[images] + which]

    def embeddings(self, numbers: torch.Tensor, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """
        Look texts up by number.

        Returns:
            `dict[str, torch.Tensor]`: What a text model is told, `encoder_hidden_states` of shape
            `(batch, text_tokens, width)`, float32, padded to the longest, and `encoder_attention_mask`.
        """
        numbers = numbers.cpu()
        lengths = self._length[numbers]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        hidden_states = torch.zeros(*mask.shape, self._embeddings[0].shape[1])
        for row, (shard, start, length) in enumerate(
            zip(self._shard[numbers].tolist(), self._start[numbers].tolist(), lengths.tolist())
        ):
            hidden_states[row, :length] = self._embeddings[shard][start : start + length].float()
        return {"encoder_hidden_states": hidden_states.to(device), "encoder_attention_mask": mask.to(device)}

    @classmethod
    def build(
        cls,
        captions: list[list[str]],
        text_encoder,
        tokenizer,
        cache_dir: str,
        *,
        batch_size: int = 64,
        shard_size: int = 8192,
        device: str | torch.device = "cpu",
        progress=None,
    ) -> "CaptionCache":
        """
        Encode the distinct captions, or return the finished cache of the same captions, encoder and tokenizer.

        Embeddings are stored in half precision, without padding. Shards are written beside and renamed, so that a killed run
        goes on where it stopped.

        Args:
            captions (`list[list[str]]`):
                The captions of each image, at least one.
            text_encoder (`CLIPTextModel` or `T5EncoderModel`), tokenizer (`PreTrainedTokenizerBase`):
                What encodes them.
            cache_dir (`str`):
                Parent folder; the cache lives in `captions-<fingerprint>` below it.
            batch_size (`int`, defaults to `64`), shard_size (`int`, defaults to `8192`):
                Captions per encoder call and per file.
            device (`str` or `torch.device`, defaults to `"cpu"`):
                Where to encode.
            progress (callable, *optional*):
                Wraps the iterable of shards, for example `tqdm`.
        """
        texts = [text for text in dict.fromkeys(text for texts in captions for text in texts) if text] + [""]
        key = json.dumps([1, shard_size, fingerprint(text_encoder, tokenizer), texts])
        folder = os.path.join(cache_dir, f"captions-{hashlib.sha256(key.encode()).hexdigest()[:16]}")
        if os.path.isfile(os.path.join(folder, INDEX)):
            return cls(folder, captions)
        os.makedirs(folder, exist_ok=True)
        temporary = f".{os.getpid()}.tmp"  # of this process alone: two runs may build the same cache at a time
        text_encoder.to(device)
        names = []
        starts = range(0, len(texts), shard_size)
        for start in progress(starts) if progress is not None else starts:
            names.append(f"captions-{start // shard_size:05d}.safetensors")
            path = os.path.join(folder, names[-1])
            if os.path.isfile(path):
                continue
            parts, lengths = [], []
            shard = texts[start : start + shard_size]
            for first in range(0, len(shard), batch_size):
                hidden_states, mask = encode_text(text_encoder, tokenizer, shard[first : first + batch_size])
                parts.append(hidden_states[mask].to("cpu", torch.float16))
                lengths.append(mask.sum(1).cpu())
            save_file({"embeddings": torch.cat(parts), "lengths": torch.cat(lengths)}, path + temporary)
            os.replace(path + temporary, path)
        text_encoder.to("cpu")
        with open(os.path.join(folder, INDEX + temporary), "w", encoding="utf-8") as file:
            json.dump({"shards": names, "texts": texts}, file)
        os.replace(os.path.join(folder, INDEX + temporary), os.path.join(folder, INDEX))
        return cls(folder, captions)
