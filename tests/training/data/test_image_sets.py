# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Which files of a folder are the set: each is used or named, with the class of its folder, in a fixed order."""

import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scripts import workplace

from diffusers_lowfreq.training import load_images
from diffusers_lowfreq.training.data.image_sets import find_image_set, to_path, to_text


pytestmark = pytest.mark.usefixtures(workplace.__name__)

utf8_only = pytest.mark.skipif(sys.platform != "linux", reason="the file system takes only names of UTF-8")


def touch(*names: str):
    """Empty files: what they hold is judged as they are decoded."""
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_parquet(name: str, column: str = "image", number: int = 2):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    rows = {column: [Image.new("RGB", (8, 8))] * number}
    with open(name, "wb") as file:
        datasets.Dataset.from_dict(rows).cast_column(column, datasets.Image()).to_parquet(file)


def write_metadata(name: str, rows: list[dict]):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        dataset = datasets.Dataset.from_list(rows)
        dataset.to_csv(name) if name.endswith(".csv") else dataset.to_parquet(name)


def named(images) -> dict[str, str]:
    """The class of each picture, by name."""
    return dict(zip(images.files, (images.classes[label] for label in images.labels)))


def left_out(images) -> int:
    return sum(count for count, _ in images.left_out.values())


# ------------------------------------------------------------------------------------------------------- any folder

Image.init()
READABLE = sorted(ending for ending, format in Image.registered_extensions().items() if format in Image.OPEN)
FOLDERS = ["bus", "car", "train", "test", "val", "a-b", "a", "a b", "[2024]", "*", "été", "x.png", ".hidden", "__x__"]
FOLDERS += [os.fsdecode(b"caf\xe9")] * (sys.platform == "linux")
STEMS = ["1", "1-0", "test_1", "train-00000-of-00001", "image.tar", "[1]", "ü", ".1"] + FOLDERS[-1:]
ENDINGS = [*READABLE, ".PNG", ".Jpeg", "", ".txt", ".json", ".zip", ".tar", ".bak", ".png.bak", ".mp4", ".parquets"]
files = st.builds(
    lambda folders, stem, ending: "/".join([*folders, stem + ending]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(STEMS),
    st.sampled_from(ENDINGS),
)


def make_tree(root: str, names: set[str]):
    """Make files; one that would need a folder in the place of another file is left away."""
    for name in sorted(names):
        try:
            touch(os.path.join(root, name))
        except OSError:
            pass


@given(st.sets(files, max_size=20))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_file_is_used_or_named(names):
    with tempfile.TemporaryDirectory() as root:
        make_tree(root, {"bus/0.png", "car/0.png", *names})
        pictures, others, hidden = [], 0, set()
        for folder, _, in_folder in os.walk(root):
            for name in in_folder:
                parts = os.path.relpath(os.path.join(folder, name), root).split(os.sep)
                dots = [i for i, part in enumerate(parts) if part.startswith(".")]
                if dots:
                    hidden.add("/".join(parts[: dots[0] + 1]))
                elif os.path.splitext(name)[1].lower() in READABLE:
                    pictures.append("/".join(parts))
                else:
                    others += 1
        pictures.sort()
        images = find_image_set(root, label_column=None)
        assert images.files == pictures and images.labels is None
        assert left_out(images) == others + len(hidden)
        labelled = find_image_set(root)
        in_folders = [name for name in pictures if "/" in name]
        assert labelled.files == in_folders
        assert labelled.classes == sorted(
            {name.split("/")[0].encode("utf-8", "backslashreplace").decode() for name in in_folders}
        )
        for name, of_name in named(labelled).items():
            assert of_name == name.split("/")[0].encode("utf-8", "backslashreplace").decode()
        assert left_out(labelled) == left_out(images) + len(pictures) - len(in_folders)
        dataset = labelled.to_dataset()
        assert [to_path(row["path"]) for row in dataset["image"]] == [os.path.join(root, name) for name in in_folders]
        assert dataset["label"][:] == labelled.labels.tolist()
        labelled.summary().encode()


@given(st.binary().map(lambda name: os.fsdecode(name.replace(b"\0", b""))))
@settings(deadline=None, derandomize=True, database=None)
def test_any_path_is_written_as_unicode_and_read_again(path):
    to_text(path).encode()
    assert to_path(to_text(path)) == path


def test_order_and_labels_are_those_of_datasets(workplace):
    """Draws are keyed by the index of an image."""
    names = [
        "a/1.png",
        "a/10.png",
        "a/1-0.JPG",
        "a/é.png",
        "a-b/1.png",
        "a b/1.png",
        "B/1.webp",
        "ab/1.png",
        "a/z.txt",
    ]
    for name in names:
        Path("d", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(f"d/{name}", "png")
    theirs = datasets.load_dataset("imagefolder", data_dir="d", split="train")
    ours = find_image_set("d").to_dataset()
    assert ours["label"][:] == theirs["label"][:] and ours.features["label"] == theirs.features["label"]
    paths = [row["path"] for row in theirs.cast_column("image", datasets.Image(decode=False))["image"]]
    assert [row["path"] for row in ours["image"]] == paths


def test_the_summary_of_ten_kinds_of_odd_files_names_each(workplace):
    touch(
        "d/dog/1.png", "d/dog/poodle/2.jpg", "d/cat/1.avif", "d/cat/list.h5x", "d/stray.png", "d/README", "d/.DS_Store"
    )
    touch("d/.git/config", "d/old.zip", "d/old.tar", "d/notes.txt", "d/data.parquet", "d/movie.mp4", "d/dog/a.json")
    os.mkdir("d/empty")
    os.symlink("nowhere", "d/broken.png")
    os.symlink("../dog", "d/dog/again")
    os.mkfifo("d/pipe.png")
    images = find_image_set("d")
    assert images.files == ["cat/1.avif", "dog/1.png", "dog/poodle/2.jpg"]
    text = images.summary()
    for shown in ("3 files used, 15 left out", "2: 'cat' (1), 'dog' (2)", "1 .avif"):
        assert shown in text
    for name in (
        "'stray.png'",
        "'README'",
        "'.DS_Store'",
        "'.git/'",
        "'old.zip'",
        "'old.tar'",
        "'notes.txt'",
        "'data.parquet'",
        "'movie.mp4'",
        "'cat/list.h5x'",
        "'dog/a.json'",
        "'empty/'",
        "'broken.png'",
        "'dog/again/'",
        "'pipe.png'",
    ):
        assert name in text, name


def test_many_kinds_of_files_make_a_short_summary(workplace):
    touch("d/1.png", *(f"d/x.{i}" for i in range(200)), *(f"d/y.e{i}" for i in range(200)))
    images = find_image_set("d")
    assert left_out(images) == 400 and len(images.summary().splitlines()) < 50


# ------------------------------------------------------------------------------------------------ classes and splits


@pytest.mark.parametrize("name", ["train", "test", "val", "dev", "eval", "training"])
def test_a_class_may_be_named_as_a_split(workplace, name):
    touch("d/bus/1.png", "d/car/1.png", "d/car/2.png", f"d/{name}/1.png")
    images = find_image_set("d")
    assert sorted(named(images).values()) == sorted(["bus", "car", "car", name])
    assert images.split is None and not images.left_out


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("Train", "VALIDATION"),
        ("train2017", "val2017"),
        ("train", "test1"),
        ("my-train", "my-test"),
    ],
)
@pytest.mark.parametrize("above", ["", "images/"])
def test_folders_that_are_all_named_as_splits_are_splits(workplace, train, test, above):
    touch(*(f"d/{above}{train}/{name}/1.png" for name in "xy"), *(f"d/{above}{test}/{name}/1.png" for name in "xyz"))
    touch("d/cover.png", "d/labels/x.txt")
    if above:
        os.remove("d/cover.png")
    images = find_image_set("d")
    assert images.files == [f"{above}{train}/x/1.png", f"{above}{train}/y/1.png"] and images.split == "train"
    assert images.classes == ["x", "y", "z"] and images.labels.tolist() == [
        0,
        1,
    ]  # a class has one number in all splits
    assert left_out(images) == (4 if above else 5)


def test_classes_that_share_a_split_word_are_classes(workplace):
    touch("d/freight train/1.png", "d/model train/1.png")
    # `datasets` takes them for one split; their names differ in more than its word
    assert find_image_set("d").classes == ["freight train", "model train"]


def test_a_split_that_is_asked_for_is_taken(workplace):
    touch("d/train/1.png", "d/test/1.png", "d/holdout/1.png", "d/bus/1.png")
    assert find_image_set("d").classes == ["bus", "holdout", "test", "train"]
    for split in ("train", "test", "holdout"):
        images = find_image_set("d", split=split)
        assert images.files == [f"{split}/1.png"] and images.split == split and left_out(images) == 3
    with pytest.raises(ValueError, match=r"`split` must be one of \['train'\]|`split` must be one of .*'validation'"):
        find_image_set("d", split="validation")


def test_test_and_validation_alone_must_be_asked_for(workplace):
    touch("d/val/1.png", "d/test/1.png")
    with pytest.raises(
        ValueError, match=r"`split` must be given \(`--train_split`\): 'd' holds the splits \['test', 'validation'\]"
    ):
        find_image_set("d")
    assert find_image_set("d", split="val").files == ["val/1.png"]
    shutil.rmtree("d/val")
    assert find_image_set("d").files == ["test/1.png"]


def test_the_class_is_the_first_folder_however_deep_the_picture(workplace):
    touch("d/cat/1.png", "d/dog/poodle/1.png", "d/dog/husky/old/1.png")
    assert named(find_image_set("d")) == {
        "cat/1.png": "cat",
        "dog/husky/old/1.png": "dog",
        "dog/poodle/1.png": "dog",
    }


def test_folders_around_everything_are_no_class(workplace):
    touch("d/photos/all/cat/1.png", "d/photos/all/dog/1.png", "d/photos/readme.txt")
    assert find_image_set("d").classes == ["cat", "dog"]
    touch("e/one/1.png", "e/one/2.png", "e/3.png")
    images = find_image_set("e")
    assert images.files == ["3.png", "one/1.png", "one/2.png"] and images.classes is None and images.labels is None


def test_a_picture_beside_class_folders_is_named(workplace):
    touch("d/cat/1.png", "d/dog/1.png", "d/cover.png")
    images = find_image_set("d")
    assert named(images) == {"cat/1.png": "cat", "dog/1.png": "dog"}
    assert images.left_out == {"images beside the class folders": (1, ("cover.png",))}
    assert len(find_image_set("d", label_column=None).files) == 3


@pytest.mark.parametrize("name", ["photos [2024]", "a*b?", "{x}", "~", "a#b%20c", "a::b", "zip:", "a\nb"])
def test_every_character_of_a_path_is_an_ordinary_one(workplace, name):
    touch(f"{name}/{name} 1/1.png", f"{name}/b/{name}.png")
    images = find_image_set(name)
    assert sorted(images.classes) == sorted([f"{name} 1", "b"])
    assert all(os.path.isfile(row["path"]) for row in images.to_dataset()["image"])
    write_parquet(f"p/{name}/{name}.parquet")
    for path in (f"p/{name}", f"p/{name}/{name}.parquet"):
        if "::" in name:
            with pytest.raises(ValueError, match="`train_data_dir` .*a::b.* rename it"):
                find_image_set(path).to_dataset("hf")
        else:
            assert len(find_image_set(path).to_dataset("hf")) == 2


def test_links_are_followed_and_loops_end(workplace):
    touch("far/1.png", "d/cat/1.png")
    os.symlink("../far", "d/dog")
    os.symlink("../../d", "d/cat/loop")
    os.symlink("../cat/1.png", "d/cat/2.png")
    os.symlink("self", "d/self")
    images = find_image_set("d")
    assert named(images) == {"cat/1.png": "cat", "cat/2.png": "cat", "dog/1.png": "dog"}
    text = images.summary()
    assert "links to a folder that holds them: 'cat/loop/'" in text and "'self'" in text


@utf8_only
def test_names_that_are_no_utf8_are_trained_on(workplace):
    touch("d/a/1.png")
    os.makedirs(b"d/caf\xe9")
    Image.new("RGB", (8, 8), "red").save(open(b"d/caf\xe9/\xff.png", "wb"), "png")
    images = find_image_set("d")
    assert images.classes == ["a", "caf\\udce9"]
    images.summary().encode()
    path = to_path(images.to_dataset()[1]["image"]["path"])
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_folder_that_cannot_be_read_is_named(monkeypatch):
    touch("d/a/1.png", "d/b/1.png")
    scandir = os.scandir

    def refuse(path="."):  # the right to read would not stop root
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images = find_image_set("d")
    assert images.files == ["a/1.png"]
    assert "1 folders that cannot be read (Permission denied): 'b/'" in images.summary()


def test_archives_are_never_opened(workplace):
    touch("d/a/1.png", "d/b/1.png")
    with zipfile.ZipFile("d/backup.zip", "w") as archive:
        archive.write("d/a/1.png", "old/1.png")
    touch("d/x.tar", "d/y.tar.gz")
    images = find_image_set("d")
    assert images.classes == ["a", "b"] and len(images.files) == 2
    assert images.left_out == {"archives, which are never opened": (3, ("backup.zip", "y.tar.gz", "x.tar"))}
    shutil.rmtree("d/a"), shutil.rmtree("d/b"), os.remove("d/x.tar")
    with pytest.raises(
        ValueError,
        match="`train_data_dir` 'd' holds no readable image set.*\n.*archives, which are never opened: 'backup.zip'",
    ):
        find_image_set("d")


# ------------------------------------------------------------------------------------------------ metadata, captions


def rows_of(names, **columns):
    return [{"file_name": name, **{k: f"{v} {name}" for k, v in columns.items()}} for name in names]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_metadata_decides_only_where_it_is_asked(workplace, ending):
    touch(*(f"d/{i}.png" for i in range(6)))
    write_metadata(f"d/metadata.{ending}", rows_of(["3.png", "1.png", "0.png", "2.png"], text="a"))
    images = find_image_set("d")
    assert images.files == [f"{i}.png" for i in (3, 1, 0, 2, 4, 5)] and images.captions is None
    assert images.left_out == {"metadata without a column that is asked for": (1, (f"metadata.{ending}",))}
    images = find_image_set("d", caption_column="text")
    assert images.files == [f"{i}.png" for i in (3, 1, 0, 2)]
    assert images.captions == [f"a {name}" for name in images.files]
    assert images.left_out == {"images without a 'text' in the metadata": (2, ("4.png", "5.png"))}
    assert images.to_dataset()["text"][:] == images.captions


def test_class_folders_with_metadata_stay_classes(workplace):
    touch("d/a/1.png", "d/a/2.png", "d/b/1.png", "d/b/3.png")
    write_metadata("d/a/metadata.jsonl", rows_of(["2.png", "1.png"], text="in a"))
    write_metadata("d/b/metadata.jsonl", rows_of(["1.png", "gone.png", "../../secret.png"], text="in b"))
    images = find_image_set("d")
    assert named(images) == {"a/1.png": "a", "a/2.png": "a", "b/1.png": "b", "b/3.png": "b"}
    images = find_image_set("d", caption_column="text")
    assert images.files == ["a/2.png", "a/1.png", "b/1.png"] and images.labels.tolist() == [0, 0, 1]
    assert images.captions == ["in a 2.png", "in a 1.png", "in b 1.png"] and images.read_beside == 2
    assert images.left_out["rows of metadata without a file"][0] == 2


def test_each_row_of_the_metadata_is_a_sample(workplace):
    touch("d/1.png", "d/2.png")
    rows = [{"file_name": n, "text": t} for n, t in (("2.png", "a"), ("1.png", ["b", "c"]), ("2.png", "d"))]
    write_metadata("d/metadata.jsonl", [*rows, {"file_name": "1.png"}])
    images = find_image_set("d", caption_column="text")
    assert images.files == ["2.png", "1.png", "2.png"]
    assert images.to_dataset()["text"][:] == [["a"], ["b", "c"], ["d"]]
    assert find_image_set("d").files == ["2.png", "1.png"]


def test_labels_of_the_metadata_win(workplace):
    touch("d/a/1.png", "d/b/1.png", "d/b/2.png")
    write_metadata("d/metadata.csv", [{"file_name": "b/1.png", "label": 4}, {"file_name": "a/1.png", "label": 0}])
    images = find_image_set("d")
    assert images.files == ["b/1.png", "a/1.png"] and images.labels.tolist() == [4, 0] and images.classes is None
    assert images.left_out == {"images without a 'label' in the metadata": (1, ("b/2.png",))}
    assert images.to_dataset()["label"][:] == [4, 0]


def test_text_files_beside_the_images_are_captions_where_asked(workplace):
    touch("d/a/1.png", "d/a/2.png", "d/b/1.jpg", "d/stray.txt")
    for name in ("a/1", "b/1"):
        Path(f"d/{name}.txt").write_text(f"\ufeffein Bär in {name}\n", encoding="utf-8")
    images = find_image_set("d", caption_column="txt")
    assert images.files == ["a/1.png", "b/1.jpg"] and images.captions == ["ein Bär in a/1", "ein Bär in b/1"]
    assert images.labels.tolist() == [0, 1] and images.read_beside == 2
    assert images.left_out == {
        "images without a text file": (1, ("a/2.png",)),
        "text files without an image": (1, ("stray.txt",)),
    }
    assert len(find_image_set("d").files) == 3
    Path("d/a/1.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="`train_data_dir` 'd': 'a/1.txt' cannot be read"):
        find_image_set("d", caption_column="txt")


# ---------------------------------------------------------------------------------------------------- parquet and tar


@pytest.mark.parametrize(
    "names, used, split",
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], [0], "train"),
        (["part-train-0.parquet", "part-test-0.parquet"], [0], "train"),
        (["part-0.parquet", "part-test-0.parquet"], [0], None),
        (["buses.parquet", "trains.parquet"], [0, 1], None),
        (["a.parquet", "b.PARQUET"], [0, 1], None),
        (["default/train/0.parquet", "default/test/0.parquet"], [0], "train"),
        (["train/test-0.parquet", "train/0.parquet"], [1], "train"),
        (["train-0.parquet", "more.parquet"], [0], "train"),
        (["test-0.parquet", "test-1.parquet"], [0, 1], "test"),
        (["trainval.parquet", "contest.parquet"], [1, 0], None),
    ],
)
def test_splits_of_parquet_files(workplace, names, used, split):
    for number, name in enumerate(names):
        write_parquet(f"d/{name}", number=number + 1)
    images = find_image_set("d")
    assert images.kind == "parquet" and images.files == [names[i] for i in used] and images.split == split
    assert left_out(images) == len(names) - len(used)
    assert len(images.to_dataset("hf")) == sum(i + 1 for i in used)


def test_another_split_of_parquet_files(workplace):
    for name in ("train", "test", "extra"):
        write_parquet(f"d/data/{name}-00000-of-00001.parquet")
    for split in ("test", "extra", "TESTING"):
        assert len(find_image_set("d", split=split).files) == 1
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\], .* got 'validation'"):
        find_image_set("d", split="validation")


def test_what_lies_beside_parquet_files(workplace):
    touch("d/preview.png", "d/README.md")
    write_parquet("d/data.parquet")
    images = find_image_set("d")
    assert images.files == ["data.parquet"] and left_out(images) == 2
    # of tools that write a table beside the pictures
    os.remove("d/data.parquet")
    datasets.Dataset.from_dict({"url": ["x"]}).to_parquet("d/data.parquet")
    images = find_image_set("d")
    assert images.files == ["preview.png"]
    assert images.left_out["parquet files without the column 'image'"] == (1, ("data.parquet",))


def test_one_parquet_file_and_streaming(workplace):
    write_parquet("some.PARQUET", "picture")
    images = find_image_set("some.PARQUET", image_column="picture")
    assert images.kind == "parquet" and len(images.to_dataset("hf")) == 2
    assert len(list(images.to_dataset("hf", streaming=True))) == 2
    touch("d/1.png")
    with pytest.raises(ValueError, match="`train_data_dir` 'd' must hold parquet files to be streamed, or tar files"):
        find_image_set("d").to_dataset(streaming=True)


def write_tar(name: str, number: int):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(name, "w") as archive:
        for i in range(number):
            file = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 0, 0)).save(file, "png")
            for ending, content in (("png", file.getvalue()), ("cls", b"%d" % i), ("txt", b"number %d" % i)):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("path", ["d [1]", "d [1]/train-0.tar"])
@pytest.mark.parametrize("streaming", [False, True])
def test_tar_files_are_a_webdataset(workplace, path, streaming):
    write_tar("d [1]/train-0.tar", 3)
    write_tar("d [1]/test-0.tar", 2)
    touch("d [1]/00000_stats.json", "d [1]/00000.parquet")
    images = find_image_set(path)
    assert images.kind == "webdataset" and images.files == ["train-0.tar"]
    rows = list(images.to_dataset("hf", streaming))
    assert [(row["label"], row["txt"]) for row in rows] == [(i, f"number {i}") for i in range(3)]
    assert [np.asarray(row["image"])[0, 0, 0] for row in rows] == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------- fingerprints


def test_a_set_is_what_it_is_not_where(workplace):
    touch("d/a/1.png", "d/b/1.png")
    first = find_image_set("d")
    same = [find_image_set("d/"), find_image_set("./d"), find_image_set(Path("d").absolute())]
    os.rename("d", "e")
    os.symlink("e", "f")
    same += [find_image_set("e"), find_image_set("f")]
    touch("e/.hidden", "e/notes.txt")
    same.append(find_image_set("e"))
    assert {images.fingerprint for images in same} == {first.fingerprint}
    assert {images.identity for images in same} == {first.identity}


def test_what_changes_a_set_changes_its_fingerprint(workplace):
    def change(images):
        seen["fingerprint"].append(images.fingerprint), seen["identity"].append(images.identity)

    seen = {"fingerprint": [], "identity": []}
    touch("d/a/1.png", "d/b/1.png")
    change(find_image_set("d"))
    change(find_image_set("d", label_column=None))
    touch("d/b/2.png")
    change(find_image_set("d"))
    os.rename("d/b", "d/c")
    change(find_image_set("d"))
    Path("d/c/2.png").write_bytes(b"content")
    change(find_image_set("d"))
    write_metadata("d/metadata.jsonl", [{"file_name": "a/1.png", "label": 3}])
    change(find_image_set("d"))
    for hashes in seen.values():
        assert len(set(hashes)) == len(hashes)
    # A copy has other times: latents are made again, but it is the same set.
    before = find_image_set("d")
    os.utime("d/a/1.png", ns=(1, 1))
    after = find_image_set("d")
    assert after.fingerprint != before.fingerprint and after.identity == before.identity
    # Captions have a cache of their own.
    for text in ("x", "y"):
        write_metadata("d/metadata.jsonl", [{"file_name": "a/1.png", "text": text}])
        change(find_image_set("d", caption_column="text"))
    assert seen["fingerprint"][-1] == seen["fingerprint"][-2] and seen["identity"][-1] != seen["identity"][-2]


def test_the_fingerprint_of_the_dataset_is_that_of_the_set(workplace):
    touch("d/1.png")
    write_parquet("p/x.parquet")
    for folder in "dp":
        images = find_image_set(folder)
        assert images.to_dataset("hf")._fingerprint == images.fingerprint
        os.rename(folder, f"{folder}2")
        assert find_image_set(f"{folder}2").to_dataset("hf")._fingerprint == images.fingerprint


# ----------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"train_data_dir": "nowhere"}, "`train_data_dir` 'nowhere' does not exist"),
        ({"train_data_dir": "empty"}, "`train_data_dir` 'empty' holds no readable image set"),
        ({"train_data_dir": "text"}, "`train_data_dir` 'text' holds no readable image set.*\n.*'notes.txt'"),
        ({"split": "train"}, r"`split` must be one of \[\], .* got 'train'"),
        ({"split": ""}, "`split` must be the name of a split or None, got ''"),
        ({"split": 1}, "`split` must be the name of a split or None, got 1"),
        ({"caption_column": "txet"}, r"`caption_column` must be one of .*'text'.*'txt' .* got 'txet'"),
        (
            {"caption_column": "txt"},
            "`train_data_dir` 'd' leaves no image to train on.*\n(.*\n)*.*without a text file",
        ),
        ({"label_column": "none"}, "`train_data_dir` 'd' leaves no image to train on"),
        ({"label_column": "text"}, "`label_column` 'text' must hold integers from 0, got"),
        ({"train_data_dir": "broken"}, "`train_data_dir` 'broken': 'metadata.jsonl' cannot be read"),
    ],
)
def test_what_is_no_set_is_refused_by_name(workplace, kwargs, message):
    os.mkdir("empty")
    touch("text/notes.txt", "d/1.png", "broken/1.png")
    Path("broken/metadata.jsonl").write_text("no json")
    write_metadata("d/metadata.jsonl", [{"file_name": "1.png", "text": "a", "none": None}])
    with pytest.raises(ValueError, match=message):
        find_image_set(**{"train_data_dir": "d", **kwargs})


@pytest.mark.parametrize("captions", [[1, 2], ["a", {"b": 1}], [["a"], [1]]])
def test_captions_that_are_no_text_are_refused(workplace, captions):
    from diffusers_lowfreq.training import ImageDataset

    touch("d/1.png", "d/2.png")
    rows = [{"file_name": f"{i + 1}.png", "text": caption} for i, caption in enumerate(captions)]
    write_metadata("d/metadata.jsonl", rows)
    with pytest.raises(ValueError, match="`caption_column` 'text' must hold a string or a list of strings"):
        ImageDataset(find_image_set("d", caption_column="text").to_dataset(), 8, caption_column="text")


def test_progress_wraps_the_walk(workplace):
    touch("d/1.png", "d/2.txt")
    seen = []
    find_image_set("d", progress=lambda walk: (seen.append(name) or file for file in walk for name in file[:1]))
    assert seen == ["1.png", "2.txt"]


@pytest.mark.parametrize("value", [[0, 1], [1], 2**63 + 5, -1, True, "1"], ids=repr)
def test_labels_in_metadata_are_integers(value):
    touch("d/0.png", "d/1.png")
    write_metadata("d/metadata.jsonl", [{"file_name": "0.png", "label": 0}, {"file_name": "1.png", "label": value}])
    with pytest.raises(ValueError, match="`label_column` 'label' must hold integers from 0, got .* in the metadata"):
        find_image_set("d")


def test_a_caption_is_valid_unicode_and_the_image_column_is_for_images():
    touch("d/0.png")
    Path("d/metadata.jsonl").write_text('{"file_name": "0.png", "text": "a \\ud800"}')
    with pytest.raises(ValueError, match="`caption_column` 'text' must hold|d/metadata.jsonl"):
        find_image_set("d", caption_column="text").to_dataset()
    with pytest.raises(ValueError, match="`image_column` 'image' must hold images"):
        find_image_set("d", caption_column="image")


@pytest.mark.parametrize("output_dir", ["d", "d/out", "d/../d/out/deep"])
def test_the_output_folder_is_not_in_the_folder_of_images(output_dir):
    touch("d/0.png")
    with pytest.raises(ValueError, match="`output_dir` must not be in `train_data_dir` 'd'"):
        load_images(train_data_dir="d", resolution=8, output_dir=output_dir)
    assert len(load_images(train_data_dir="d", resolution=8, output_dir="dout")) == 1
    write_parquet("p/train.parquet")
    assert len(load_images(train_data_dir="p", resolution=8, output_dir="p/out")) == 2
