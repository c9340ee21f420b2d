# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The scripts on the folders that people really have: nothing is left out silently, and what is said is what was trained on."""

import io
import json
import logging
import os
import tarfile
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file
from scripts import CLASSES, load_script, make_folder, make_pixels, workplace
from tiny import make_text_encoder, make_tokenizer


pytestmark = pytest.mark.usefixtures(workplace.__name__)

RUN = "--train_data_dir images --output_dir out --resolution 8 --patch_size 4 --transformer_size 1x1x8 --prior_size 1x1x8 "
RUN += "--train_batch_size 4 --prior_train_batch_size 4 --max_train_steps 2 --prior_max_train_steps 2 --num_validation_images 1 "
RUN += "--max_skipped_images 0.5"


@pytest.fixture
def said():
    """What the library logs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("diffusers_lowfreq").addHandler(handler)
    yield stream
    logging.getLogger("diffusers_lowfreq").removeHandler(handler)


def train(*options: str, script: str = "train_lowfreq"):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    script = load_script(script)
    script.main(script.parse_args([*RUN.split(), *options]))


def weights(folder: str = "out/transformer"):
    found = load_file(f"{folder}/diffusion_pytorch_model.safetensors")
    assert all(value.isfinite().all() for value in found.values())
    return found


def cached() -> dict:
    (path,) = Path("out/cache").glob("latents-*/index.json")
    return json.loads(path.read_text())


def test_a_folder_with_ten_kinds_of_odd_files_ends_in_one_readable_summary(workplace, said):
    make_folder(workplace / "images", 6, size=8)
    picture = (workplace / "images/red/002.png").read_bytes()
    os.makedirs("far/yellow"), os.makedirs("images/red/dark"), os.mkdir("images/empty"), os.mkdir("images/.git")
    Path("far/yellow/1.png").write_bytes(picture)
    os.symlink("../far/yellow", "images/yellow")  # 1. a linked class folder is used
    Path("images/red/dark/1.PNG").write_bytes(picture)  # 2. so is a picture deeper down, and one in capitals
    Image.new("RGB", (8, 8)).save("images/green/1.webp")  # 3. and every format that Pillow reads
    Path("images/stray.png").write_bytes(picture)  # 4. beside the class folders
    with zipfile.ZipFile("images/backup.zip", "w") as archive:  # 5. an archive is not opened
        archive.writestr("old/1.png", picture)
    Path("images/red/movie.mp4").write_bytes(b"film")  # 6. no picture
    Path("images/notes.txt").write_text("notes")  # 7. text without a use
    Path("images/metadata.jsonl").write_text(
        '{"file_name": "red/002.png", "text": "red"}'
    )  # 8. captions that nobody asks for
    Path("images/.git/config").touch()  # 9. hidden
    os.symlink("nowhere", "images/blue/gone.png")  # 10. a link to nothing
    os.symlink("..", "images/blue/loop")  # 11. and one to above
    datasets.Dataset.from_dict({"url": ["x"]}).to_parquet("images/table.parquet")  # 12. a table without images
    Path("images/blue/damaged.jpg").write_bytes(b"no picture")  # 13. judged as it is decoded
    Path("images/blue/short.png").write_bytes(picture[:-30])  # 14.
    train("--train", "flow")
    text = said.getvalue()
    assert text.count("Image set 'images': 11 files used, 10 left out.") == 1
    summary = text[text.index("Image set 'images'") :]
    assert summary.count("\n  left out: ") == 10
    for line in (
        "classes, with all folders below them: 4: 'blue' (4), 'green' (3), 'red' (3), 'yellow' (1)",
        "images beside the class folders: 'stray.png'",
        "archives, which are never opened: 'backup.zip'",
        "without the ending of an image (ending .mp4): 'red/movie.mp4'",
        "text files, which are read for the caption column 'txt' alone: 'notes.txt'",
        "metadata without a column that is asked for: 'metadata.jsonl'",
        "hidden files or folders: '.git/'",
        "that cannot be opened (No such file or directory): 'blue/gone.png'",
        "links to a folder that holds them: 'blue/loop/'",
        "empty folders: 'empty/'",
        "parquet files without the column 'image': 'table.parquet'",
    ):
        line = line if line.startswith("classes") else f"left out: 1 {line}"
        assert summary.count(f"  {line}\n") == 1, line
    paths = [str(workplace / "images/blue" / name) for name in ("damaged.jpg", "short.png")]
    end = f"2 of 11 images could not be read and were skipped: {paths[0]!r}, {paths[1]!r}; 9 are used."
    assert summary.count(end) == 1
    index = cached()
    assert (index["images"], index["skipped"]) == (9, 2)
    assert list(index["id2label"].values()) == ["blue", "green", "red", "yellow"]
    weights()


def test_a_channel_that_never_varies_is_trained_on(workplace):
    """Red and blue are the same in all pixels: their coarse latents have no scale of their own."""
    os.mkdir("images")
    for i, pixels in enumerate(make_pixels(6, 8)):
        pixels[..., 0], pixels[..., 2] = 255, 77
        Image.fromarray(pixels).save(f"images/{i}.png")
    train()
    weights()
    prior = json.loads(Path("out/prior/config.json").read_text())
    assert prior["sample_mean"] == pytest.approx([1, prior["sample_mean"][1], 77 / 127.5 - 1], abs=1e-6)
    assert all(0 < prior["sample_std"][i] < 1e-5 for i in (0, 2)) and prior["sample_std"][1] > 0.01
    weights("out/prior")


def text_encoder():
    tokenizer = make_tokenizer(words="a the photo picture " + " ".join(CLASSES))
    for part in (tokenizer, make_text_encoder("clip", tokenizer)):
        part.save_pretrained("encoder")
    return "--caption_column=txt", "--pretrained_text_encoder_name_or_path=encoder"


def test_text_files_beside_the_images_are_their_captions(workplace, said):
    make_folder(workplace / "images", 6, size=8)
    for path in sorted(Path("images").glob("*/*.png"))[:5]:
        path.with_suffix(".txt").write_text(f"a {path.parent.name} photo\n")
    train("--train=flow", *text_encoder())
    assert "left out: 1 images without a text file: 'red/005.png'" in said.getvalue()
    (path,) = Path("out/cache").glob("captions-*/index.json")
    assert set(json.loads(path.read_text())["texts"]) == {*(f"a {name} photo" for name in CLASSES), ""}
    assert cached()["images"] == 5
    weights()


def write_tars(number: int = 6, files: int = 2):
    """Tar files of pictures, each with its class number, and text that names its class."""
    os.mkdir("images")
    pixels = make_pixels(number, 8)
    for file in range(files):
        with tarfile.open(f"images/train-{file}.tar", "w") as archive:
            for i in range(file, number, files):
                picture = io.BytesIO()
                Image.fromarray(pixels[i]).save(picture, "png")
                text = f"a {CLASSES[i % 3]} photo".encode()
                for ending, content in (("png", picture.getvalue()), ("cls", b"%d" % (i % 3)), ("txt", text)):
                    info = tarfile.TarInfo(f"{i:04d}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return pixels


def test_tar_files_are_trained_on(workplace):
    """They are copied once, as parquet files are; the class numbers name themselves."""
    pixels = write_tars()
    train("--train=flow")
    index = cached()
    assert index["images"] == 6 and index["id2label"] == {str(i): str(i) for i in range(3)}
    (path,) = Path("out/cache").glob("latents-*/*.safetensors")
    shard = load_file(path)
    order = [0, 2, 4, 1, 3, 5]
    np.testing.assert_array_equal(shard["latents"][:, 0].permute(0, 2, 3, 1), pixels[order])
    assert shard["labels"].tolist() == [i % 3 for i in order]
    weights()


def test_tar_files_are_streamed(workplace):
    write_tars()
    with pytest.raises(ValueError, match="`label_column` 'label' must be a `ClassLabel`.*leave the labels out"):
        train("--train=flow", "--streaming")
    train("--train=flow", "--streaming", "--no-conditional")
    weights()
    train("--train=flow", "--streaming", "--output_dir=told", *text_encoder())
    weights("told/transformer")


@pytest.mark.parametrize("script", ["train_lowfreq", "train_autoencoder", "finetune_lora", "advise"])
def test_every_script_takes_another_split(script):
    script = load_script(script)
    line = ["--train_data_dir", "x", "--train_split", "test"]
    line += ["--output_dir", "x"] if script.__name__ != "advise" else []
    line += ["--pretrained_model_name_or_path", "x"] if script.__name__ == "finetune_lora" else []
    assert script.parse_args(line).train_split == "test" and script.parse_args(line[:2] + line[4:]).train_split is None


def test_another_split_is_trained_on(workplace):
    make_folder(workplace / "images/train", 6, size=8)
    make_folder(workplace / "images/test", 4, size=8)
    train("--train=flow", "--train_split=test")
    assert cached()["images"] == 4
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\].* got 'val'"):
        train("--train=flow", "--train_split=val", "--output_dir=other")
