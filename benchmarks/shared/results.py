# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Results files: JSON that says which script wrote it."""

import json
import os


def read(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write(result: dict, path: str):
    """Write a results file; an interruption leaves the old one whole."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    os.replace(path + ".new", path)


def refuse_existing(path: str | None):
    """Refuse to overwrite a results file."""
    if path is not None and os.path.exists(path):
        raise ValueError(f"`output` must not exist, nothing is overwritten: {path!r} does.")


def earlier(path: str, header: dict, keys: tuple[str, ...]) -> dict | None:
    """
    Read the results that a benchmark adds to, or return `None` if there are none.

    Args:
        path (`str`):
            The results file.
        header (`dict`):
            What the benchmark would write now.
        keys (`tuple[str, ...]`):
            The keys that must hold the same as before.

    Raises:
        ValueError: If a key differs: results of two configurations are not mixed.
    """
    if not os.path.exists(path):
        return None
    before = read(path)
    for key in keys:
        if before.get(key) != json.loads(json.dumps(header[key])):
            raise ValueError(
                f"`output` {path!r} holds results of another configuration (`{key}`); nothing is overwritten."
            )
    return before
