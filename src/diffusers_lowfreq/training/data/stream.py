# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Images that are read while the model trains, for sets that do not fit on a disk. Only the first images are cached."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch

from diffusers.utils import logging

from ...autoencoding import encode_images
from ...text_encoding import encode_text
from ..keyed import keyed_generator
from .images import ImageDataset, decode_image, image_name


logger = logging.get_logger(__name__)

HEAD_FILES = 16  # the head is taken from as many files, evenly spread


class ImageStream:
    """
    A set of images that `datasets` streams file by file.

    Args:
        dataset (`datasets.IterableDataset`):
            A stream with an image column.
        resolution (`int`), image_column, label_column, caption_column (`str`, *optional*):
            As in [`ImageDataset`].
        head_size (`int`, defaults to `8192`):
            The number of images in `head`.
        identity (`str`, *optional*):
            As in [`ImageDataset`].

    Attributes:
        head ([`ImageDataset`]): The first images of up to 16 files, for statistics and validation.

    Raises:
        ValueError: If the stream is empty, its columns are unknown or missing, or its labels have no names: the number of
            classes must be known before the labels are read.
    """

    def __init__(
        self,
        dataset,
        resolution: int,
        image_column: str = "image",
        label_column: str | None = "label",
        caption_column: str | None = None,
        head_size: int = 8192,
        identity: str | None = None,
    ):
        from datasets import ClassLabel, Dataset
        from datasets import Image as ImageFeature

        if dataset.features is None:
            raise ValueError("`dataset` must say which columns it has; this stream does not.")
        if image_column not in dataset.features:
            raise ValueError(
                f"`image_column` must be one of the columns {sorted(dataset.features)}, got {image_column!r}."
            )
        if label_column in dataset.features and not isinstance(dataset.features[label_column], ClassLabel):
            raise ValueError(
                f"`label_column` {label_column!r} must be a `ClassLabel` of named classes, since a stream does not know how many "
                f"there are, got {dataset.features[label_column]}. Read the set without streaming, or leave the labels out."
            )
        self.dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
        self.image_column, self.label_column, self.caption_column = image_column, label_column, caption_column
        self.num_files = dataset.num_shards
        if self.num_files == 1:
            logger.warning(
                "`dataset` is one file: every process reads all of it, shuffled only within the buffer, and the head is its beginning."
            )
        spread = range(0, self.num_files, -(-self.num_files // HEAD_FILES))
        rows = [row for file in spread for row in self.rows(file).take(-(-head_size // len(spread)))]
        head = Dataset.from_list(rows, features=self.dataset.features)
        self.head = ImageDataset(head, resolution, image_column, label_column, caption_column, identity)
        self.identity = identity

    def rows(self, file: int, skip: int = 0):
        """Iterate over the rows of one file, without the first `skip`."""
        rows = self.dataset.shard(self.num_files, file)
        return rows.skip(skip) if skip else rows

    def decode(self, row: dict) -> torch.Tensor | None:
        """Decode the image of a row to a `uint8` tensor `(3, resolution, resolution)`; `None` and a warning if it is damaged."""
        try:
            return decode_image(row[self.image_column], self.head.resolution)
        except Exception as error:  # what Pillow raises on a damaged file depends on its format
            name = image_name(row[self.image_column], "of the stream")
            logger.warning(f"Image {name} cannot be read and is skipped: {error}")


class LatentStream:
    """
    Endless batches of latents like those of [`LatentCache`], encoded while the model trains.

    Every epoch shuffles the files and deals them to the processes. If there are fewer files than processes, each process reads
    all of them and keeps its share of the rows. Rows are shuffled within a buffer. All of that is keyed by seed and epoch, so a
    checkpoint only holds a `position`, and a resumed run goes on with the very next image.

    Args:
        images ([`ImageStream`]):
            The stream.
        vae (`ModelMixin` or `None`):
            The autoencoder, or `None` for pixels.
        batch_size (`int`):
            The number of images in a batch of this process.
        seed (`int`):
            Seed of the order and of the mirroring.
        process_index (`int`, defaults to `0`), num_processes (`int`, defaults to `1`):
            Which part of the stream this process reads.
        random_flip (`bool`, defaults to `False`):
            Whether to mirror each visit of an image with probability one half.
        shuffle_buffer_size (`int`, defaults to `8192`):
            The number of rows, still compressed, that are shuffled among themselves.
        max_skipped (`float`, defaults to `0.01`):
            The largest share of unreadable images to tolerate.
        num_workers (`int`, defaults to `0`):
            The number of threads that decode. One more reads ahead.
        device (`str` or `torch.device`, defaults to `"cpu"`):
            Where to encode.
        captions ([`StreamedCaptions`], *optional*):
            Gets the captions of each batch.

    Attributes:
        position (`tuple[int, int, int, int]`): Where the next batch begins: the epoch; the file, in the order of the epoch, and
            its row at which the buffer begins; how many rows of the buffer have been served.
    """

    def __init__(
        self,
        images: ImageStream,
        vae,
        batch_size: int,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
        random_flip: bool = False,
        shuffle_buffer_size: int = 8192,
        max_skipped: float = 0.01,
        num_workers: int = 0,
        device: str | torch.device = "cpu",
        captions=None,
    ):
        self.images = images
        self.vae = vae
        self.batch_size = batch_size
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.random_flip = random_flip
        self.shuffle_buffer_size = shuffle_buffer_size
        self.max_skipped = max_skipped
        self.num_workers = num_workers
        self.device = device
        self.captions = captions
        self.position = (0, 0, 0, 0)
        self.read = self.skipped = 0

    def _rows(self, epoch: int, file: int, row: int) -> Iterator[tuple[tuple[int, int], dict]]:
        """Yield the rows of this process in an epoch, each with the file and the row of the next one."""
        number = self.images.num_files
        order = torch.randperm(number, generator=keyed_generator(self.seed, "files", epoch)).tolist()
        reads_all = number < self.num_processes
        files = order if reads_all else order[self.process_index :: self.num_processes]
        for file in range(file, len(files)):
            for row, content in enumerate(self.images.rows(files[file], row), row):
                if not reads_all or row % self.num_processes == self.process_index:
                    yield (file, row + 1), content
            row = 0

    def _shuffled(self) -> Iterator[tuple[dict, bool, tuple[int, int, int, int]]]:
        """Yield each row, whether it is mirrored, and the position after it."""
        epoch, file, row, served = self.position
        while True:
            rows, is_empty = self._rows(epoch, file, row), (file, row) == (0, 0)
            while buffer := list(islice(rows, self.shuffle_buffer_size)):
                generator = keyed_generator(self.seed, "buffer", epoch, file, row, self.process_index)
                order = torch.randperm(len(buffer), generator=generator).tolist()
                flips = torch.randint(2, (len(buffer),), generator=generator).bool() & self.random_flip
                for i in range(served, len(buffer)):
                    yield buffer[order[i]][1], bool(flips[i]), (epoch, file, row, i + 1)
                (file, row), served, is_empty = buffer[-1][0], 0, False
            if is_empty:
                raise ValueError(
                    f"`dataset` has no image for process {self.process_index} of {self.num_processes}: there are too few."
                )
            epoch, file, row = epoch + 1, 0, 0

    def _decoded(self, pool: ThreadPoolExecutor):
        """Yield batches `(images, flips, rows)`, each with the position after it and the numbers of rows read and skipped."""
        rows, batch = self._shuffled(), []
        read, skipped = self.read, self.skipped
        while True:
            wanted = list(islice(rows, self.batch_size - len(batch)))
            decoded = list(pool.map(self.images.decode, (row for row, _, _ in wanted)))
            batch += [(x, flip, row) for x, (row, flip, _) in zip(decoded, wanted) if x is not None]
            read, skipped = read + len(wanted), skipped + sum(x is None for x in decoded)
            if skipped > self.max_skipped * max(read, 1000):
                raise ValueError(
                    f"{skipped} of the first {read} images cannot be read, more than `max_skipped` = {self.max_skipped:g}."
                )
            if len(batch) == self.batch_size:
                yield *zip(*batch), wanted[-1][2], read, skipped
                batch = []

    @torch.no_grad()
    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        images, head = self.images, self.images.head
        with ThreadPoolExecutor(max(1, self.num_workers)) as pool, ThreadPoolExecutor(1) as ahead:
            batches = self._decoded(pool)
            next_batch = ahead.submit(next, batches)
            try:
                while True:
                    pixels, flips, rows, position, read, skipped = next_batch.result()
                    next_batch = ahead.submit(next, batches)
                    flips = torch.tensor(flips)[:, None, None, None]
                    pixels = torch.stack(pixels)
                    sample = torch.where(flips, pixels.flip(-1), pixels).to(self.device, torch.float32) / 127.5 - 1
                    sample = encode_images(self.vae, sample, normalize=False).float()
                    labels = [-1 if head.id2label is None else row[images.label_column] for row in rows]
                    if self.captions is not None:
                        self.captions.batch = [row[images.caption_column] for row in rows]
                    self.position, self.read, self.skipped = position, read, skipped
                    yield {"sample": sample, "label": torch.tensor(labels), "position": torch.arange(len(rows))}
            finally:
                next_batch.cancel()

    def register(self, accelerator):
        """
        Have `accelerator.save_state` write the position of the stream, one file for each process, and `load_state` restore it.

        `load_state` then raises a `ValueError` if another number of processes saved it.
        """
        name = f"stream_{self.process_index}.json"

        def save(models, weights, output_dir):
            state = {
                "num_processes": self.num_processes,
                "place": self.position,
                "read": self.read,
                "skipped": self.skipped,
            }
            with open(os.path.join(output_dir, name), "w", encoding="utf-8") as file:
                json.dump(state, file)

        def load(models, input_dir):
            saved = [file for file in os.listdir(input_dir) if file.startswith("stream_")]
            if len(saved) != self.num_processes:
                raise ValueError(
                    f"`num_processes` must be {len(saved)} to go on with the stream of {input_dir!r}, got {self.num_processes}."
                )
            with open(os.path.join(input_dir, name), encoding="utf-8") as file:
                state = json.load(file)
            self.position, self.read, self.skipped = tuple(state["place"]), state["read"], state["skipped"]

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)


class StreamedCaptions:
    """
    The captions of a stream, encoded batch by batch. Only those of the head are in a [`CaptionCache`].

    Args:
        head ([`CaptionCache`]):
            The captions of the head.
        text_encoder, tokenizer:
            The encoder and its tokenizer.

    Attributes:
        batch (`list[str | list[str]]`): The captions of each image of the current batch.
    """

    empty = 0  # the number of the empty string

    def __init__(self, head, text_encoder, tokenizer):
        self.head = head
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.mean_tokens = head.mean_tokens
        self.batch, self._texts = [], [""]

    def choose(self, images: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        """As `CaptionCache.choose`, for the current batch."""
        captions = [[texts] if isinstance(texts, str) else texts for texts in self.batch]
        chosen = [t[min(int(u * len(t)), len(t) - 1)] for t, u in zip(captions, uniform.tolist())]
        self._texts = ["", *dict.fromkeys(text for text in chosen if text)]
        number = {text: i for i, text in enumerate(self._texts)}
        return torch.tensor([number[text] for text in chosen])

    @torch.no_grad()
    def embeddings(self, numbers: torch.Tensor, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
        """As `CaptionCache.embeddings`."""
        texts = [self._texts[number] for number in numbers.tolist()]
        distinct = list(dict.fromkeys(texts))
        self.text_encoder.to(device)
        hidden_states, mask = encode_text(self.text_encoder, self.tokenizer, distinct)
        rows = torch.tensor([distinct.index(text) for text in texts], device=hidden_states.device)
        hidden_states, mask = hidden_states[rows], mask[rows]
        longest = int(mask.sum(1).max())
        hidden_states = (hidden_states * mask[..., None])[:, :longest]
        return {"encoder_hidden_states": hidden_states.float(), "encoder_attention_mask": mask[:, :longest]}
