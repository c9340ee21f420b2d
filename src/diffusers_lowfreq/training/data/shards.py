# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Folders of safetensors shards with an index, which is written last: a folder with an index is complete."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file


INDEX = "index.json"


@contextmanager
def written_whole(path: str) -> Iterator[str]:
    """
    A context that gives a temporary path to write to, and then renames it to `path`.

    A killed process leaves no half-written file, and two may write the same one at a time.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    yield temporary
    os.replace(temporary, path)


def save_shard(tensors: dict[str, torch.Tensor], path: str):
    """Save tensors as one file."""
    with written_whole(path) as temporary:
        save_file(tensors, temporary)


def save_index(index: dict, folder: str, indent: int | None = None):
    """Save the index of a folder, whose `"shards"` lists the files; it completes the folder."""
    with written_whole(os.path.join(folder, INDEX)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(index, file, indent=indent)


def is_complete(folder: str) -> bool:
    """Whether a folder has its index."""
    return os.path.isfile(os.path.join(folder, INDEX))


def load_shards(folder: str, title: str) -> tuple[dict, list[dict[str, torch.Tensor]]]:
    """
    Read the index of a folder and its shards, memory-mapped; an error calls the folder by `title`.

    Raises:
        ValueError: If the index is missing, or names a file that is not in the folder.
    """
    if not is_complete(folder):
        raise ValueError(f"`folder` {folder!r} holds no finished {title} ({INDEX} is missing).")
    with open(os.path.join(folder, INDEX), encoding="utf-8") as file:
        index = json.load(file)
    files = set(os.listdir(folder))
    missing = next((name for name in index["shards"] if name not in files), None)  # also a path out of the folder
    if missing is not None:
        raise ValueError(f"The {title} {folder!r} lacks its shard {missing}; delete the folder to rebuild it.")
    return index, [load_file(os.path.join(folder, name)) for name in index["shards"]]
