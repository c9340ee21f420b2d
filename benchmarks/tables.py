#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Write the figures of checkpoints into the README and the model cards, between their `figures` marks.

    python benchmarks/tables.py --results benchmarks/results/cifar10-32.json benchmarks/results/cifar10-32-one-step.json \
        --files README.md checkpoints/cifar10-32/README.md
"""

import argparse
import re

from evaluate import table
from shared.results import read


def merge(paths: list[str]) -> dict:
    """Put the rows of several results of `evaluate.py` into one, if they are graded in one way."""
    first, *others = results = [read(path) for path in paths]
    for path, result in zip(paths[1:], others):
        for key in first.keys() - {"pipeline", "rows", "spectrum", "curvature"}:
            if result[key] != first[key]:
                raise ValueError(f"`results` must agree on `{key}`: {path!r} does not.")
    return first | {"rows": [{"pipeline": result["pipeline"]} | row for result in results for row in result["rows"]]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", nargs="+", required=True, help="of checkpoints that are graded in one way")
    parser.add_argument("--files", nargs="+", required=True)
    args = parser.parse_args(argv)
    figures = table(merge(args.results))
    for path in args.files:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if "<!-- figures -->" not in text:
            raise ValueError(f"`files`: {path} has no <!-- figures --> mark.")
        block = f"<!-- figures -->\n{figures}\n<!-- /figures -->"
        text = re.sub(r"<!-- figures -->.*?<!-- /figures -->", lambda _: block, text, flags=re.DOTALL)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    main()
