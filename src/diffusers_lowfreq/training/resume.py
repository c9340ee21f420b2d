# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Which run a checkpoint is of, and which run may go on from it."""

import argparse
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import uuid4

from .engines import engine
from .schedule import decay_start


ARGUMENTS = "training_args.json"
# Names of a folder or of a repository, which may be written in several ways
PATHS = re.compile(r"train_data_dir|dataset_name|teacher|.*_name_or_path")


@dataclass
class RunIdentity:
    """
    What each checkpoint of a run says of it, beside its settings.

    Attributes:
        images (`dict`, *optional*): The set that it is trained on, see [`describe_images`].
        run (`str`): Another one for each run. A resumed run keeps it.
    """

    images: dict | None = None
    run: str = field(default_factory=lambda: uuid4().hex[:16])


def describe_images(images) -> dict[str, object]:
    """
    Describe a set of images, so that a resume can tell whether it has changed.

    Args:
        images ([`ImageDataset`] or [`ImageStream`]):
            The set.

    Returns:
        `dict`: The `number` of images (`None`: a stream), the `classes` by name, and the `identity` (a hash of the set, or `None`
        if it is not known). None of them depends on where the set is.
    """
    head = getattr(images, "head", None)
    labels = (images if head is None else head).id2label
    return {
        "number": len(images) if head is None else None,
        "classes": None if labels is None else list(labels.values()),
        "identity": getattr(images, "identity", None),
    }


# ------------------------------------------------------------------------------------------------------- what there is


def list_checkpoints(output_dir: str, prefix: str = "") -> list[str]:
    """List the names of the checkpoints in a folder, by step."""
    pattern = re.compile(rf"{re.escape(prefix)}checkpoint-(\d+)")
    found = [name for name in os.listdir(output_dir) if pattern.fullmatch(name)] if os.path.isdir(output_dir) else []
    return sorted(found, key=step_of)


def step_of(path: str) -> int:
    """Return the step of a checkpoint, from its name."""
    return int(path.rsplit("-", 1)[1])


def find_checkpoint(path: str, output_dir: str, prefix: str) -> str | None:
    """Find the checkpoint of the network with this prefix; `None` if there is none yet."""
    path, latest_in = os.path.normpath(path), None
    if path == "latest":
        latest_in = output_dir
    elif not os.path.isdir(path):
        raise ValueError(
            f"`resume_from_checkpoint` must be `latest` or a local folder `checkpoint-<step>`, got {path!r}."
        )
    elif not re.fullmatch(r"(prior-)?checkpoint-\d+", os.path.basename(path)):
        raise ValueError(f"`resume_from_checkpoint` must be `latest` or a folder `checkpoint-<step>`, got {path!r}.")
    elif not re.fullmatch(rf"{re.escape(prefix)}checkpoint-\d+", os.path.basename(path)):
        latest_in = os.path.dirname(path)  # it belongs to the other network of the run
    if latest_in is None:
        return path
    names = list_checkpoints(latest_in, prefix)
    return os.path.join(latest_in, names[-1]) if names else None


def fixed_settings(accelerator, args: argparse.Namespace, global_batch_size: int) -> dict:
    """What a resume must not change: the options that are not free, the size of the global batch, and the engine."""
    values = {k: v for k, v in vars(args).items() if k not in getattr(args, "free", ())}
    return json.loads(json.dumps(values | {"global_batch_size": global_batch_size, "engine": engine(accelerator)}))


def read_settings(path: str) -> dict:
    """Read what a checkpoint says of its run: the settings, and what [`RunIdentity`] holds."""
    try:
        with open(os.path.join(path, ARGUMENTS), encoding="utf-8") as file:
            settings = json.load(file)
        if not isinstance(settings, dict):
            raise ValueError(f"{ARGUMENTS} must hold one JSON object")
    except (OSError, ValueError) as error:
        raise ValueError(f"`resume_from_checkpoint` {path!r} is not a whole checkpoint: {error}") from error
    return settings


def run_of(path: str, args: argparse.Namespace) -> str | None:
    """
    Return the run that a checkpoint is of, or `None` if it is not whole.

    Those of the first version do not say it; the ones with the same settings count as one run.
    """
    try:
        saved = read_settings(path)
    except ValueError:
        return None
    if saved.get("run") is not None:
        return saved["run"]
    defaults = json.loads(json.dumps(getattr(args, "defaults", {})))
    settings = {k: _plain(k, v) for k, v in saved.items() if k not in defaults or v != defaults[k]}
    if saved.get("lr_scheduler") == "warmup_stable_decay":  # a resume may change its length
        settings = {k: v for k, v in settings.items() if not k.endswith("max_train_steps")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def of_other_runs(args: argparse.Namespace, prefix: str, run: str | None) -> list[str]:
    """List the whole checkpoints in `args.output_dir` that are of other runs than `run`."""
    names = list_checkpoints(args.output_dir, prefix)
    return [name for name in names if run_of(os.path.join(args.output_dir, name), args) not in (run, None)]


# ----------------------------------------------------------------------------------------------------- what is refused


def check_output_dir(args: argparse.Namespace, images: dict | None, prefixes: Iterable[str] = ("",)):
    """
    Refuse to start a run beside the checkpoints of another one, or to resume a run on other images.

    Call it before the images are encoded. (`Run.resume` calls it too.)

    Args:
        args ([`Options`]):
            The options of the script.
        images (`dict`, *optional*):
            The set, see [`describe_images`].
        prefixes (`Iterable[str]`, defaults to `("",)`):
            What the names of the checkpoints begin with, for each network that is trained.

    Raises:
        ValueError: If `output_dir` holds checkpoints of another run, or the run that is resumed was trained on other images.
    """
    for prefix in prefixes:
        path = None
        if args.resume_from_checkpoint:
            path = find_checkpoint(args.resume_from_checkpoint, args.output_dir, prefix)
        if path is None:
            found = list_checkpoints(args.output_dir, prefix)
            if found:
                raise ValueError(
                    f"`output_dir` {args.output_dir!r} holds {_shown(found)} of an earlier run. Go on with that run with "
                    "`--resume_from_checkpoint latest`, use another `output_dir`, or delete them."
                )
            continue
        refuse_other_images(path, read_settings(path), images)
        others = of_other_runs(args, prefix, run_of(path, args))
        if others:
            raise ValueError(
                f"`output_dir` {args.output_dir!r} holds {_shown(others)} of another run than that of "
                f"`resume_from_checkpoint`, {path!r}. Move them away, or go on in another `output_dir` with "
                f"`--resume_from_checkpoint` and the path of the checkpoint."
            )


def _shown(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more checkpoints" if len(names) > 3 else "")


def refuse_other_images(path: str, saved: dict, images: dict | None):
    """Refuse a checkpoint of a run on other images. What one of the two does not know is not compared."""
    before = saved.get("images")
    if before is None or images is None:
        return
    changed = []
    if before["number"] != images["number"]:
        changed.append(f"{before['number']} -> {images['number']} images")
    if before["classes"] != images["classes"]:
        changed.append(_class_change(before["classes"], images["classes"]))
    identities = before["identity"], images["identity"]
    if not changed and None not in identities and identities[0] != identities[1]:
        changed.append("other files, labels or captions")
    if changed:
        raise ValueError(
            f"`resume_from_checkpoint` {path!r}: the images have changed since it was saved ({'; '.join(changed)}). Restore "
            "them as they were, or start a new run in another `output_dir`."
        )


def _class_change(before: list[str] | None, after: list[str] | None) -> str:
    before, after = before or [], after or []
    change = f"{len(before)} -> {len(after)} classes"
    for what, names, others in (("without", before, after), ("new", after, before)):
        missing = sorted(set(names) - set(others))
        if missing:
            change += f", {what} {', '.join(map(repr, missing[:5]))}{', …' if len(missing) > 5 else ''}"
    return change + (", in another order" if sorted(before) == sorted(after) else "")


def refuse_other_settings(path: str, saved: dict, prefix: str, current: dict, images, args: argparse.Namespace):
    """Refuse a checkpoint of other settings than `current`. What it does not know counts as the default."""
    defaults = json.loads(json.dumps({k: v for k, v in getattr(args, "defaults", {}).items() if k in current}))
    before, step = saved.get("images"), step_of(path)
    saved = defaults | {k: v for k, v in saved.items() if k not in ("run", "images")}
    if current.get("lr_scheduler") == saved.get("lr_scheduler") == "warmup_stable_decay":
        name = f"{prefix.replace('-', '_')}max_train_steps"
        if step <= min(decay_start(settings[name]) for settings in (saved, current)):  # while the rate is constant
            current = current | {k: saved.get(k, current[k]) for k in current if k.endswith("max_train_steps")}
    names = saved | current
    if before is not None and images is not None and None not in (before["identity"], images["identity"]):
        names.pop("train_data_dir", None)  # the sets themselves have been compared
    changed = [
        f"{k}: {saved.get(k)!r} -> {current.get(k)!r}"
        for k in sorted(names)
        if _plain(k, saved.get(k)) != _plain(k, current.get(k))
    ]
    if changed:
        raise ValueError(
            f"`resume_from_checkpoint` {path!r} comes from another configuration ({'; '.join(changed)}). Use the same "
            "arguments, or another `output_dir`."
        )


def _plain(name: str, value):
    """Write a path in one way: `images/` is `images`."""
    return os.path.normpath(value) if isinstance(value, str) and PATHS.fullmatch(name) else value
