# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Options: what a type reads and refuses, what counts as given, and what a resume may change."""

import argparse
import json
import math

import pytest
from scripts import load_script

from diffusers_lowfreq.training import check_numbers, options, parse_with_config
from diffusers_lowfreq.training.options import Clash, RisingPair, count, free, refuse_clashes


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    free(parser.add_argument("--config"))
    parser.add_argument("--number", type=count(), default=3)
    parser.add_argument("--name", default="a")
    parser.add_argument("--pair", action=RisingPair, least=0, most=1)
    parser.add_argument("--flag", action=argparse.BooleanOptionalAction, default=True)
    free(parser.add_argument("--speed", type=options.not_negative, default=1.0))
    return parser


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (count(10), ["1", "10"], {"0": "positive", "-3": "positive", "11": "a finite number, at most 10"}),
        (count(least=0), ["0", str(2**63 - 1)], {"-1": "a finite number from 0 on", str(2**63): "a finite number"}),
        (count(least=2), ["2"], {"1": "at least 2"}),
        (options.size, ["1", "65536"], {"65537": "at most 65536", "0": "positive"}),
        (options.share, ["0", "0.5", "1"], {"-0.1": r"in \[0, 1\]", "1.1": r"in \[0, 1\]", "nan": "a finite number"}),
        (options.positive, ["0.1", "1e9"], {"0": "a positive number", "-1": "a positive number", "inf": "finite"}),
        (
            options.not_negative,
            ["0", "3.5"],
            {"-1": "a finite number from 0 on", "1e400": "a finite number from 0 on"},
        ),
        (options.below_one, ["0", "0.999"], {"1": "from 0 on, below 1", "-0.1": "from 0 on", "nan": "from 0 on"}),
        (options.finite, ["-3", "0.1"], {"nan": "a finite number", "-inf": "a finite number"}),
        (
            options.network_size,
            ["nano", "2x3x4"],
            {"2x3": "among .* or LAYERSxHEADSxHEAD_DIM", "": "among"},
        ),
    ],
)
def test_a_type_reads_what_is_allowed_and_refuses_the_rest(read, good, bad):
    for text in good:
        assert read(text) == type(read(text))(text)
    for text, allowed in bad.items():
        with pytest.raises(argparse.ArgumentTypeError, match=f"^must be .*{allowed}.*, got"):
            read(text)


@pytest.mark.parametrize("strictly", [True, False])
def test_a_rising_pair_rises_within_its_bounds(capsys, strictly):
    parser = argparse.ArgumentParser()
    parser.add_argument("--pair", action=RisingPair, least=1, most=math.inf, strictly=strictly)
    assert parser.parse_args(["--pair", "1", "2.5"]).pair == [1.0, 2.5]
    for bad in (["0.5", "2"], ["3", "2"], ["2", "2"]):
        if bad == ["2", "2"] and not strictly:
            assert parser.parse_args(["--pair", *bad]).pair == [2.0, 2.0]
            continue
        with pytest.raises(SystemExit):
            parser.parse_args(["--pair", *bad])
        assert "argument --pair: must be two rising numbers from 1 on, got" in capsys.readouterr().err


def test_given_is_what_stands_on_the_line_or_in_the_file_at_its_default_or_not(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"name": "a", "flag": True, "speed": None}))
    args = parse_with_config(make_parser(), ["--config", str(path), "--number", "3"])
    assert args.given == {"config", "number", "name", "flag"}
    assert args.free == {"config", "speed"} and args.defaults["number"] == 3
    expected = {"config": str(path), "number": 3, "name": "a", "pair": None, "flag": True, "speed": 1.0}
    assert vars(args) == expected  # and nothing else


def test_a_clash_refuses_the_first_option_that_is_given(capsys):
    parser = make_parser()
    table = [
        Clash(["name", "number"], lambda a: a.flag, "must be left out with {speed}"),
        Clash(["pair"], lambda a: a.speed > 1, "is missing", missing=True),
    ]
    for line, said in (
        (["--number", "3"], "argument --number: must be left out with 1.0"),
        (["--no-flag", "--speed", "2"], "argument --pair: is missing"),
    ):
        with pytest.raises(SystemExit):
            refuse_clashes(parser, parse_with_config(parser, line), table)
        assert said in capsys.readouterr().err
    for line in ([], ["--no-flag", "--number", "3"], ["--speed", "2", "--pair", "0", "1"]):
        refuse_clashes(parser, parse_with_config(parser, line), table)


def test_numbers_of_any_parser_can_be_checked(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=float, nargs="+")
    check_numbers(parser, parser.parse_args(["--number", "1", "-2"]))
    with pytest.raises(SystemExit):
        check_numbers(parser, parser.parse_args(["--number", "1", "nan"]))
    assert "argument --number: must be a finite number, got nan" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- the scripts


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--teacher t --objective flow_matching", "--objective: is distillation with --teacher"),
        ("--teacher t --tangent pair", "--tangent: is the teacher's velocity"),
        ("--teacher t --factor 4", "--factor: is taken from the pretrained model"),
        ("--equal_share 0.5", "--equal_share: needs --objective mean_flow or --teacher"),
        ("--pretrained_prior_model_name_or_path p --prior_size micro", "--prior_size: is taken from the pretrained"),
        ("--shuffle_buffer_size 8192", "--shuffle_buffer_size: needs --streaming"),
        ("--objective mean_flow --guidance_interval 0 1", "--guidance_interval: must be .* with --guidance_scale"),
        ("--caption_column c --label_column label", "--label_column: is for labels"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused_at_its_default_too(capsys, line, said):
    with pytest.raises(SystemExit):
        load_script("train_lowfreq").parse_args(["--output_dir", "out", *line.split()])
    message = capsys.readouterr().err
    assert f"argument {said.split('.*')[0]}" in message and said.split(".*")[-1] in message


def test_the_scripts_agree_on_what_a_resume_may_change():
    """Beside what one of them alone has. Whatever changes the path of a training, or its global batch, is fixed."""
    parsed = [
        load_script(name).parse_args(["--output_dir", "out", *needed])
        for name, needed in (
            ("train_lowfreq", []),
            ("finetune_lora", ["--pretrained_model_name_or_path", "pipe"]),
            ("train_autoencoder", []),
        )
    ]
    for one in parsed:
        for other in parsed:
            shared = vars(one).keys() & vars(other).keys()
            assert one.free & shared == other.free & shared
    assert parsed[0].free == {
        *("config", "train", "output_dir", "cache_dir", "train_batch_size", "prior_train_batch_size", "report_to"),
        *("gradient_accumulation_steps", "gradient_checkpointing", "dataloader_num_workers", "checkpointing_steps"),
        *("checkpoints_total_limit", "resume_from_checkpoint", "logging_steps", "validation_steps"),
        *("validation_guidance_scale", "push_to_hub", "hub_model_id", "hub_token"),
    }
