# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What may be read from a saved pipeline: files next to their index, and known classes. No file causes an import."""

import glob
import importlib
import json
import os
import sys


def check_shards(folder: str):
    """
    Check that an index of shards does not point outside its folder: transformers would follow it.

    Raises:
        ValueError: If it does.
    """
    for path in glob.glob(os.path.join(glob.escape(folder), "*.index*.json")):
        with open(path, encoding="utf-8") as file:
            names = set(json.load(file).get("weight_map", {}).values())
        outside = sorted(name for name in names if os.path.basename(name) != name)
        if outside:
            raise ValueError(f"{path!r} must name files beside it, got {outside[0]!r}.")


def check_component(name: str, base: type, library: str = "", class_name: str = "", *more):
    """
    Check the class of a component that a `model_index.json` names.

    Only diffusers, transformers and this library are imported. Of other libraries, only those that the program has already
    imported are accepted.

    Args:
        name (`str`):
            The component.
        base (`type`):
            The class that it must have, or derive from.
        library (`str`), class_name (`str`), more:
            The entry of the file.

    Raises:
        ValueError: If it has another class, or the entry has another form.
    """
    own = ("diffusers", "transformers", __name__.split(".")[0])
    module = importlib.import_module(library) if library in own else sys.modules.get(library)
    found = getattr(module, str(class_name), None)
    is_known = isinstance(found, type) and issubclass(found, base) and (name != "vae" or hasattr(found, "encode"))
    if more or not is_known:
        raise ValueError(
            f"`{name}` in the model_index.json must be {'an autoencoder' if name == 'vae' else f'a {base.__name__}'} of "
            f"diffusers, transformers, this library or another that the program has imported, got {library}.{class_name}."
        )
