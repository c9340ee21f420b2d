# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Images for training, decoded one by one. Unreadable ones are named and skipped."""

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps

from diffusers.utils import logging

from ...images import check_pixels, to_rgb
from .image_sets import to_path


logger = logging.get_logger(__name__)

# Classes without names, that numbers may leave room for: so many, or so many for each number that occurs
MAX_UNNAMED_CLASSES, MAX_CLASSES_PER_LABEL = 10_000, 10


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
        identity (`str`, *optional*):
            A hash of what the set is, as [`ImageSet`] has it, for the comparison at a resume. `None` if nobody knows.

    Raises:
        ValueError: If the set is empty, a column is missing, labels are not class numbers, or captions are not strings.
    """

    def __init__(
        self,
        dataset,
        resolution: int,
        image_column: str = "image",
        label_column: str | None = "label",
        caption_column: str | None = None,
        identity: str | None = None,
    ):
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
        self.identity = identity
        self.labels = np.full(len(dataset), -1, dtype=np.int64)
        self.id2label = None
        if label_column in dataset.column_names:
            self.labels, self.id2label = read_labels(dataset, label_column)
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
                logger.warning(f"Image {self.name(index)} cannot be read and is skipped: {error}")
            else:
                yield index, image

    def name(self, index: int) -> str:
        """Return the path of an image, in quotes, or its row if it has none."""
        return image_name(self.dataset[index][self.image_column], f"row {index}")


def read_labels(dataset, label_column: str) -> tuple[np.ndarray, dict[int, str]]:
    """
    Read the class number of each image, and the names of the classes. Numbers without names name themselves.

    Raises:
        ValueError: If there is not one integer from 0 for each image, or the numbers are too large to be those of classes.
    """
    from datasets import ClassLabel

    feature, rows = dataset.features[label_column], dataset[label_column][:]
    if any(isinstance(row, (list, dict)) for row in rows):
        raise ValueError(
            f"`label_column` {label_column!r} must hold integers from 0, got {feature}: each image has one class number, no "
            "one-hot vector and no list of labels. Add a column of numbers, or leave the labels out."
        )
    labels = np.asarray(rows)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"`label_column` {label_column!r} must hold integers from 0, got {labels.dtype}.")
    if labels.min() < 0:
        raise ValueError(f"`label_column` {label_column!r} must hold integers from 0, got {labels.min()}.")
    if isinstance(feature, ClassLabel):
        return labels.astype(np.int64), dict(enumerate(feature.names))
    largest, number = int(labels.max()), len(np.unique(labels))
    if largest >= max(MAX_UNNAMED_CLASSES, MAX_CLASSES_PER_LABEL * number):
        raise ValueError(
            f"`label_column` {label_column!r} must hold class numbers from 0, got {number} different values up to {largest}, "
            f"which would make {largest + 1} classes. Such values are ids: number the {number} classes from 0 to {number - 1}, "
            "give the column names (`ClassLabel`), or leave the labels out."
        )
    return labels.astype(np.int64), {label: str(label) for label in range(largest + 1)}


def image_name(entry: dict | None, otherwise: str) -> str:
    """Name an entry of an image column by its path, in quotes, for messages."""
    path = (entry or {}).get("path")
    return repr(to_path(path)) if path else otherwise


def decode_image(entry: dict | None, resolution: int) -> torch.Tensor:
    """Decode an entry of an image column, `{"bytes": …, "path": …}`, as [`to_square`] does."""
    if entry is None:
        raise ValueError("it is empty")
    source = io.BytesIO(entry["bytes"]) if entry["bytes"] is not None else to_path(entry["path"])
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
