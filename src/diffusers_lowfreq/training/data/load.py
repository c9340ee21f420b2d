# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""From the options of a script, or the name of a dataset or a folder, to its images."""

import glob
import os

from .images import ImageDataset
from .stream import ImageStream


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
        image_column=args.image_column,
        **columns,
    )


def load_images(
    dataset_name: str | None = None,
    train_data_dir: str | None = None,
    *,
    resolution: int,
    dataset_config_name: str | None = None,
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = "label",
    caption_column: str | None = None,
    cache_dir: str | None = None,
    streaming: bool = False,
):
    """
    Find images by the name of a dataset on the Hub, or in a local folder of images or parquet files.

    Args:
        dataset_name (`str`, *optional*):
            The name of a dataset on the Hub, or a folder that `datasets.load_dataset` understands.
        train_data_dir (`str`, *optional*):
            A folder of images (one subfolder per class, or none), a folder of parquet files, or one parquet file.
        resolution (`int`):
            Side of the square images in pixels.
        dataset_config_name, split, image_column, label_column, caption_column, cache_dir (`str`, *optional*):
            Passed on to `datasets` and [`ImageDataset`].
        streaming (`bool`, defaults to `False`):
            Whether to read the images while training, without a copy on this disk.

    Returns:
        [`ImageDataset`] or, with `streaming`, [`ImageStream`].

    Raises:
        ValueError: If not exactly one source is given, or the source holds no image.
    """
    from datasets import load_dataset

    if (dataset_name is None) == (train_data_dir is None):
        raise ValueError(
            "Give exactly one of `dataset_name` (Hub) and `train_data_dir` (local), got "
            f"{dataset_name!r} and {train_data_dir!r}."
        )
    options = {"cache_dir": cache_dir, "streaming": streaming}
    if dataset_name is not None:
        try:
            dataset = load_dataset(dataset_name, dataset_config_name, split=split, **options)
        except Exception as error:  # `datasets` has no single type for a set that it cannot read
            raise ValueError(f"`dataset_name` {dataset_name!r} cannot be read: {error}") from error
    else:
        if not os.path.exists(train_data_dir):
            raise ValueError(f"`train_data_dir` {train_data_dir!r} does not exist.")
        if os.path.isfile(train_data_dir):
            files = [train_data_dir]
        else:
            files = sorted(glob.glob(os.path.join(train_data_dir, "*.parquet")))
            # `<split>*.parquet` if there are such files, otherwise all of them
            files = [f for f in files if os.path.basename(f).startswith(split)] or files
        if streaming and not files:
            raise ValueError(
                f"`train_data_dir` {train_data_dir!r} must hold parquet files to be streamed: a folder of images would be read in "
                "the order of its classes."
            )
        try:
            if files:
                dataset = load_dataset("parquet", data_files=files, split="train", **options)
            else:
                dataset = load_dataset("imagefolder", data_dir=train_data_dir, split="train", **options)
        except Exception as error:
            raise ValueError(f"`train_data_dir` {train_data_dir!r} holds no readable image set: {error}") from error
    images = ImageStream if streaming else ImageDataset
    return images(dataset, resolution, image_column, label_column, caption_column)
