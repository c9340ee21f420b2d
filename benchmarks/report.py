#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Write the tables of a results file between its marks in Markdown files, and draw its figures.

    python benchmarks/report.py --results benchmarks/results/few-steps-cpu.json --figures_dir docs/figures docs/evidence.md

The marks are `<!-- study few-steps-cpu -->` and `<!-- /study -->`, with the name of the results file. Words after the name go to
the script that wrote the file: its `table(result, *words)` says which there are and writes the table.
"""

import argparse
import importlib
import os
import re

from shared.figures import write_figure
from shared.formats import METRICS
from shared.results import read


SCRIPTS = {  # that write tables, and the key of what each has measured
    "coupling": "rows",
    "degraded_latents": "degradations",
    "evaluate": "rows",
    "image_sets": "layouts",
    "overhead": "objective_steps",
    "run_study": "runs",
    "scale": "measured",
    "strangers": "rows",
    "text_to_image": "runs",
    "training_speed": "two_processes",
    "upscale": "upscaling",
}
MARK = re.compile(r"(<!-- study ([\w.-]+)((?: [\w.-]+)*) -->)\n(.*?)\n?<!-- /study -->", re.DOTALL)


def load(path: str) -> dict:
    """Read a results file that says which script wrote it, and holds what that script measures."""
    result = read(path)
    script = result.get("script")
    if script not in SCRIPTS:
        raise ValueError(f"`results` {path!r} must hold a `script` of {list(SCRIPTS)}, got {script!r}.")
    if not result.get(SCRIPTS[script]):
        raise ValueError(f"`results` {path!r} must hold `{SCRIPTS[script]}`, which {script}.py measures, got none.")
    return result


def writer(result: dict):
    """Import the script that wrote a result."""
    return importlib.import_module(result["script"])


def table(result: dict, *words: str) -> str:
    """Have the script that wrote a result write its table; no figure in it comes from anywhere else."""
    return writer(result).table(result, *words)


def marks(text: str) -> list[tuple[str, list[str], str]]:
    """Find the marked places of a text: name of the results file, words after it, and what stands there."""
    return [(name, words.split(), content) for _, name, words, content in MARK.findall(text)]


def write_tables(result: dict, name: str, files: list[str]):
    """Write the tables of a result between the marks of its name."""
    texts = {}
    for path in files:
        with open(path, encoding="utf-8") as file:
            text = file.read()

        def replace(match):
            mark, found, words, _ = match.groups()
            return f"{mark}\n{table(result, *words.split())}\n<!-- /study -->" if found == name else match[0]

        if any(found == name for found, _, _ in marks(text)):
            texts[path] = MARK.sub(replace, text)
    if not texts:
        raise ValueError(f"`files`: none of {files} has <!-- study {name} --> with a <!-- /study --> after it.")
    for path, text in texts.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", required=True)
    parser.add_argument("--metric", choices=list(METRICS), default="kernel_distance", help="of the figure")
    parser.add_argument("--figures_dir", help="where to draw NAME.png, and NAME-spectrum.png if there are spectra")
    parser.add_argument("files", nargs="*", help="Markdown files with marks")
    args = parser.parse_args(argv)
    result = load(args.results)
    name = os.path.splitext(os.path.basename(args.results))[0]
    if args.files:
        write_tables(result, name, args.files)
    if args.figures_dir:
        if not hasattr(writer(result), "figures"):
            raise ValueError(f"`figures_dir` must be left out: {result['script']}.py draws none with this script.")
        for suffix, figure in writer(result).figures(result, args.metric).items():
            write_figure(figure, os.path.join(args.figures_dir, f"{name}{suffix}.png"), dpi=120)


if __name__ == "__main__":
    main()
