# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Streamed images: every one once in an epoch, whatever the processes; after a resume the very one that comes next."""

import io
import json
import os
import shutil
from itertools import islice

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as Picture
from safetensors.torch import load_file
from scripts import load_script, make_captioned_folder, make_pixels, make_vae, run_two_processes, workplace
from tiny import make_text_encoder, make_tokenizer

from diffusers_lowfreq.training import (
    CaptionCache,
    ImageStream,
    LatentCache,
    LatentStream,
    StreamedCaptions,
    load_images,
)


pytestmark = pytest.mark.usefixtures(workplace.__name__)

NUMBER, FILES = 23, 5
RUN = "--train_data_dir images --resolution 16 --transformer_size 2x2x8 --prior_size 2x2x8 --patch_size 4 --lr_warmup_steps 1 "
RUN += "--streaming --shuffle_buffer_size 4 --max_train_steps 8 --prior_max_train_steps 3 --num_validation_images 2 "
RUN += "--checkpointing_steps 3"


@pytest.fixture
def files(workplace):
    """Parquet files of unequal length; the label of each image is its number."""
    os.mkdir("images")
    features = Features({"image": Image(), "label": ClassLabel(names=[f"image {i}" for i in range(NUMBER)])})
    rows = [{"image": _png(pixels), "label": i} for i, pixels in enumerate(make_pixels(NUMBER))]
    for file, (start, stop) in enumerate([(0, 7), (7, 8), (8, 14), (14, 19), (19, NUMBER)]):
        Dataset.from_list(rows[start:stop], features=features).to_parquet(f"images/train-{file}.parquet")


def _png(pixels):
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def stream(batch_size=1, position=None, vae=None, **options):
    images = load_images(train_data_dir="images", resolution=16, streaming=True)
    stream = LatentStream(images, vae, batch_size, 0, **{"shuffle_buffer_size": 4} | options)
    stream.position = position or stream.position
    return stream


def labels(batches, number) -> list[int]:
    return [label for batch in islice(batches, number) for label in batch["label"].tolist()]


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 7])
def test_all_processes_together_see_each_image_once_in_an_epoch(files, processes):
    seen = []
    for index in range(processes):
        part = stream(process_index=index, num_processes=processes)
        batches = iter(part)
        mine = []
        while part.position[0] == 0:
            mine += labels(batches, 1)
        seen += mine[:-1]  # the last is the first of the next epoch
    assert sorted(seen) == list(range(NUMBER))


def test_epochs_differ_and_the_seed_decides(files):
    first, second = labels(stream(), NUMBER), labels(stream(), 2 * NUMBER)[NUMBER:]
    assert first == labels(stream(), NUMBER) and sorted(first) == sorted(second) and first != second
    assert first != sorted(first)


@pytest.mark.parametrize("processes", [1, 2, 7])
def test_it_goes_on_from_every_position(files, processes):
    options = {"batch_size": 2, "process_index": processes - 1, "num_processes": processes, "random_flip": True}
    whole = stream(**options)
    batches, positions = [], []
    for batch in islice(whole, 20):
        batches.append(batch)
        positions.append(whole.position)
    for i, position in enumerate(positions[:-1]):
        for actual, expected in zip(islice(stream(position=position, **options), 2), batches[i + 1 :]):
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_threads_and_the_size_of_a_batch_change_no_image(files):
    one = list(islice(stream(random_flip=True), 40))
    expected = torch.cat([batch["sample"] for batch in one])
    for batch_size, workers in ((4, 0), (8, 3)):
        batches = islice(stream(batch_size, num_workers=workers, random_flip=True), 40 // batch_size)
        torch.testing.assert_close(torch.cat([batch["sample"] for batch in batches]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("space", ["pixels", "latents"])
def test_it_serves_what_the_cache_does(files, space):
    vae = make_vae("vae") if space == "latents" else None
    cache = LatentCache.build(load_images(train_data_dir="images", resolution=16), vae, "cache")
    by_label = {int(label): i for i, label in enumerate(cache.labels)}
    mirrored = 0
    for batch in islice(stream(2, vae=vae, random_flip=True), 20):
        for sample, label in zip(batch["sample"], batch["label"].tolist()):
            both = [cache[by_label[label], flip]["sample"] for flip in (False, True)]
            same = [torch.allclose(sample, x, rtol=2e-3, atol=2e-3) for x in both]
            assert sum(same) == 1
            mirrored += same[1]
    assert 8 <= mirrored <= 32


def test_damaged_images_are_skipped_up_to_a_share(files, caplog):
    features = Features({"image": Image(), "label": ClassLabel(names=[f"image {i}" for i in range(NUMBER)])})
    row = {"image": {"bytes": b"no", "path": "damaged.png"}, "label": 7}
    Dataset.from_list([row], features=features).to_parquet("images/train-1.parquet")
    assert sorted(labels(stream(), NUMBER - 1)) == [i for i in range(NUMBER) if i != 7]
    with pytest.raises(ValueError, match="1 of the first .* cannot be read, more than `max_skipped` = 0"):
        list(islice(stream(max_skipped=0.0), NUMBER))


def test_the_head_is_spread_over_the_files(files):
    images = load_images(train_data_dir="images", resolution=16, streaming=True)
    assert sorted(images.head.labels.tolist()) == list(range(NUMBER)) and images.num_files == FILES
    small = ImageStream(images.dataset, 16, head_size=5)
    assert sorted(small.head.labels.tolist()) == [0, 7, 8, 14, 19]


def test_what_cannot_be_streamed_is_refused_by_name(workplace, files):
    with pytest.raises(ValueError, match="`image_column` .* got 'picture'"):
        load_images(train_data_dir="images", resolution=16, image_column="picture", streaming=True)
    features = Features({"image": Image(), "label": Value("int64")})
    os.mkdir("numbers")
    Dataset.from_list([{"image": _png(make_pixels(1)[0]), "label": 3}], features=features).to_parquet(
        "numbers/a.parquet"
    )
    with pytest.raises(ValueError, match="`label_column` 'label' must be a `ClassLabel`"):
        load_images(train_data_dir="numbers", resolution=16, streaming=True)
    few = load_images(train_data_dir="numbers", resolution=16, streaming=True, label_column=None)
    with pytest.raises(ValueError, match="no image for process 1 of 2"):
        next(iter(LatentStream(few, None, 1, 0, process_index=1, num_processes=2)))


# ------------------------------------------------------------------------------------------------------------ the script


def train(*command):
    script = load_script("train_lowfreq")
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    script.main(script.parse_args([*command, *RUN.split()]))


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(os.path.join(folder, "transformer", "diffusion_pytorch_model.safetensors"))


def test_a_streamed_run_resumes_as_the_same_run(files, workplace):
    make_vae("vae")
    options = "--pretrained_vae_model_name_or_path=vae", "--patch_size=2", "--train_batch_size=4"
    options += ("--prior_train_batch_size=4", "--prior_coupling=independent")
    train("--output_dir=undisturbed", *options)
    shutil.copytree("undisturbed", "out", ignore=shutil.ignore_patterns("checkpoint-[68]", "transformer"))
    shutil.copytree("undisturbed/checkpoint-3", "out/checkpoint-3", dirs_exist_ok=True)
    train("--output_dir=out", "--resume_from_checkpoint=latest", *options)
    torch.testing.assert_close(weights("out"), weights("undisturbed"), rtol=0, atol=0)
    with open("out/checkpoint-8/stream_0.json") as file:
        assert json.load(file)["read"] == 8 * 4
    with open("out/README.md") as file:
        assert "a stream of images" in file.read()


def test_captions_are_encoded_on_the_way_as_in_the_cache(workplace):
    make_captioned_folder(workplace / "images")
    tokenizer = make_tokenizer()
    encoder = make_text_encoder("clip", tokenizer)
    for part in (tokenizer, encoder):
        part.save_pretrained("text")
    rows = [json.loads(line) for line in (workplace / "images" / "metadata.jsonl").read_text().splitlines()]
    captions = [row["text"] for row in rows]
    with pytest.raises(ValueError, match="`train_data_dir` .* must hold parquet files to be streamed"):
        load_images(train_data_dir="images", resolution=16, streaming=True)
    features = Features({"image": Image(), "text": List(Value("string"))})
    rows = [{"image": _png(pixels), "text": texts} for pixels, texts in zip(make_pixels(18), captions)]
    Dataset.from_list(rows, features=features).to_parquet("images/train.parquet")
    cache = CaptionCache.build(captions, encoder, tokenizer, "cache")
    streamed, uniform = StreamedCaptions(cache, encoder, tokenizer), torch.linspace(0.01, 0.99, 4)
    streamed.batch = captions[3:7]
    numbers, expected = streamed.choose(torch.arange(4), uniform), cache.choose(torch.arange(3, 7), uniform)
    numbers[1], expected[1] = streamed.empty, cache.empty
    torch.testing.assert_close(streamed.embeddings(numbers), cache.embeddings(expected), rtol=2e-3, atol=2e-3)
    train(
        *("--output_dir=out", "--caption_column=text", "--pretrained_text_encoder_name_or_path=text"),
        *("--train_batch_size=4", "--prior_train_batch_size=4"),
    )
    assert all(value.isfinite().all() for value in weights("out").values())


@pytest.mark.slow
def test_two_processes_share_the_stream(files, workplace):
    options = "--train=flow", "--train_batch_size=4", "--output_dir=two"
    run_two_processes("train_lowfreq", *options, *RUN.split(), cwd=workplace)
    assert len(os.listdir("two/cache")) == 1
    assert sorted(name for name in os.listdir("two/checkpoint-8") if "stream" in name) == [
        "stream_0.json",
        "stream_1.json",
    ]
    with pytest.raises(ValueError, match="`num_processes` must be 2 to go on with the stream"):
        train("--train=flow", "--train_batch_size=8", "--output_dir=two", "--resume_from_checkpoint=two/checkpoint-6")
