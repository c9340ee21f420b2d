# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Images for training, decoded one by one. Unreadable ones are named and skipped."""

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps

from diffusers.utils import logging

from ...images import check_pixels, to_rgb


logger = logging.get_logger(__name__)


class ImageDataset:
    """
    A set of images with labels and captions, decoded on demand. Damaged files can be skipped.

    Args:
        dataset (`datasets.Dataset`):
            A dataset with an image column.
        resolution (`int`):
            Side of the square images in pixels. The short side is resized to it, then the centre is cropped.
        image_column (`str`, defaults to `"image"`):
            The column of images.
        label_column (`str`, *optional*, defaults to `"label"`):
            The column of class numbers. With `None`, or if the set has no column `"label"`, every label is -1.
        caption_column (`str`, *optional*):
            The column of captions. Each is a string or a list of strings.

    Raises:
        ValueError: If the set is empty, a column is missing, labels are not integers, or captions are not strings.
    """

    def __init__(
        self,
        dataset,
        resolution: int,
        image_column: str = "image",
        label_column: str | None = "label",
        caption_column: str | None = None,
    ):
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        check_pixels(resolution, resolution, "`resolution`")
        if len(dataset) == 0:
            raise ValueError("`dataset` is empty: there is no image to train on.")
        if image_column not in dataset.column_names:
            raise ValueError(
                f"`image_column` must be one of the columns {sorted(dataset.column_names)}, got {image_column!r}."
            )
        if label_column not in (None, "label", *dataset.column_names):
            raise ValueError(
                f"`label_column` must be one of the columns {sorted(dataset.column_names)}, got {label_column!r}."
            )
        if caption_column not in (None, *dataset.column_names):
            raise ValueError(
                f"`caption_column` must be one of the columns {sorted(dataset.column_names)}, got {caption_column!r}."
            )
        # Keep the bytes. They are decoded here, so that a damaged file can be named and skipped.
        try:
            self.dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
        except Exception as error:  # a type of pyarrow
            raise ValueError(
                f"`image_column` {image_column!r} must hold images, got {dataset.features[image_column]}."
            ) from error
        self.resolution = resolution
        self.image_column = image_column
        self.label_column = label_column
        self.labels = np.full(len(dataset), -1, dtype=np.int64)
        self.id2label = None
        if label_column in dataset.column_names:
            labels = np.asarray(dataset[label_column][:])
            if not np.issubdtype(labels.dtype, np.integer):
                raise ValueError(f"`label_column` {label_column!r} must hold integers from 0, got {labels.dtype}.")
            if labels.min() < 0:
                raise ValueError(f"`label_column` {label_column!r} must hold integers from 0, got {labels.min()}.")
            feature = dataset.features[label_column]
            names = feature.names if isinstance(feature, ClassLabel) else map(str, range(int(labels.max()) + 1))
            self.labels = labels.astype(np.int64)
            self.id2label = dict(enumerate(names))
        self.captions = None
        if caption_column is not None:
            column = dataset[caption_column][:]
            self.captions = [[texts] if isinstance(texts, str) else texts for texts in column]
            for row, texts in enumerate(self.captions):
                if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                    raise ValueError(
                        f"`caption_column` {caption_column!r} must hold a string or a list of strings for every image, got "
                        f"{column[row]!r} in row {row}."
                    )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def fingerprint(self) -> str:
        """A hash that changes with the files, the columns or the resolution."""
        return f"{self.dataset._fingerprint}-{self.resolution}-{self.label_column}"

    def __getitem__(self, index: int) -> torch.Tensor:
        """Decode one image to a `uint8` tensor of shape `(3, resolution, resolution)`."""
        return decode_image(self.dataset[index][self.image_column], self.resolution)

    def decode_all(self, indices: range) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield `(index, image)` of the readable images, and log the names of the others."""
        for index in indices:
            try:
                image = self[index]
            except Exception as error:  # what Pillow raises on a damaged file depends on its format
                name = (self.dataset[index][self.image_column] or {}).get("path") or f"row {index}"
                logger.warning(f"Image {name} cannot be read and is skipped: {error}")
            else:
                yield index, image


def decode_image(entry: dict | None, resolution: int) -> torch.Tensor:
    """Decode an entry of an image column, `{"bytes": …, "path": …}`, as [`to_square`] does."""
    if entry is None:
        raise ValueError("it is empty")
    source = io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else entry["path"]
    with Image.open(source) as image:
        return to_square(image, resolution)


def to_square(image: Image.Image, resolution: int) -> torch.Tensor:
    """
    Convert a PIL image of any mode, as [`to_rgb`] does, to an RGB `uint8` tensor of shape `(3, resolution, resolution)`.
    """
    image = to_rgb(image)
    if image.size != (resolution, resolution):
        image = ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
