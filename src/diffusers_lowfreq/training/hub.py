# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The repository on the Hub that a script pushes its result to."""

import os

from huggingface_hub import create_repo, upload_folder


NOT_UPLOADED = ["*checkpoint-*", "cache/*", "logs/*", ".*"]


def prepare_repository(accelerator, args) -> str:
    """
    Return the name of the repository, and create it with `--push_to_hub`.

    Call it before anything else, so that a wrong name or token shows before the training.
    """
    repo_id = args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))
    if args.push_to_hub and accelerator.is_main_process:
        repo_id = create_repo(repo_id, exist_ok=True, token=args.hub_token).repo_id
    return repo_id


def upload_output(repo_id: str, args):
    """Upload the output folder with `--push_to_hub`, without checkpoints, caches and logs."""
    if args.push_to_hub:
        upload_folder(repo_id=repo_id, folder_path=args.output_dir, ignore_patterns=NOT_UPLOADED, token=args.hub_token)
