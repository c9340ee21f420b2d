# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Options of the training scripts: what each may be, which may change at a resume, and the groups that scripts share."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ..models import read_size
from .schedule import LR_SCHEDULERS


MAX_INTEGER = 2**63 - 1
MAX_SIZE = 2**16  # of batches, sides, channels and other sizes


# ------------------------------------------------------------------------------------------------------------- types


def count(most: int = MAX_INTEGER, least: int = 1) -> Callable[[str], int]:
    """Make the type of an option that is an integer from `least` to `most`, for `add_argument(type=...)`."""

    def read(text: str) -> int:
        value = int(text)
        if least <= value <= most:
            return value
        if -MAX_INTEGER <= value < least and least > 0:
            raise _not_allowed("positive" if least == 1 else f"at least {least}", value)
        bounds = (" from 0 on" if least == 0 else "") + (f", at most {most}" if most < MAX_INTEGER else "")
        raise _not_allowed(f"a finite number{bounds}", value)

    read.__name__ = "int"  # argparse says it of a text that is no number
    return read


def number(
    least: float = -MAX_INTEGER,
    most: float = MAX_INTEGER,
    above: float = -math.inf,
    below: float = math.inf,
    allowed: str | None = None,
) -> Callable[[str], float]:
    """
    Make the type of an option that is a finite number, for `add_argument(type=...)`.

    Args:
        least (`float`), most (`float`):
            The smallest and the largest number that is allowed.
        above (`float`), below (`float`):
            Bounds that are not allowed themselves.
        allowed (`str`, *optional*):
            What the error says is allowed, if the number is a finite one.
    """

    def read(text: str) -> float:
        value = float(text)
        if least <= value <= most and above < value < below:
            return value
        if allowed is not None and abs(value) <= MAX_INTEGER:
            raise _not_allowed(allowed, value)
        bounds = (" from 0 on" if least == 0 else "") + (f", below {below:g}" if below < math.inf else "")
        raise _not_allowed(f"a finite number{bounds}", value)

    read.__name__ = "float"
    return read


def _not_allowed(allowed: str, value: float) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"must be {allowed}, got {value}")


size = count(MAX_SIZE)
finite = number()
not_negative = number(0)
below_one = number(0, below=1)
share = number(0, 1, allowed="in [0, 1]")
positive = number(above=0, allowed="a positive number")


class RisingPair(argparse.Action):
    """
    The action of an option that is two rising numbers, for `add_argument(action=RisingPair, least=..., most=...)`.

    Args:
        least (`float`), most (`float`):
            The bounds of both.
        strictly (`bool`, defaults to `True`):
            Whether the second must be larger than the first.
    """

    def __init__(self, *args, least: float, most: float, strictly: bool = True, **kwargs):
        super().__init__(*args, nargs=2, type=finite, **kwargs)
        self.least, self.most, self.strictly = least, most, strictly

    def __call__(self, parser, namespace, values, option_string=None):
        low, high = values
        if not self.least <= low <= high <= self.most or (self.strictly and low == high):
            within = f"in [{self.least:g}, {self.most:g}]" if self.most < math.inf else f"from {self.least:g} on"
            raise argparse.ArgumentError(self, f"must be two rising numbers {within}, got {low} {high}")
        setattr(namespace, self.dest, values)


def network_size(text: str) -> str:
    """Check the size of a network, a name of `SIZES` or `LAYERSxHEADSxHEAD_DIM`, and return it as it is."""
    try:
        read_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("`size` ").removesuffix(".")) from error
    return text


# ----------------------------------------------------------------------------------------------------------- parsing


class Options(argparse.Namespace):
    """
    Parsed options. `vars(options)` holds their values, and nothing else.

    Attributes:
        given (`frozenset[str]`):
            The options on the command line or in the configuration file, at their default or not.
        free (`frozenset[str]`):
            The options that may differ between a run and its resume, see [`free`].
        defaults (`dict[str, object]`):
            The defaults.
    """

    __slots__ = ("given", "free", "defaults")


def free(action: argparse.Action) -> argparse.Action:
    """
    Declare that an option may differ between a run and its resume, since it does not change the path of the training.

    How a global batch is split is free because every draw is keyed by the position in the batch. The size of the global batch
    itself is compared.
    """
    action.is_free = True
    return action


def parse_with_config(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> Options:
    """
    Parse the command line. A `--config` JSON file is read first, by the same parser; the command line overrides it.

    Args:
        parser (`argparse.ArgumentParser`):
            A parser with a `--config` argument.
        argv (`list[str]`, *optional*):
            The command line, `sys.argv[1:]` when omitted.

    Returns:
        [`Options`].
    """
    path_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    path_parser.add_argument("--config")
    path = path_parser.parse_known_args(argv)[0].config
    from_file = [] if path is None else _read_config(parser, path)
    return parse_options(parser, from_file + (sys.argv[1:] if argv is None else argv))


def parse_options(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> Options:
    """Parse the command line, as `parser.parse_args` does, and note which options it gives."""
    actions = {action.dest: action for action in parser._actions if action.dest != "help"}
    missing = object()
    args = parser.parse_args(argv, Options(**dict.fromkeys(actions, missing)))
    defaults = {name: parser.get_default(name) for name in actions}
    args.given = frozenset(name for name, value in vars(args).items() if value is not missing)
    args.free = frozenset(name for name, action in actions.items() if getattr(action, "is_free", False))
    args.defaults = defaults
    for name in defaults.keys() - args.given:
        setattr(args, name, defaults[name])
    return args


def _read_config(parser: argparse.ArgumentParser, path: str) -> list[str]:
    """Read a configuration file as a command line."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
        if not isinstance(values, dict):
            raise ValueError("it must hold one JSON object")
    except (OSError, RecursionError, ValueError) as error:
        parser.error(f"argument --config: cannot read {path!r}: {error}")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("config", "help")}
    line = []
    for key, value in values.items():
        if key not in actions:
            parser.error(f"argument --config: unknown key {key!r} in {path!r}")
        if value is None:
            continue
        action = actions[key]
        is_flag, is_list = action.nargs == 0, action.nargs not in (None, 0)
        if isinstance(value, bool) != is_flag or isinstance(value, list) != is_list or isinstance(value, dict):
            expected = "true or false" if is_flag else "a list" if is_list else "a number or a string"
            parser.error(f"argument --config: key {key!r} in {path!r} must be {expected}, got {value!r}")
        if is_list:
            line += [f"--{key}", *map(str, value)]
        elif not is_flag:
            line.append(f"--{key}={value}")
        elif value or isinstance(action, argparse.BooleanOptionalAction):
            line.append(f"--{key}" if value else f"--no-{key}")
    # Parse it by itself first, so that the error for a bad value names the file
    required = [action for action in parser._actions if action.required]
    program, parser.prog = parser.prog, f"{parser.prog} ({path})"
    for action in required:
        action.required = False
    parser.parse_args(line)
    for action in required:
        action.required = True
    parser.prog = program
    return line


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace):
    """End the program, as `parser.error` does, at a number among the options that is not finite."""
    for name, value in vars(args).items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, (int, float)) and not abs(item) <= MAX_INTEGER:
                parser.error(f"argument --{name}: must be a finite number, got {item}")


class Clash(NamedTuple):
    """
    A row of a table of options that do not go together.

    Args:
        names (`Iterable[str]`):
            The options. The first of them that is given, on the command line or in the configuration file, is refused.
        when (`Callable[[Options], bool]`):
            Whether this row applies.
        reason (`str`):
            What the error says after the name of the option; names of options in braces stand for their values.
        missing (`bool`, defaults to `False`):
            Refuse the first that is *not* given instead.
    """

    names: Iterable[str]
    when: Callable[[Options], bool]
    reason: str
    missing: bool = False


def refuse_clashes(parser: argparse.ArgumentParser, args: Options, clashes: Iterable[Clash]):
    """End the program, as `parser.error` does, at the first row of a table that applies."""
    for names, when, reason, missing in clashes:
        found = next((name for name in names if (name in args.given) != missing), None)
        if found is not None and when(args):
            parser.error(f"argument --{found}: {reason.format(**vars(args))}")


# ------------------------------------------------------------------------------------------------------ shared groups


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Make the parser of a training script, described by the first line of `doc`, with `--config` and `--output_dir`."""
    parser = argparse.ArgumentParser(
        description=doc.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    free(parser.add_argument("--config", help="JSON file of overrides of the defaults below"))
    free(parser.add_argument("--output_dir", required=True))
    return parser


def add_revision_options(group):
    """The revision and the variant of pretrained models."""
    group.add_argument("--revision")
    group.add_argument("--variant")


def add_image_options(group, resolution: int):
    """Where the images are, and their size."""
    group.add_argument("--dataset_name", help="name of a dataset on the Hub")
    help = "local folder of images, of parquet files or of tar files (WebDataset), or one such file"
    group.add_argument("--train_data_dir", help=help)
    help = "by default train; of a folder whose names tell no splits, everything"
    group.add_argument("--train_split", help=help)
    group.add_argument("--image_column", default="image")
    group.add_argument("--resolution", type=size, default=resolution, help="side of the square images in pixels")


def add_cache_options(group, cache_batch_size: int):
    """How images and captions are encoded, and where the result is cached."""
    free(group.add_argument("--cache_dir", help="folder of the cache, by default output_dir/cache"))
    group.add_argument("--cache_batch_size", type=size, default=cache_batch_size, help="images per encoder call")
    group.add_argument("--max_skipped_images", type=share, default=0.01, help="tolerated share of unreadable images")
    free(group.add_argument("--dataloader_num_workers", type=count(MAX_SIZE, least=0), default=0))


def add_projection_options(group, projections: Iterable[str], factor: int, help: str | None = None):
    """The projection on low frequencies."""
    group.add_argument("--projection", choices=list(projections), default="bicubic", help=help)
    group.add_argument("--factor", type=size, default=factor, help=help)


def add_step_options(group, train_batch_size: int, max_train_steps: int, learning_rate: float, lr_warmup_steps: int):
    """Seed, batches, steps, and the schedule of the learning rate."""
    group.add_argument("--seed", type=count(least=0), default=0)
    help = "per process and accumulation step"
    free(group.add_argument("--train_batch_size", type=size, default=train_batch_size, help=help))
    free(group.add_argument("--gradient_accumulation_steps", type=size, default=1))
    group.add_argument("--max_train_steps", type=count(), default=max_train_steps)
    group.add_argument("--learning_rate", type=not_negative, default=learning_rate)
    group.add_argument("--lr_scheduler", choices=LR_SCHEDULERS, default="cosine")
    group.add_argument("--lr_warmup_steps", type=count(least=0), default=lr_warmup_steps)
    group.add_argument("--max_grad_norm", type=not_negative, default=1.0)
    group.add_argument("--random_flip", action=argparse.BooleanOptionalAction, default=True, help="mirror images")
    group.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])


def add_adam_options(group):
    """The settings of AdamW."""
    group.add_argument("--adam_beta1", type=below_one, default=0.9)
    group.add_argument("--adam_beta2", type=below_one, default=0.99)
    group.add_argument("--adam_weight_decay", type=not_negative, default=0.01)
    group.add_argument("--adam_epsilon", type=not_negative, default=1e-8)
    free(group.add_argument("--gradient_checkpointing", action="store_true"))


def add_checkpoint_options(group, checkpoints_total_limit: int | None = None):
    """Checkpoints, resume and trackers."""
    free(group.add_argument("--checkpointing_steps", type=count(), default=500))
    free(group.add_argument("--checkpoints_total_limit", type=count(), default=checkpoints_total_limit))
    free(group.add_argument("--resume_from_checkpoint", help="a checkpoint folder, or `latest`"))
    free(group.add_argument("--report_to", help="a tracker of accelerate, for example tensorboard"))


def add_validation_options(group, logging_steps: int, validation_steps: int, num_validation_images: int):
    """How often the run is logged, and shown in pictures."""
    free(group.add_argument("--logging_steps", type=count(), default=logging_steps))
    free(group.add_argument("--validation_steps", type=count(), default=validation_steps))
    group.add_argument("--num_validation_images", type=size, default=num_validation_images)


def add_hub_options(group):
    """The repository on the Hub that the result is pushed to."""
    free(group.add_argument("--push_to_hub", action="store_true"))
    free(group.add_argument("--hub_model_id"))
    free(group.add_argument("--hub_token"))
