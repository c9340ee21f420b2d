# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Which files of a folder are the image set. Every file is either used or named in the summary."""

import glob
import hashlib
import os
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ...guards.values import is_integer
from .folders import LeftOut, choose_split, class_folders, folder_splits, path_split, stat_file, walk_folder
from .metadata import METADATA, read_metadata, read_texts


ARCHIVES = (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")
NEVER_OPENED = "archives, which are never opened"
ROWS = 100_000  # of a dataset that are built at a time


@dataclass
class ImageSet:
    """
    The files of an image set, in a fixed order. Made by [`find_image_set`].

    Attributes:
        train_data_dir (`str`): The folder or file, as it was given.
        root (`str`): The folder that `files` are relative to.
        kind (`str`): `"folder"` of pictures, `"parquet"` or `"webdataset"` (tar files).
        files (`list[str]`): Names relative to `root`, with `/` between folders.
        labels (`np.ndarray`, *optional*): The class number of each picture.
        classes (`list[str]`, *optional*): The class names, sorted, where the labels are those of folders.
        captions (`list`, *optional*): The caption, or list of captions, of each picture.
        split (`str`, *optional*): The split that was taken, where names tell splits apart.
        read_beside (`int`): How many metadata and text files beside the pictures are read for labels and captions.
        left_out (`LeftOut`): What is not used, `{why: (count, names of the first)}`.
        fingerprint (`str`):
            A hash of names, sizes, times of change, labels and classes. It does not depend on where the folder is.
        identity (`str`):
            A hash of names, sizes, labels, classes and captions. A copy of the set has the same.
    """

    train_data_dir: str
    root: str
    kind: str
    files: list[str]
    image_column: str = "image"
    label_column: str | None = "label"
    caption_column: str | None = None
    labels: np.ndarray | None = None
    classes: list[str] | None = None
    captions: list | None = None
    split: str | None = None
    read_beside: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    fingerprint: str = ""
    identity: str = ""

    def summary(self) -> str:
        """Say what is used and what is left out, with why, in a block of lines."""
        endings = Counter(os.path.splitext(name)[1].lower() for name in self.files).most_common()
        left_out = sum(count for count, _ in self.left_out.values())
        lines = [f"Image set {self.train_data_dir!r}: {len(self.files):,} files used, {left_out:,} left out."]
        if self.files:
            lines.append(f"  used: {', '.join(f'{count:,} {ending}' for ending, count in endings)}")
        lines += [f"  split: {self.split!r}"] if self.split is not None else []
        if self.classes is not None:
            counts = np.bincount(self.labels, minlength=len(self.classes)).tolist()
            shown = [f"{name!r} ({count:,})" for name, count in zip(self.classes[:20], counts)]
            shown += ["…"] * (len(self.classes) > 20)
            lines.append(f"  classes, with all folders below them: {len(self.classes):,}: {', '.join(shown)}")
        elif self.files and self.kind == "folder" and self.label_column is not None:
            lines.append("  classes: none" if self.labels is None else f"  labels: column {self.label_column!r}")
        if self.captions is not None:
            lines.append(f"  captions: column {self.caption_column!r}")
        if self.read_beside:
            lines.append(f"  read beside the images: {self.read_beside:,} metadata or text files")
        for why, (count, names) in sorted(self.left_out.items(), key=lambda item: -item[1][0]):
            shown = [*map(repr, names), *["…"] * (count > len(names))]
            lines.append(f"  left out: {count:,} {why}: {', '.join(shown)}")
        return "\n".join(lines)

    def to_dataset(self, cache_dir: str | None = None, streaming: bool = False):
        """
        Make the `datasets.Dataset` of the set, or the `IterableDataset` with `streaming`.

        Raises:
            ValueError: If the files cannot be read, or pictures in folders are to be streamed.
        """
        import datasets

        if self.kind == "folder":
            if streaming:
                raise ValueError(
                    f"`train_data_dir` {self.train_data_dir!r} must hold parquet files to be streamed, or tar files: a folder of images would "
                    "be read in the order of its classes."
                )
            return self._pictures()
        paths = [os.path.join(os.path.abspath(self.root), name) for name in self.files]
        for path in paths:
            if "::" in path or to_text(path) != path:
                raise ValueError(
                    f"`train_data_dir` {self.train_data_dir!r}: {path!r} has a name that `datasets` cannot read; rename it."
                )
        try:
            # `datasets` takes paths for patterns
            options = {"data_files": [glob.escape(path) for path in paths], "cache_dir": cache_dir}
            dataset = datasets.load_dataset(self.kind, split="train", streaming=streaming, **options)
        except Exception as error:  # `datasets` has no one type for what it cannot read
            raise ValueError(
                f"`train_data_dir` {self.train_data_dir!r} holds no readable image set: {error}"
            ) from error
        if self.kind == "webdataset":  # its columns are the endings of its files
            images = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
            renamed = {"cls": self.label_column} if self.label_column else {}
            renamed |= dict.fromkeys(images[:1], self.image_column)
            renamed = {old: new for old, new in renamed.items() if new not in dataset.features}
            dataset = dataset.rename_columns({old: new for old, new in renamed.items() if old in dataset.features})
        if streaming:
            return dataset
        return datasets.Dataset(dataset.data, info=dataset.info, fingerprint=self.fingerprint)

    def _pictures(self):
        """The dataset of pictures in folders: their paths, not their bytes."""
        import datasets
        import pyarrow as pa

        root, images = os.path.abspath(self.root), []
        for start in range(0, len(self.files), ROWS):
            names = self.files[start : start + ROWS]
            paths = pa.array([to_text(os.path.join(root, name)) for name in names], pa.string())
            images.append(pa.StructArray.from_arrays([pa.nulls(len(names), pa.binary()), paths], ["bytes", "path"]))
        columns = {self.image_column: pa.chunked_array(images)}
        if self.labels is not None:
            columns[self.label_column] = pa.array(self.labels, pa.int64())
        if self.captions is not None:
            captions = self.captions
            if any(isinstance(caption, list) for caption in captions):
                captions = [caption if isinstance(caption, list) else [caption] for caption in captions]
            try:
                columns[self.caption_column] = pa.array(captions)
            except (pa.ArrowException, UnicodeEncodeError) as error:
                raise ValueError(
                    f"`caption_column` {self.caption_column!r} must hold a string or a list of strings for every image: {error}"
                ) from error
        table = pa.table(columns)
        features = datasets.Features.from_arrow_schema(table.schema)
        features[self.image_column] = datasets.Image(decode=False)
        if self.classes is not None:
            features[self.label_column] = datasets.ClassLabel(names=self.classes)
        table = datasets.table.InMemoryTable(table.cast(features.arrow_schema))
        return datasets.Dataset(table, info=datasets.DatasetInfo(features=features), fingerprint=self.fingerprint)


def find_image_set(
    train_data_dir: str,
    *,
    split: str | None = None,
    image_column: str = "image",
    label_column: str | None = "label",
    caption_column: str | None = None,
    progress=None,
) -> ImageSet:
    """
    Find the image set in a folder, in the order of the names of its files.

    *What is used.* Every file whose ending the installed Pillow reads, wherever it lies; links are followed, and names that
    begin with a dot are left out. A folder of parquet files that have the image column is a set of these files instead, and one
    of tar files alone is a WebDataset.

    *Classes* are the folders directly below the deepest folder that holds all pictures: `cat/1.png` and `dog/poodle/2.png` are
    a cat and a dog. Where there are fewer than two, the set has no classes. A picture beside the class folders has no class and
    is left out, unless `label_column` is `None`.

    *Splits.* A name tells its split by one of the words train, training; validation, valid, val, dev; test, testing, eval,
    evaluation, with no letter before or behind: `data/train-00000-of-00001.parquet`, `part-test-0.parquet`,
    `train/0.parquet`. Of parquet and tar files the file name counts first, then its folders. Folders of pictures are splits only
    where all folders of one level are named alike but for that word and digits, as `train2017` and `val2017` are: `train` beside
    `bus` is a class.

    *Metadata* are files `metadata.csv`, `metadata.jsonl` and `metadata.parquet` with a column `file_name`, relative to their
    folder. Pictures come in the order of its rows, then those without a row. Only where it has the caption or the label column
    that is asked for does it decide what the set is: then each of its rows is one sample, and pictures without a value are left
    out. The caption column `"txt"` stands for text files beside the pictures, `1.txt` for `1.png`.

    Args:
        train_data_dir (`str`):
            A folder, one parquet file or one tar file.
        split (`str`, *optional*):
            The split. By default `"train"` where a name tells it, else what names no split, else the only split there is.
        image_column (`str`, defaults to `"image"`), label_column (`str`, *optional*, defaults to `"label"`):
            The columns of parquet files and metadata. The classes of folders are the label column `"label"`.
        caption_column (`str`, *optional*):
            The column of captions.
        progress (callable, *optional*):
            Wraps the iterable of files as the folder is walked, for example `tqdm`.

    Raises:
        ValueError: If there is no image, the split or the captions are not found, or metadata cannot be read.
    """
    if image_column in (label_column, caption_column):
        raise ValueError(
            f"`image_column` {image_column!r} must hold images, and cannot be the column of labels or captions too."
        )
    train_data_dir = os.fspath(train_data_dir)
    if not os.path.exists(train_data_dir):
        raise ValueError(f"`train_data_dir` {train_data_dir!r} does not exist.")
    if split is not None and (not isinstance(split, str) or not split):
        raise ValueError(f"`split` must be the name of a split or None, got {split!r}.")
    root, only = train_data_dir, None
    if os.path.isfile(train_data_dir):
        root, only = os.path.dirname(train_data_dir) or ".", os.path.basename(train_data_dir)
    result = ImageSet(train_data_dir, root, "folder", [], image_column, label_column, caption_column)
    walk = walk_folder(root, result.left_out) if only is None else [stat_file(root, only)]
    found = _sort_by_kind(walk if progress is None else progress(walk), only, result)
    files = _decide_kind(found, result)
    if not files.names:
        raise ValueError(f"`train_data_dir` {train_data_dir!r} holds no readable image set. {result.summary()}")
    if result.kind == "folder":
        splits, tail = folder_splits(files.names, split)
    else:
        splits, tail = [path_split(name, split) for name in files.names], None
    result.split = choose_split(set(splits), split, train_data_dir)
    for name, of_name in zip(files.names, splits):
        if of_name != result.split:
            result.left_out.add("of no split" if of_name is None else f"of the split {of_name!r}", name)
    taken = files.select(row for row, of_name in enumerate(splits) if of_name == result.split)
    if result.kind == "folder":
        class_of, classes = class_folders(taken.names, files.names, tail)
        taken = _label_and_caption(taken, found, class_of, classes, result)
        if not taken.names:
            raise ValueError(f"`train_data_dir` {train_data_dir!r} leaves no image to train on. {result.summary()}")
    result.files = taken.names
    result.fingerprint = _digest(result, taken, exact=True)
    result.identity = _digest(result, taken, exact=False)
    return result


def to_text(path: str) -> str:
    """Write a path as valid Unicode. Bytes that are no UTF-8 become a NUL, which no path has, and two digits."""
    return re.sub("[\udc80-\udcff]", lambda match: f"\0{ord(match[0]) - 0xDC00:02x}", path)


def to_path(text: str) -> str:
    """Undo [`to_text`]."""
    return re.sub("\0(..)", lambda match: chr(0xDC00 + int(match[1], 16)), text)


class _Files:
    """Names of files with their sizes in bytes and times of change in nanoseconds; 16 bytes for each beside its name."""

    def __init__(self, names=(), sizes=(), times=()):
        self.names, self.sizes, self.times = list(names), array("q", sizes), array("q", times)

    def add(self, name: str, size: int, time: int):
        self.names.append(name)
        self.sizes.append(size)
        self.times.append(time)

    def select(self, rows) -> "_Files":
        rows = list(rows)
        return _Files(*([column[row] for row in rows] for column in (self.names, self.sizes, self.times)))


def _sort_by_kind(walk, only: str | None, result: ImageSet) -> dict[str, _Files]:
    """Sort files into pictures, parquet, tar, metadata and text files; the rest is left out. The `only` file is no picture."""
    Image.init()
    readable = {ending for ending, format in Image.registered_extensions().items() if format in Image.OPEN}
    found = {kind: _Files() for kind in ("pictures", ".parquet", ".tar", "metadata", ".txt")}
    for name, size, time in walk:
        ending = os.path.splitext(name)[1].lower()
        if only is not None:
            kind = ".tar" if ending == ".tar" else ".parquet"
        elif ending in readable:
            kind = "pictures"
        else:
            kind = "metadata" if name.rpartition("/")[2] in METADATA else ending
        if kind in found and (kind != ".txt" or result.caption_column == "txt"):
            found[kind].add(name, size, time)
        elif ending in ARCHIVES:
            result.left_out.add(NEVER_OPENED, name)
        elif ending == ".txt":
            result.left_out.add("text files, which are read for the caption column 'txt' alone", name)
        else:
            shown = ending if re.fullmatch(r"\.[a-z]\w{0,9}", ending) else "none"
            result.left_out.add(f"without the ending of an image (ending {shown})", name)
    return found


def _decide_kind(found: dict[str, _Files], result: ImageSet) -> _Files:
    """Decide what the set consists of, and name what lies beside."""
    pictures, tables, tars = found["pictures"], found[".parquet"], found[".tar"]
    if tables.names and (not pictures.names and not tars.names or _has_column(result, tables.names[0])):
        result.kind = "parquet"
    elif tars.names and not pictures.names:
        result.kind = "webdataset"
    used = {"folder": ("pictures", "metadata", ".txt"), "parquet": (".parquet",), "webdataset": (".tar",)}[result.kind]
    why = {".tar": NEVER_OPENED, ".parquet": f"parquet files without the column {result.image_column!r}"}
    for kind, files in found.items():
        for name in files.names if kind not in used else ():
            result.left_out.add(why.get(kind, f"{kind.removeprefix('.')} beside a set of {result.kind} files"), name)
    return found[used[0]]


def _has_column(result: ImageSet, name: str) -> bool:
    import pyarrow.parquet

    try:
        return result.image_column in pyarrow.parquet.read_schema(os.path.join(result.root, name)).names
    except Exception:  # the file is damaged
        return False


def _label_and_caption(pictures: _Files, found: dict[str, _Files], class_of, classes, result: ImageSet) -> _Files:
    """Give pictures their labels and captions, in the order of the metadata; leave out those that lack one."""
    names, label, caption = pictures.names, result.label_column, result.caption_column
    rows, columns = read_metadata(found["metadata"].names, names, result)
    why = {column: f"images without a {column!r} in the metadata" for column in columns}
    if label == "label" and label not in columns and len(classes) > 1:
        number_of = {folder: number for number, folder in enumerate(classes)}
        columns[label] = [number_of.get(class_of(names[row])) for row in rows]
        why[label] = "images beside the class folders"
        result.classes = [folder.encode("utf-8", "backslashreplace").decode() for folder in classes]
    if caption == "txt" and caption not in columns:
        columns[caption] = read_texts([names[row] for row in rows], found[".txt"].names, result)
        why[caption] = "images without a text file"
    kept = []
    for index, row in enumerate(rows):
        missing = next((column for column in columns if columns[column][index] is None), None)
        if missing is None:
            kept.append(index)
        else:
            result.left_out.add(why[missing], names[row])
    columns = {column: [values[index] for index in kept] for column, values in columns.items()}
    if label in columns and kept:
        values = columns[label]
        wrong = [value for value in values if not is_integer(value) or not 0 <= value < 2**63]
        if wrong:
            raise ValueError(f"`label_column` {label!r} must hold integers from 0, got {wrong[0]!r} in the metadata.")
        result.labels = np.asarray(values, np.int64)
    result.captions = columns.get(caption)
    return pictures.select([rows[index] for index in kept])


def _digest(result: ImageSet, files: _Files, exact: bool) -> str:
    """Hash what the set is: with `exact` the times of change too, without them the captions."""
    # `datasets` hashes absolute paths, so a folder that was moved had all its latents made again. This hash cannot be equal to
    # that one: caches of latents of earlier versions are made again once.
    digest = hashlib.sha256(repr((result.kind, result.classes)).encode())
    for name, size, time in zip(files.names, files.sizes, files.times):
        digest.update(os.fsencode(f"{name}\0{size}\0{time if exact else 0}\n"))
    if result.labels is not None:
        digest.update(result.labels.astype("<i8").tobytes())
    for caption in () if exact else result.captions or ():
        digest.update(f"{caption!r}\n".encode())
    return digest.hexdigest()[:16]
