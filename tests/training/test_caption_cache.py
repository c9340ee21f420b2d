# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The cache of text embeddings: what it serves is what the encoder makes, once."""

import os
from pathlib import Path

import pytest
import torch
from scripts import load_script
from tiny import WORDS, make_text_encoder, make_text_pipeline, make_tokenizer, seeded

from diffusers_lowfreq.text_encoding import encode_text, load_text_encoder
from diffusers_lowfreq.training import CaptionCache, uniform


CAPTIONS = [["a red cat", "the small photo of the red cat"], ["a dog"], ["a red cat", "blue", ""], ["ship", "a dog"]]
TEXTS = ["a red cat", "the small photo of the red cat", "a dog", "blue", "ship", ""]


@pytest.fixture(params=["clip", "t5"])
def encoder(request):
    tokenizer = make_tokenizer()
    return make_text_encoder(request.param, tokenizer), tokenizer


def build(encoder, cache_dir, captions=CAPTIONS, **options):
    return CaptionCache.build(captions, *encoder, str(cache_dir), **{"batch_size": 2, "shard_size": 4, **options})


def count_encoded(encoder):
    counts = []
    encoder[0].register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    return counts


def test_it_serves_what_the_pipeline_encodes(encoder, tmp_path):
    cache = build(encoder, tmp_path)
    assert cache.texts == TEXTS and cache.empty == 5
    numbers = torch.tensor([1, 5, 3, 1])
    embedded = cache.embeddings(numbers)
    embeds, mask = encode_text(*encoder, [TEXTS[i] for i in numbers])
    assert torch.equal(embedded["encoder_attention_mask"], mask)
    expected = embeds * mask[..., None]  # padding is zero, in half precision like all the rest
    torch.testing.assert_close(embedded["encoder_hidden_states"], expected, rtol=1e-3, atol=1e-3)
    lengths = [len(encoder[1](text).input_ids) for text in TEXTS]
    assert cache.mean_tokens == round(sum(lengths) / 6)
    # as the negative prompt of a pipeline is
    pipe = make_text_pipeline(text_encoder=encoder[0], tokenizer=encoder[1])
    _, _, negative, _ = pipe.encode_prompt("a red cat")
    torch.testing.assert_close(
        cache.embeddings(torch.tensor([cache.empty]))["encoder_hidden_states"][0],
        negative[0, :2],
        rtol=1e-3,
        atol=1e-3,
    )


def test_every_caption_of_an_image_is_chosen_equally_often_and_no_other(encoder, tmp_path):
    cache = build(encoder, tmp_path)
    for image, captions in enumerate(CAPTIONS):
        chosen = cache.choose(torch.full((3000,), image), uniform(3000, seeded(image)))
        counts = {TEXTS[i]: n for i, n in zip(*(x.tolist() for x in chosen.unique(return_counts=True)))}
        assert set(counts) == set(captions)
        expected = 3000 / len(captions)
        assert all(abs(n - expected) < 5 * (expected * (1 - 1 / len(captions)) + 1) ** 0.5 for n in counts.values())
    last = cache.choose(torch.arange(4), torch.ones(4))  # a number that float32 has rounded up to 1
    assert [TEXTS[i] for i in last] == [captions[-1] for captions in CAPTIONS]


def test_nothing_is_encoded_twice(encoder, tmp_path):
    counts = count_encoded(encoder)
    build(encoder, tmp_path)
    assert sum(counts) == 6  # distinct captions and the empty one
    again = build(encoder, tmp_path, CAPTIONS[::-1] + CAPTIONS[:1], shard_size=4)
    assert sum(counts) == 6 + 6 and len(os.listdir(tmp_path)) == 2  # another order is another cache
    assert build(encoder, tmp_path).texts == TEXTS and again.empty == 5 and sum(counts) == 12


@pytest.mark.parametrize("change", ["caption", "weights", "tokenizer", "limit", "kind"])
def test_a_change_of_captions_or_encoder_makes_it_again(tmp_path, change):
    def parts():
        tokenizer = make_tokenizer()
        return [make_text_encoder("clip", tokenizer), tokenizer]

    before, encoder, captions = build(parts(), tmp_path), parts(), CAPTIONS
    if change == "caption":
        captions = [*CAPTIONS[:3], ["ship", "a dog of"]]
    elif change == "weights":
        with torch.no_grad():
            encoder[0].get_input_embeddings().weight[:, 0] += 0.1
    elif change == "tokenizer":
        encoder[1] = make_tokenizer(words=f"{WORDS} ship dog the")  # numbered by how frequent they are
    elif change == "limit":
        encoder[1] = make_tokenizer(model_max_length=4)
    else:
        encoder[0] = make_text_encoder("t5", encoder[1])
    assert build(parts(), tmp_path).texts == before.texts and len(os.listdir(tmp_path)) == 1
    after = build(encoder, tmp_path, captions)
    assert len(os.listdir(tmp_path)) == 2
    old, new = (c.embeddings(torch.arange(6))["encoder_hidden_states"] for c in (before, after))
    assert old.shape != new.shape or not torch.equal(old, new)


def test_a_killed_build_goes_on_where_it_stopped(encoder, tmp_path):
    whole = build(encoder, tmp_path).embeddings(torch.arange(6))
    (folder,) = tmp_path.iterdir()
    (folder / "index.json").unlink()
    (folder / "captions-00001.safetensors").unlink()
    (folder / "captions-00001.safetensors.1.tmp").write_bytes(b"half a shard")
    counts = count_encoded(encoder)
    again = build(encoder, tmp_path).embeddings(torch.arange(6))
    assert sum(counts) == 2  # of the second shard
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.parametrize("missing", ["index.json", "captions-00001.safetensors"])
def test_an_incomplete_cache_is_refused(encoder, tmp_path, missing):
    build(encoder, tmp_path)
    (folder,) = tmp_path.iterdir()
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=missing):
        CaptionCache(str(folder), CAPTIONS)


def test_captions_that_it_has_not_are_refused(encoder, tmp_path):
    build(encoder, tmp_path)
    (folder,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match="`captions` must be among those of .* got 'a ship'"):
        CaptionCache(str(folder), [["a dog"], ["a ship"]])


# ---------------------------------------------------------------------------------------------------- loading an encoder


@pytest.mark.parametrize("subfolders", [(None, None), ("text_encoder", "tokenizer")])
def test_an_encoder_is_loaded_from_a_folder_of_its_own_or_of_a_pipeline(encoder, tmp_path, subfolders):
    for part, subfolder in zip(encoder, subfolders):
        part.save_pretrained(tmp_path / (subfolder or ""))
    loaded = load_text_encoder(str(tmp_path), *subfolders)
    assert type(loaded[0]) is type(encoder[0]) and not loaded[0].training
    assert not any(p.requires_grad for p in loaded[0].parameters())
    for actual, expected in zip(encode_text(*loaded, ["red cat", ""]), encode_text(*encoder, ["red cat", ""])):
        assert torch.equal(actual, expected)


def test_what_is_no_text_encoder_is_refused_by_name(tmp_path):
    from transformers import BertConfig, BertModel

    must = "`pretrained_text_encoder_name_or_path` must be .* CLIP or T5"
    (tmp_path / "empty").mkdir()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=16, **sizes)).save_pretrained(tmp_path / "bert")
    make_text_encoder("clip", tokenizer).save_pretrained(tmp_path / "alone")
    for name, subfolders, message in (
        ("empty", (), must),
        ("bert", (), f"{must}.*'bert', not among"),
        ("bert", ("text_encoder",), f"{must}.*`text_encoder_subfolder` 'text_encoder', which is not there"),
        ("bert", (None, "tokenizer"), f"{must}.*`tokenizer_subfolder` 'tokenizer', which is not there"),
        ("alone", (), must),
    ):
        with pytest.raises(ValueError, match=message):
            load_text_encoder(str(Path(tmp_path, name)), *subfolders)


def test_options_of_the_encoder_are_asked_for_together(capsys):
    parse_args = load_script("train_lowfreq").parse_args
    encoder = ["--pretrained_text_encoder_name_or_path", "encoder"]
    for line, named in (
        (["--caption_column", "text"], "--pretrained_text_encoder_name_or_path: must be given with --caption_column"),
        (encoder, "--pretrained_text_encoder_name_or_path: needs --caption_column"),
        (["--text_encoder_subfolder", "a"], "--text_encoder_subfolder: needs --caption_column"),
        (["--caption_column", "text", *encoder, "--no-conditional"], "--conditional: is for labels"),
        (["--caption_column", "text", *encoder, "--label_column", "class"], "--label_column: is for labels"),
        (["--caption_column", "text", *encoder, "--prior_coupling", "semi_discrete"], "--prior_coupling: must be"),
        (["--caption_column", "text", *encoder, "--degraded_share", "0.5"], "--degraded_share: must be left out"),
        (["--caption_column", "text", *encoder, "--teacher", "t"], "--pretrained_text_encoder_name_or_path: is taken"),
    ):
        with pytest.raises(SystemExit):
            parse_args(["--output_dir", "out", "--train_data_dir", "images", *line])
        assert f"argument {named}" in capsys.readouterr().err
    assert parse_args(["--output_dir", "out", "--caption_column", "text", "--teacher", "t"]).teacher == "t"
