# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""What the names in a folder tell: its files in a fixed order, splits and classes. No file is opened."""

import os
import re
import stat
from collections.abc import Callable, Iterator


SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
MAX_REASONS = 40  # that the summary tells apart; the names of three files stand for each


class LeftOut(dict):
    """What is not used: `{why: (count, names of the first)}`."""

    def add(self, why: str, name: str):
        """Count a file or folder."""
        if why not in self and len(self) >= MAX_REASONS:
            why = "other files"
        count, names = self.get(why, (0, ()))
        self[why] = (count + 1, (*names, name) if count < 3 else names)


def stat_file(root: str, name: str) -> tuple[str, int, int]:
    """The name of a file, its size in bytes and its time of change in nanoseconds."""
    status = os.stat(os.path.join(root, name))
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a file")
    return name, status.st_size, status.st_mtime_ns


def walk_folder(root: str, left_out: LeftOut) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of the files below a folder, sorted by the whole name. Links are followed, loops are not."""

    def open_folder(name, parents):
        try:
            status = os.stat(os.path.join(root, name))
            identity = (status.st_dev, status.st_ino)
            if identity in parents:
                left_out.add("links to a folder that holds them", name)
                return
            with os.scandir(os.path.join(root, name)) as entries:
                names = [entry.name + "/" if _is_folder(entry) else entry.name for entry in entries]
        except OSError as error:
            left_out.add(f"folders that cannot be read ({error.strerror})", name or "./")
            return
        if not names:
            left_out.add("empty folders", name or "./")
        stack.append((name, (*parents, identity), iter(sorted(names))))  # "a/" sorts as whole names do

    stack = []
    open_folder("", ())
    while stack:
        folder, parents, names = stack[-1]
        name = next(names, None)
        if name is None:
            stack.pop()
        elif name.startswith("."):
            left_out.add("hidden files or folders", folder + name)
        elif name.endswith("/"):
            open_folder(folder + name, parents)
        else:
            try:
                yield stat_file(root, folder + name)
            except OSError as error:
                left_out.add(f"that cannot be opened ({error.strerror or error})", folder + name)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _canonical(split: str) -> str:
    return SPLITS.get(split.lower(), split.lower())


def _find_split(name: str, asked: str | None) -> tuple[str | None, str]:
    """The split that a name tells, and the name without its word and without digits."""
    words = "|".join(map(re.escape, (asked or "train", *SPLITS)))
    match = re.search(rf"(?<![^\W\d_])(?:{words})(?![^\W\d_])", name, re.IGNORECASE)
    if match is None:
        return None, name
    return _canonical(match[0]), re.sub(r"\d", "", f"{name[: match.start()]}*{name[match.end() :]}")


def path_split(name: str, asked: str | None) -> str | None:
    """The split that the name of a file tells, or else the innermost of its folders that tells one."""
    return next(filter(None, (_find_split(part, asked)[0] for part in reversed(name.split("/")))), None)


def folder_splits(names: list[str], asked: str | None) -> tuple[list[str | None], Callable[[str], str]]:
    """The split of each picture by its folders, and a function that cuts the folders of splits and above off a name."""
    top = len(_common_folder(names[0], names[-1]))

    def head(name):
        return name[top:].partition("/")[0] if "/" in name[top:] else None

    def tail(name):
        return name[top:].partition("/")[2]

    found = {folder: _find_split(folder, asked) for folder in set(map(head, names)) - {None}}
    splits = {split for split, _ in found.values()}
    alike = None not in splits and len({rest for _, rest in found.values()}) == 1
    if alike or (asked is not None and _canonical(asked) in splits):
        split_of = {folder: split for folder, (split, _) in found.items()}
        return [split_of.get(head(name)) for name in names], tail
    return [path_split(names[0][:top], asked)] * len(names), str


def choose_split(splits: set[str | None], asked: str | None, train_data_dir: str) -> str | None:
    """The split that is asked for, or else `"train"`, what names no split, or the only split there is."""
    named = sorted(splits - {None})
    if asked is not None and _canonical(asked) not in named:
        raise ValueError(
            f"`split` must be one of {named}, the splits that names in {train_data_dir!r} tell, got {asked!r}."
        )
    if asked is not None or "train" in named:
        return _canonical(asked or "train")
    if None not in splits and len(named) > 1:
        raise ValueError(f"`split` must be given (`--train_split`): {train_data_dir!r} holds the splits {named}.")
    return None if None in splits else named[0]


def class_folders(
    taken: list[str], names: list[str], tail: Callable[[str], str]
) -> tuple[Callable[[str], str | None], list[str]]:
    """A function that gives the class folder of a picture or `None`, and the class folders of all splits, sorted."""
    base = _common_folder(min(map(tail, taken)), max(map(tail, taken)))

    def class_of(name: str) -> str | None:
        below = tail(name)
        folder, slash, _ = below[len(base) :].partition("/")
        return folder if slash and below.startswith(base) else None

    classes = {class_of(name) for name in taken} - {None}
    if len(classes) > 1:  # a class has the same number in every split
        classes = {class_of(name) for name in names} - {None}
    return class_of, sorted(classes)


def _common_folder(first: str, last: str) -> str:
    """The deepest folder that holds all files between two in sorted order, with its slash, or `""`."""
    prefix = os.path.commonprefix([first, last])
    return prefix[: prefix.rfind("/") + 1]
