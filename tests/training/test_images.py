# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Images of every kind come out as the RGB that a viewer shows; damaged ones are named and skipped."""

import io
import logging
import os
import shutil
import sys

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import CLASSES, make_captioned_folder, make_folder, make_pixels, workplace

from diffusers_lowfreq.images import prepare_images, to_rgb
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


def exif_block(*entries: tuple[int, int, int, bytes], offset: int = 8) -> bytes:
    """EXIF data, of tags with type, count, and four bytes of value or offset; broken ones too."""
    tags = b"".join(
        t.to_bytes(2, "little") + k.to_bytes(2, "little") + n.to_bytes(4, "little") + v for t, k, n, v in entries
    )
    head = b"Exif\0\0II*\0" + offset.to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    return head + tags + bytes(4)


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")  # by a quarter to the right
BROKEN_EXIF = {
    "no EXIF": (b"Exif\0\0 these are no EXIF data", False),
    "cut off": (b"Exif\0\0II*\0", False),
    "offset beyond the end": (exif_block(TURNED, offset=10**6), False),
    "orientation of text": (exif_block((0x0112, 2, 4, b"abc\0")), False),
    "orientation out of range": (exif_block((0x0112, 3, 1, b"\x63\0\0\0")), False),
    "orientation without a value": (exif_block((0x0112, 3, 0, bytes(4))), False),
    "a tag of an unknown type": (exif_block(TURNED, (0x0131, 99, 1, bytes(4))), True),
    "a tag whose type is not its own": (exif_block(TURNED, (0x0131, 5, 1, b"\xff\xff\0\0")), True),
    "a number where there should be text": (exif_block((0x010F, 4, 1, b"\1\0\0\0"), TURNED), True),
    "a folder of tags that is text": (exif_block(TURNED, (0x8769, 2, 4, b"abc\0")), True),
    "a place of tags that is text": (exif_block(TURNED, (0x8825, 2, 4, b"abc\0")), True),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", BROKEN_EXIF)
def test_of_broken_exif_data_only_the_orientation_matters(workplace, kind):
    """A picture that every viewer shows is trained on, and taken by the upscaler, upright where the orientation is whole."""
    exif, is_turned = BROKEN_EXIF[kind]
    (workplace / "images").mkdir()
    pixels = make_pixels(1, SIZE)[0]
    Image.fromarray(pixels).save("images/a.jpg", exif=exif, quality=100, subsampling=0)
    stored = np.asarray(Image.open("images/a.jpg"))
    shown = np.rot90(stored, -1) if is_turned else stored
    images = load_images(None, "images", resolution=SIZE)
    assert [index for index, _ in images.decode_all(range(1))] == [0]
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), shown)
    given = prepare_images(Image.open("images/a.jpg"), SIZE, SIZE)
    np.testing.assert_allclose(given[0].permute(1, 2, 0), shown / 127.5 - 1, atol=1e-6)


def test_an_upright_image_is_not_turned_again():
    exif = Image.Exif()
    exif[0x0112] = 6
    once = to_rgb(reopen(Image.fromarray(colours), "png", exif=exif))
    np.testing.assert_array_equal(np.asarray(to_rgb(once)), np.rot90(colours, -1))


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
    logged = caplog.text
    caplog.clear()
    LatentCache.build(load_images(None, str(folder), resolution=8), None, "cache", max_skipped=0.1)
    logging.getLogger("diffusers_lowfreq").removeHandler(caplog.handler)
    assert len(cache) == 18 and cache.index["skipped"] == 1
    assert "zz_damaged.jpg' cannot be read and is skipped" in logged and "is skipped" not in caplog.text
    end = f"1 of 19 images could not be read and were skipped: {str(path.absolute())!r}; 18 are used"
    assert end in logged and end in caplog.text  # as they are encoded, and as the cache is opened again


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
    "labels, feature",
    [
        ([[0, 1, 0]] * 6, datasets.List(datasets.Value("int64"))),
        ([[0, 1, 0]] * 6, datasets.List(datasets.Value("int64"), 3)),
        ([[1], [0, 2], [], [1], [1], [1]], datasets.List(datasets.ClassLabel(names=CLASSES))),
        ([[[1]]] * 6, datasets.Array2D((1, 1), "int64")),
        ([{"id": 1}] * 6, {"id": datasets.Value("int64")}),
    ],
    ids=["one-hot", "one-hot of a fixed length", "several", "an array", "a record"],
)
def test_labels_of_another_shape_are_refused_before_any_image_is_read(workplace, labels, feature):
    write_parquet("file.parquet", labels, feature)
    with pytest.raises(ValueError, match="`label_column` 'label' must hold integers from 0, got .* one class number"):
        load_images(None, "file.parquet", resolution=SIZE)
    assert len(load_images(None, "file.parquet", resolution=SIZE, label_column=None)) == 6


def test_labels_that_are_ids_are_refused_with_what_to_do(workplace):
    """Numbers may leave gaps, as those of a part of a larger set do; dates and ids make millions of classes."""
    ids = [20230115, 20230115, 20230116, 20230117, 3, 3]
    write_parquet("ids.parquet", ids, datasets.Value("int64"))
    with pytest.raises(ValueError, match="`label_column` 'label' .* 4 different values up to 20230117.* from 0 to 3,"):
        load_images(None, "ids.parquet", resolution=SIZE)
    write_parquet("10000.parquet", [0, 1, 2, 3, 4, 10_000], datasets.Value("int64"))
    with pytest.raises(ValueError, match="6 different values up to 10000"):
        load_images(None, "10000.parquet", resolution=SIZE)
    write_parquet("gaps.parquet", [0, 1, 2, 3, 4, 9_999], datasets.Value("int64"))
    assert len(load_images(None, "gaps.parquet", resolution=SIZE).id2label) == 10_000
    names = [f"class {i}" for i in range(10_001)]
    write_parquet("named.parquet", [0, 1, 2, 3, 4, 10_000], datasets.ClassLabel(names=names))
    assert len(load_images(None, "named.parquet", resolution=SIZE).id2label) == 10_001


def test_a_split_is_taken_by_name(workplace, caplog):
    (workplace / "folder").mkdir()
    for number, split in enumerate(("train", "test"), 1):
        write_parquet(f"folder/{split}-0.parquet", number=number)
    logging.getLogger("diffusers_lowfreq").addHandler(caplog.handler)
    for source in ({"train_data_dir": "folder"}, {"dataset_name": "folder"}):
        assert [len(load_images(**source, resolution=SIZE, split=split)) for split in (None, "train", "test")] == [
            1,
            1,
            2,
        ]
    logging.getLogger("diffusers_lowfreq").removeHandler(caplog.handler)
    assert "`dataset_name` 'folder' is a folder: `datasets` decides which of its files are the set" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="the file system takes only names of UTF-8")
def test_names_that_are_no_utf8_are_read_and_named(workplace, caplog):
    os.mkdir("images")
    Image.fromarray(colours).save(open(b"images/\xe9.png", "wb"), "png")
    open(b"images/\xff.png", "wb").close()
    logging.getLogger("diffusers_lowfreq").addHandler(caplog.handler)
    images = load_images(None, "images", resolution=SIZE)
    assert len(list(images.decode_all(range(2)))) == 1
    logging.getLogger("diffusers_lowfreq").removeHandler(caplog.handler)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0), colours)
    assert "\\udcff.png' cannot be read and is skipped" in caplog.text


def test_the_identity_of_a_set_is_what_it_holds(workplace):
    """It tells a changed set from a moved one."""

    def identities():
        return [
            load_images(**source, resolution=SIZE).identity
            for source in ({"train_data_dir": "d"}, {"dataset_name": "d"})
        ]

    os.mkdir("d")
    write_parquet("d/train.parquet", [0, 1, 0, 1, 0, 1], datasets.ClassLabel(names=["cat", "dog"]))
    first = identities()
    shutil.copytree("d", "copy"), shutil.rmtree("d"), os.rename("copy", "d")
    assert identities() == first
    write_parquet("d/train.parquet", [0, 1, 0, 1, 0, 1], datasets.ClassLabel(names=["cat", "wolf"]))
    renamed = identities()
    write_parquet("d/train.parquet", [0, 1, 0, 1, 0], datasets.ClassLabel(names=["cat", "wolf"]), number=5)
    assert all(len({*three}) == 3 for three in zip(first, renamed, identities()))
    stream = load_images(train_data_dir="d", resolution=SIZE, streaming=True)
    assert stream.identity == stream.head.identity == identities()[0]
    assert load_images("d", resolution=SIZE, streaming=True).identity is None


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
