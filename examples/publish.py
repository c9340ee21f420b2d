#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Upload every shipped checkpoint to the Hub, each to a repository of its own, with its model card, and the Space.

    python examples/publish.py --namespace my-organisation

Pipelines and LoRAs become `NAMESPACE/NAME`, graders `NAMESPACE/grader-NAME`, the Space `NAMESPACE/coarse-to-fine`. In the cards,
the path in a clone of this repository becomes the name on the Hub; in the Space, the names of the checkpoints become those of the
namespace. Files that are already on the Hub are not uploaded again.
"""

import argparse
import os
import re
import shutil
import tempfile

from huggingface_hub import create_repo, upload_folder

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from diffusers_lowfreq import HUB_ID


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SPACE = "coarse-to-fine"
LINE = r'\("checkpoints/([\w.-]+)"\)  # from a clone'


def find_checkpoints(folder: str) -> dict[str, str]:
    """Map the names on the Hub, without the namespace, to folders."""
    found = {}
    for path, folders, files in os.walk(folder):
        folders.sort()
        name = os.path.basename(path)
        if "model_index.json" in files or LORA_WEIGHT_NAME_SAFE in files:
            found[name] = path
            folders.clear()  # its components are part of it
        elif "config.json" in files:
            found[f"grader-{name}"] = path
    if not found:
        raise ValueError(f"`checkpoints_dir` must hold pipelines, LoRAs or models, {folder!r} holds none.")
    return found


def publish(folder: str, repo_id: str, pattern: str, new: str, private: bool, token: str | None, **repository):
    """Upload a folder to a repository of its own, and replace what matches `pattern` in its texts by `new`."""
    create_repo(repo_id, exist_ok=True, private=private or None, token=token, **repository)
    with tempfile.TemporaryDirectory() as temporary:
        copy = os.path.join(temporary, "copy")
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for name in os.listdir(copy):
            if name.endswith((".md", ".py")):
                path = os.path.join(copy, name)
                with open(path, encoding="utf-8") as file:
                    text = file.read()
                with open(path, "w", encoding="utf-8") as file:
                    file.write(re.sub(pattern, new, text))
        upload_folder(repo_id=repo_id, folder_path=copy, repo_type=repository.get("repo_type"), token=token)
    print(f"{folder} -> {repo_id}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--namespace", default=HUB_ID.split("/")[0], help="a user or an organisation")
    parser.add_argument("--checkpoints_dir", default=os.path.join(ROOT, "checkpoints"))
    parser.add_argument("--private", action="store_true", help="for repositories that do not exist yet")
    parser.add_argument("--hub_token", help="by default that of `hf auth login`")
    args = parser.parse_args(argv)
    access = {"private": args.private, "token": args.hub_token}
    for name, folder in find_checkpoints(args.checkpoints_dir).items():
        repo_id = f"{args.namespace}/{name}"
        publish(folder, repo_id, LINE, rf'("{args.namespace}/\1")', **access)
    shipped = f"{args.namespace}/{HUB_ID.split('/')[1]}"
    space = os.path.join(ROOT, "examples", "space")
    repository = {"repo_type": "space", "space_sdk": "gradio"}
    publish(space, f"{args.namespace}/{SPACE}", re.escape(HUB_ID), shipped, **access, **repository)


if __name__ == "__main__":
    main()
