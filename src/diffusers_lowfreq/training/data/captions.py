# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The cache of captions: every distinct one is encoded once, and its embedding kept in safetensors shards."""

import hashlib
import json
import os
from functools import partial

import torch
from tqdm.auto import tqdm

from ...text_encoding import encode_text, fingerprint
from .shards import is_complete, load_shards, save_index, save_shard


class CaptionCache:
    """
    Serve text embeddings from a folder of shards made by [`CaptionCache.build`]. A text is addressed by its number.

    Args:
        folder (`str`):
            The folder of one cache.
        captions (`list[list[str]]`):
            The captions of each image, at least one.

    Attributes:
        texts (`list[str]`): The distinct captions. The last is the empty string, which replaces a dropped caption.

    Raises:
        ValueError: If the index or a shard is missing, or a caption is not in the folder.
    """

    def __init__(self, folder: str, captions: list[list[str]]):
        index, shards = load_shards(folder, "caption cache")
        self.texts = index["texts"]
        self._embeddings = [shard["embeddings"] for shard in shards]
        lengths = [shard["lengths"] for shard in shards]
        starts = [x.cumsum(0) - x for x in lengths]
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
        """The average number of tokens of the distinct captions."""
        return round(self._length.float().mean().item())

    def choose(self, images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """
        Choose a caption of each image.

        Args:
            images (`torch.Tensor` of shape `(batch,)`):
                Row numbers of the images.
            uniform (`torch.Tensor` of shape `(batch,)`):
                A number in (0, 1) for each image, which decides among its captions.

        Returns:
            `torch.Tensor` of shape `(batch,)`: The numbers of the texts.
        """
        counts = self._counts[images]
        chosen = (uniform.cpu() * counts).long().minimum(counts - 1)
        return self._numbers[self._first[images] + chosen]

    def embeddings(self, numbers: torch.Tensor, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """
        Look texts up by number.

        Returns:
            `dict[str, torch.Tensor]`: The inputs of a text model, `encoder_hidden_states` of shape
            `(batch, text_tokens, width)`, float32, padded to the longest text, and `encoder_attention_mask`.
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

        Embeddings are stored in half precision, without padding. A killed run goes on with the next shard.

        Args:
            captions (`list[list[str]]`):
                The captions of each image, at least one.
            text_encoder (`CLIPTextModel` or `T5EncoderModel`), tokenizer (`PreTrainedTokenizerBase`):
                The encoder and its tokenizer.
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
        if is_complete(folder):
            return cls(folder, captions)
        os.makedirs(folder, exist_ok=True)
        text_encoder.to(device)
        names = []
        starts = range(0, len(texts), shard_size)
        for start in progress(starts) if progress is not None else starts:
            names.append(f"captions-{start // shard_size:05d}.safetensors")
            path = os.path.join(folder, names[-1])
            if os.path.isfile(path):
                continue
            embeddings, lengths = [], []
            shard = texts[start : start + shard_size]
            for first in range(0, len(shard), batch_size):
                hidden_states, mask = encode_text(text_encoder, tokenizer, shard[first : first + batch_size])
                embeddings.append(hidden_states[mask].to("cpu", torch.float16))
                lengths.append(mask.sum(1).cpu())
            save_shard({"embeddings": torch.cat(embeddings), "lengths": torch.cat(lengths)}, path)
        text_encoder.to("cpu")
        save_index({"shards": names, "texts": texts}, folder)
        return cls(folder, captions)


def open_captions(accelerator, captions: list[list[str]], text_encoder, tokenizer, args) -> CaptionCache:
    """
    Open the cache of some captions, by the options of a script. The main process encodes them, the others wait.

    Args:
        accelerator (`Accelerator`):
            The accelerator.
        captions (`list[list[str]]`), text_encoder, tokenizer:
            As in [`CaptionCache.build`].
        args ([`Options`]):
            The options, see [`add_cache_options`].
    """
    with accelerator.main_process_first():
        return CaptionCache.build(
            captions,
            text_encoder,
            tokenizer,
            args.cache_dir or os.path.join(args.output_dir, "cache"),
            batch_size=args.cache_batch_size,
            device=accelerator.device,
            progress=partial(tqdm, desc="encode captions", disable=not accelerator.is_main_process),
        )
