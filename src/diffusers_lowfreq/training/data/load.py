# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""From the options of a script, or the name of a dataset or a folder, to its images."""

import hashlib
import os
from functools import partial
from logging import INFO, WARNING

from tqdm.auto import tqdm

from diffusers.utils import logging

from ..machine import is_main_process
from .image_sets import find_image_set
from .images import ImageDataset
from .stream import ImageStream


logger = logging.get_logger(__name__)


def open_images(args, **columns):
    """
    Find the images by the options of a script.

    Args:
        args ([`Options`]):
            The options, see [`add_image_options`].
        columns:
            `label_column`, `caption_column` and `streaming`, as in [`load_images`].
    """
    return load_images(
        args.dataset_name,
        args.train_data_dir,
        resolution=args.resolution,
        dataset_config_name=getattr(args, "dataset_config_name", None),
        split=args.train_split,
        image_column=args.image_column,
        output_dir=getattr(args, "output_dir", None),
        **columns,
    )


def load_images(
    dataset_name: str | None = None,
    train_data_dir: str | None = None,
    *,
    resolution: int,
    dataset_config_name: str | None = None,
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    caption_column: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
    output_dir: str | None = None,
):
    """
    Find images by the name of a dataset on the Hub, or in a local folder of images, parquet files or tar files.

    What is left out of a folder, and why, is said once in the log, by the main process.

    Args:
        dataset_name (`str`, *optional*):
            The name of a dataset on the Hub, or a folder that `datasets.load_dataset` understands.
        train_data_dir (`str`, *optional*):
            A folder of images (one subfolder per class, or none), of parquet files or of tar files (WebDataset), or one such
            file. [`find_image_set`] has the rules.
        resolution (`int`):
            Side of the square images in pixels.
        split (`str`, *optional*):
            The split. By default `"train"`; of a folder, what [`find_image_set`] says.
        dataset_config_name, image_column, label_column, caption_column, cache_dir (`str`, *optional*):
            Passed on to `datasets` and [`ImageDataset`].
        streaming (`bool`, defaults to `False`):
            Whether to read the images while training, without a copy on this disk.
        output_dir (`str`, *optional*):
            A folder that images are written to. It may not lie in a folder of images, which they would join.

    Returns:
        [`ImageDataset`] or, with `streaming`, [`ImageStream`].

    Raises:
        ValueError: If not exactly one source is given, or the source holds no image, or what it holds cannot be used.
    """
    if (dataset_name is None) == (train_data_dir is None):
        raise ValueError(
            "Give exactly one of `dataset_name` (Hub) and `train_data_dir` (local), got "
            f"{dataset_name!r} and {train_data_dir!r}."
        )
    if dataset_name is not None:
        dataset = _load_by_name(dataset_name, dataset_config_name, split or "train", cache_dir, streaming)
        identity = _identity(dataset, label_column)
    else:
        image_set = find_image_set(
            train_data_dir,
            split=split,
            image_column=image_column,
            label_column=label_column,
            caption_column=caption_column,
            progress=partial(tqdm, desc="find images", unit=" files", delay=5, disable=not is_main_process()),
        )
        if is_main_process():
            logger.log(WARNING if image_set.left_out else INFO, image_set.summary())
        if image_set.kind == "folder" and output_dir is not None and _is_in(output_dir, train_data_dir):
            raise ValueError(
                f"`output_dir` must not be in `train_data_dir` {train_data_dir!r}, or what it shows would become images of the set; "
                f"got {output_dir!r}."
            )
        dataset, identity = image_set.to_dataset(cache_dir, streaming), image_set.identity
    images = ImageStream if streaming else ImageDataset
    return images(dataset, resolution, image_column, label_column, caption_column, identity=identity)


def _load_by_name(name: str, config_name: str | None, split: str, cache_dir: str | None, streaming: bool):
    from datasets import load_dataset

    if os.path.isdir(name) and is_main_process():
        logger.warning(
            f"`dataset_name` {name!r} is a folder: `datasets` decides which of its files are the set, and says nothing of the others. "
            "With `train_data_dir` every file is used or named."
        )
    try:
        return load_dataset(name, config_name, split=split, cache_dir=cache_dir, streaming=streaming)
    except Exception as error:  # `datasets` has no single type for a set that it cannot read
        raise ValueError(f"`dataset_name` {name!r} cannot be read: {error}") from error


def _is_in(path: str, folder: str) -> bool:
    path, folder = (os.path.normcase(os.path.realpath(name)) for name in (path, folder))
    return (path + os.sep).startswith(folder.rstrip(os.sep) + os.sep)


def _identity(dataset, label_column: str | None) -> str | None:
    """
    Hash the columns, the number of images and the labels of a set that has a name. Nothing tells those of a stream.

    (Its fingerprint would also change with the place of a local folder, or with the card of a set on the Hub.)
    """
    if not hasattr(dataset, "__len__"):
        return None
    columns, labels = sorted(dataset.column_names), None
    if label_column in columns:
        labels = dataset[label_column][:], getattr(dataset.features[label_column], "names", None)
    return hashlib.sha256(repr((columns, len(dataset), labels)).encode()).hexdigest()[:16]
