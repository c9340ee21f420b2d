# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What may be read from a saved pipeline: files beside their index, classes that belong there. Nothing is imported for a file."""

import glob
import importlib
import json
import os
import sys


def check_shards(folder: str):
    """
    Refuse an index of shards that leaves its folder; transformers follows it.

    Raises:
        ValueError: If there is one.
    """
    for path in glob.glob(os.path.join(glob.escape(folder), "*.index*.json")):
        with open(path, encoding="utf-8") as file:
            names = set(json.load(file).get("weight_map", {}).values())
        outside = sorted(name for name in names if os.path.basename(name) != name)
        if outside:
            raise ValueError(f"{path!r} must name files beside it, got {outside[0]!r}.")


def check_component(name: str, kind: type, library: str = "", class_name: str = "", *more):
    """
    Refuse a component of a `model_index.json` that is not of the class that a pipeline takes there.

    Only diffusers, transformers and this library are imported; of others, what the program has imported already counts.

    Args:
        name (`str`):
            The component.
        kind (`type`):
            The class that it must be, or be derived from.
        library (`str`), class_name (`str`), more:
            What stands in the file.

    Raises:
        ValueError: If it is of another class, or stands there in another form.
    """
    own = ("diffusers", "transformers", __name__.split(".")[0])
    module = importlib.import_module(library) if library in own else sys.modules.get(library)
    found = getattr(module, str(class_name), None)
    is_kind = isinstance(found, type) and issubclass(found, kind) and (name != "vae" or hasattr(found, "encode"))
    if more or not is_kind:
        raise ValueError(
            f"`{name}` in the model_index.json must be {'an autoencoder' if name == 'vae' else f'a {kind.__name__}'} of "
            f"diffusers, transformers, this library or another that the program has imported, got {library}.{class_name}."
        )
