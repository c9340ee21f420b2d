# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Images of every kind come out as the RGB that a viewer shows; damaged ones are named and skipped."""

import io
import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import CLASSES, make_captioned_folder, make_folder, make_pixels, workplace

from diffusers_lowfreq.training import LatentCache, load_images
from diffusers_lowfreq.training.data.images import to_square


pytestmark = pytest.mark.usefixtures(workplace.__name__)

SIZE = 8


def reopen(image: Image.Image, format: str, **options) -> Image.Image:
    """Write an image to a file and read it again."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def grey(values, mode=None) -> Image.Image:
    image = Image.fromarray(np.asarray(values))
    return image if mode is None else image.convert(mode)


ramp = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
colours = make_pixels(1, SIZE)[0]


# ------------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    "image, expected",
    [
        (reopen(grey(ramp.astype(np.uint8)), "png"), ramp),
        (reopen(grey(ramp % 2 == 0), "png"), 255 * (ramp % 2 == 0)),
        (reopen(grey((ramp * 1000).astype(np.uint16)), "png"), ramp * 1000 // 256),
        (reopen(grey((ramp * 1000).astype(np.int32)), "tiff"), ramp * 1000 / 65535 * 255),
        (reopen(grey(ramp.astype(np.int32)), "tiff"), ramp),
        (reopen(grey((ramp / 63).astype(np.float32)), "tiff"), ramp / 63 * 255),
        (reopen(grey((ramp * 1.0).astype(np.float32)), "tiff"), ramp),
        (reopen(grey((ramp * 1e6).astype(np.float32)), "tiff"), ramp / 63 * 255),
    ],
    ids=["L", "1", "I;16", "I of 16 bits", "I of 8 bits", "F up to 1", "F up to 255", "F of any range"],
)
def test_greyscale_of_any_depth_keeps_its_shades(image, expected):
    x = to_square(image, SIZE)
    assert x.dtype == torch.uint8 and x.shape == (3, SIZE, SIZE)
    assert (x == x[:1]).all()
    np.testing.assert_allclose(x[0].numpy(), expected, atol=1.01)


def test_big_endian_16_bit_is_greyscale_too():
    image = Image.frombytes("I;16B", (SIZE, SIZE), (ramp * 1000).astype(">u2").tobytes())
    np.testing.assert_array_equal(to_square(image, SIZE)[0].numpy(), ramp * 1000 // 256)


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_colour_modes_are_converted_as_pillow_does(mode):
    image = Image.fromarray(colours).convert(mode)
    np.testing.assert_array_equal(to_square(image, SIZE).permute(1, 2, 0), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_laid_on_white(mode):
    alpha = np.full((SIZE, SIZE), 255, np.uint8)
    alpha[: SIZE // 2] = 0
    image = Image.fromarray(colours).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    x = to_square(image, SIZE)
    assert (x[:, : SIZE // 2] == 255).all()
    opaque = np.asarray(image.convert("RGBA"))[..., :3]
    np.testing.assert_array_equal(x.permute(1, 2, 0)[SIZE // 2 :], opaque[SIZE // 2 :])


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_of_a_file_is_laid_on_white(mode):
    image = Image.fromarray(np.where(ramp[..., None] < 32, 10, 200).astype(np.uint8).repeat(3, -1))
    image = image.quantize() if mode == "P" else image.convert(mode)
    first = image.getpixel((0, 0))
    x = to_square(reopen(image, "png", transparency=first), SIZE)
    assert (x[:, :4] == 255).all() and (x[:, 4:] == 200).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = [None, 0, 3, 1, 5, 4, 6, 2][orientation - 1]  # what a viewer does; PIL.Image.Transpose
    shown = Image.fromarray(colours) if undo is None else Image.fromarray(colours).transpose(undo)
    x = to_square(reopen(Image.fromarray(colours), "png", exif=exif), SIZE)
    np.testing.assert_array_equal(x.permute(1, 2, 0), np.asarray(shown))


@pytest.mark.parametrize("height, width", [(8, 24), (24, 8), (16, 16), (10, 18)])
def test_the_centre_of_other_shapes_is_taken_undistorted(height, width):
    rows, columns = np.mgrid[:height, :width].astype(float)
    pixels = np.stack([rows / height * 255, columns / width * 255, 0 * rows], -1).astype(np.uint8)
    x = to_square(Image.fromarray(pixels), SIZE).float()
    assert x.shape == (3, SIZE, SIZE)
    side = min(height, width)
    for channel, length, axis in ((0, height, 1), (1, width, 0)):
        profile = x[channel].mean(axis)
        span = side / length * 255
        middle = (length - 1) / 2 / length * 255
        assert abs(profile.mean() - middle) < 4
        assert abs((profile[-1] - profile[0]) - span * (SIZE - 1) / SIZE) < 12


# ------------------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("damage", ["text", "empty", "png", "jpeg", "bomb"])
def test_one_damaged_file_is_named_counted_and_skipped(workplace, caplog, monkeypatch, damage):
    folder = make_folder(workplace / "images")
    path = folder / "green" / "zz_damaged.jpg"
    whole = io.BytesIO()
    Image.fromarray(make_pixels(1, 200)[0]).save(whole, "png" if damage == "png" else "jpeg")
    content = {"text": b"not an image", "empty": b""}.get(damage, whole.getvalue()[: len(whole.getvalue()) // 2])
    path.write_bytes(whole.getvalue() if damage == "bomb" else content)
    if damage == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    logging.getLogger("diffusers_lowfreq").addHandler(caplog.handler)
    cache = LatentCache.build(load_images(None, str(folder), resolution=8), None, "cache", max_skipped=0.1)
    logging.getLogger("diffusers_lowfreq").removeHandler(caplog.handler)
    assert len(cache) == 18 and cache.index["skipped"] == 1
    assert "zz_damaged.jpg" in caplog.text and "1 of 19 images" in caplog.text


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_damaged_byte_stops_a_run(workplace):
    """Files of each format, with bytes overwritten at random, are read or skipped."""
    rng = np.random.default_rng(0)
    rows = []
    for format in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga"):
        for _ in range(8):
            file = io.BytesIO()
            Image.fromarray(colours).save(file, format)
            content = bytearray(file.getvalue())
            for position in rng.integers(0, min(len(content), 120), 6):
                content[position] = rng.integers(256)
            rows.append({"bytes": bytes(content), "path": None})
    dataset = datasets.Dataset.from_dict({"image": rows + [None]}).cast_column("image", datasets.Image())
    dataset.to_parquet("damaged.parquet")
    images = load_images(None, "damaged.parquet", resolution=8)
    assert 0 < len(list(images.decode_all(range(len(images))))) < len(images)


def test_too_many_damaged_files_stop_the_run(workplace):
    folder = make_folder(workplace / "images")
    for i in range(2):
        (folder / "red" / f"damaged{i}.png").write_bytes(b"no")
    images = load_images(None, str(folder), resolution=8)
    with pytest.raises(ValueError, match=r"`images`: 2 of the first 20 .* more than 5%"):
        LatentCache.build(images, None, "cache", max_skipped=0.05)
    assert len(LatentCache.build(images, None, "cache", max_skipped=0.1)) == 18


def test_a_set_without_one_readable_image_stops_the_run(workplace):
    (workplace / "images").mkdir()
    (workplace / "images" / "a.png").write_bytes(b"no")
    with pytest.raises(ValueError, match="`images`: 1 of"):
        LatentCache.build(load_images(None, "images", resolution=8), None, "cache", max_skipped=1.0)


# ----------------------------------------------------------------------------------------------------- finding images


def write_parquet(path, labels=None, feature=None, number=6, column="image"):
    images = [Image.fromarray(pixels) for pixels in make_pixels(number, SIZE)]
    data, features = {column: images}, {column: datasets.Image()}
    if labels is not None:
        data["label"], features["label"] = labels, feature
    datasets.Dataset.from_dict(data, datasets.Features(features)).to_parquet(path)


def test_subfolders_are_the_classes_by_name(workplace):
    images = load_images(None, str(make_folder(workplace / "images")), resolution=16)
    assert images.id2label == dict(enumerate(CLASSES)) and len(images) == 18
    for i in range(len(images)):
        assert images[i].float().mean((1, 2)).argmax() == 2 - images.labels[i]


def test_a_flat_folder_has_no_labels(workplace):
    (workplace / "images").mkdir()
    Image.fromarray(colours).save("images/a.png")
    images = load_images(None, "images", resolution=SIZE)
    assert images.id2label is None and images.labels.tolist() == [-1]
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), colours)


@pytest.mark.parametrize("where", ["file.parquet", "folder"])
def test_parquet_files_carry_class_names_and_exact_pixels(workplace, where):
    (workplace / "folder").mkdir()
    path = "file.parquet" if where == "file.parquet" else "folder/train-0.parquet"
    write_parquet(path, [2, 0, 1, 2, 0, 1], datasets.ClassLabel(names=CLASSES))
    if where == "folder":
        write_parquet("folder/test-0.parquet", [0], datasets.ClassLabel(names=CLASSES), 1)
    images = load_images(None, where, resolution=SIZE)
    assert images.labels.tolist() == [2, 0, 1, 2, 0, 1] and images.id2label == dict(enumerate(CLASSES))
    np.testing.assert_array_equal(images[3].permute(1, 2, 0), make_pixels(6, SIZE)[3])


def test_plain_integers_name_themselves(workplace):
    write_parquet("file.parquet", [0, 1, 3, 3, 0, 1], datasets.Value("int32"))
    images = load_images(None, "file.parquet", resolution=SIZE)
    assert images.id2label == {0: "0", 1: "1", 2: "2", 3: "3"}


def test_captions_of_a_folder_are_those_of_its_metadata(workplace):
    make_captioned_folder(workplace / "images", 6)
    images = load_images(None, "images", resolution=16, caption_column="text", label_column=None)
    assert len(images) == 6 and images.id2label is None
    for i in range(6):  # each image has the captions of its own colour
        colour = CLASSES[2 - images[i].float().mean((1, 2)).argmax()]
        assert images.captions[i] == [f"a {colour} photo", f"the {colour} picture"]
    one = load_images(None, "images", resolution=16, caption_column="one", label_column=None)
    assert one.captions == [[texts[0]] for texts in images.captions]
    assert load_images(None, "images", resolution=16).captions is None


@pytest.mark.parametrize(
    "captions, feature, row",
    [
        (["a", None] * 3, datasets.Value("string"), 1),
        ([["a"], ["b"], [], ["c"], ["d"], ["e"]], [datasets.Value("string")], 2),
        ([["a", None]] * 6, [datasets.Value("string")], 0),
        ([1] * 6, datasets.Value("int64"), 0),
    ],
    ids=["missing", "none", "missing in a list", "numbers"],
)
def test_captions_that_are_no_text_are_refused_by_row(workplace, captions, feature, row):
    write_parquet("file.parquet", captions, feature)
    with pytest.raises(ValueError, match=f"`caption_column` 'label' must hold a string or a list .* in row {row}"):
        load_images(None, "file.parquet", resolution=SIZE, caption_column="label", label_column=None)


@pytest.mark.parametrize(
    "labels, feature",
    [
        (["a"] * 6, datasets.Value("string")),
        ([0.5] * 6, datasets.Value("float32")),
        ([True] * 6, datasets.Value("bool")),
        ([0, 1, 2, None, 0, 1], datasets.Value("int64")),
        ([0, 1, 2, -1, 0, 1], datasets.Value("int64")),
    ],
    ids=["string", "float", "bool", "missing", "negative"],
)
def test_labels_that_are_no_class_numbers_are_refused_unless_unused(workplace, labels, feature):
    write_parquet("file.parquet", labels, feature)
    with pytest.raises(ValueError, match="`label_column` 'label' must hold integers from 0, got"):
        load_images(None, "file.parquet", resolution=SIZE)
    assert load_images(None, "file.parquet", resolution=SIZE, label_column=None).id2label is None


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"train_data_dir": "nowhere"}, "`train_data_dir` 'nowhere' does not exist"),
        ({"train_data_dir": "empty"}, "`train_data_dir` 'empty' holds no readable image set"),
        ({"train_data_dir": "text"}, "`train_data_dir` 'text' holds no readable image set"),
        ({"train_data_dir": "broken.parquet"}, "`train_data_dir` 'broken.parquet' holds no readable image set"),
        ({"train_data_dir": "none.parquet"}, "(`dataset` is empty|holds no readable image set)"),
        ({"train_data_dir": "file.parquet", "image_column": "img"}, r"`image_column` must be one of .*'image'.*'img'"),
        ({"train_data_dir": "file.parquet", "image_column": "label"}, "`image_column` 'label' must hold images"),
        ({"train_data_dir": "file.parquet", "label_column": "labl"}, r"`label_column` must be one of .*'label'.*labl"),
        (
            {"train_data_dir": "file.parquet", "caption_column": "text"},
            r"`caption_column` must be one of .*'label'.*text",
        ),
        ({}, "exactly one of `dataset_name` .* and `train_data_dir`"),
        ({"train_data_dir": "file.parquet", "dataset_name": "a/b"}, "exactly one of `dataset_name`"),
    ],
)
def test_a_set_that_is_not_there_is_refused_by_name(workplace, kwargs, message):
    for folder in ("empty", "text"):
        (workplace / folder).mkdir()
    (workplace / "text" / "notes.txt").write_text("no image")
    (workplace / "broken.parquet").write_bytes(b"PAR1 no parquet")
    write_parquet("file.parquet", [0] * 6, datasets.Value("int64"))
    write_parquet("none.parquet", number=0)
    with pytest.raises(ValueError, match=message):
        load_images(**kwargs, resolution=SIZE)
