#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Upload every shipped checkpoint to the Hub, each to a repository of its own, with its model card.

    python examples/publish.py --namespace my-organisation

Pipelines and LoRAs become `NAMESPACE/NAME`, graders `NAMESPACE/grader-NAME`. What a card says of a clone of this repository is changed to
the name on the Hub. Files that are there already are not uploaded again.
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
LINE = re.compile(r'\("checkpoints/([\w.-]+)"\)  # from a clone')


def find_checkpoints(folder: str) -> dict[str, str]:
    """Map the names on the Hub, without the namespace, to folders."""
    found = {}
    for path, folders, files in os.walk(folder):
        folders.sort()
        name = os.path.basename(path)
        if "model_index.json" in files or LORA_WEIGHT_NAME_SAFE in files:
            found[name] = path
            folders.clear()  # its components belong to it
        elif "config.json" in files:
            found[f"grader-{name}"] = path
    if not found:
        raise ValueError(f"`checkpoints_dir` must hold pipelines, LoRAs or models, {folder!r} holds none.")
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--namespace", default=HUB_ID.split("/")[0], help="a user or an organisation")
    parser.add_argument("--checkpoints_dir", default=os.path.join(ROOT, "checkpoints"))
    parser.add_argument("--private", action="store_true", help="for repositories that do not exist yet")
    parser.add_argument("--hub_token", help="by default that of `hf auth login`")
    args = parser.parse_args(argv)
    for name, folder in find_checkpoints(args.checkpoints_dir).items():
        repo_id = f"{args.namespace}/{name}"
        repo_id = create_repo(repo_id, exist_ok=True, private=args.private or None, token=args.hub_token).repo_id
        with tempfile.TemporaryDirectory() as temporary:
            copy = shutil.copytree(folder, os.path.join(temporary, name))
            card = os.path.join(copy, "README.md")
            if os.path.isfile(card):
                with open(card, encoding="utf-8") as file:
                    text = file.read()
                with open(card, "w", encoding="utf-8") as file:
                    file.write(LINE.sub(rf'("{os.path.dirname(repo_id)}/\1")', text))
            upload_folder(repo_id=repo_id, folder_path=copy, token=args.hub_token)
        print(f"{folder} -> {repo_id}")


if __name__ == "__main__":
    main()
