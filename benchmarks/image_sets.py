#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Measure what it costs to find the image set in a large folder: the time, and the memory beside that of the imports.

    python benchmarks/image_sets.py --output benchmarks/results/image-sets.json

The files are empty and were just made, so their names are in the memory of the operating system. Each folder is walked by a
process of its own, after a folder of one file, which loads all that is imported on the way.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

from shared.environment import environment
from shared.formats import duration, markdown, measured_by
from shared.results import write
from tqdm.auto import tqdm

from diffusers_lowfreq.training.data.image_sets import find_image_set


LAYOUTS = {"flat": 1, "1,000 classes": 1000}


def peak_memory() -> float:
    """The largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: str) -> dict:
    """Find the set in a folder and make its dataset."""
    with tempfile.TemporaryDirectory() as small:
        open(os.path.join(small, "image.png"), "wb").close()
        find_image_set(small).to_dataset()
    before, started = peak_memory(), time.perf_counter()
    images = find_image_set(folder)
    found, memory_found = time.perf_counter(), peak_memory()
    dataset = images.to_dataset()
    return {
        "images": len(dataset),
        "seconds": round(found - started, 2),
        "seconds_dataset": round(time.perf_counter() - found, 2),
        "memory_mb": round(memory_found - before),
        "memory_mb_dataset": round(peak_memory() - before),
    }


def make_files(folder: str, number: int, classes: int):
    """Empty files with names of ordinary length, spread over class folders."""
    for label in range(classes):
        os.mkdir(os.path.join(folder, f"class_{label:04d}"))
    for i in tqdm(range(number), desc=f"{classes} folders"):
        open(os.path.join(folder, f"class_{i % classes:04d}", f"photograph_{i:012d}.jpeg"), "wb").close()


def table(result: dict) -> str:
    """Write what finding the set costs in each layout, and how long a million files take at this rate."""
    rows = []
    for layout, found in result["layouts"].items():
        seconds, memory = (
            found["seconds"] + found["seconds_dataset"],
            max(found["memory_mb"], found["memory_mb_dataset"]),
        )
        cells = [layout, f"{found['seconds']:.2f} s", f"{found['seconds_dataset']:.2f} s", f"{memory} MB"]
        rows.append([*cells, duration(seconds * 1_000_000 / found["images"])])
    header = ["layout", "finding the set", "making the dataset", "memory", "a million files at this rate"]
    text = (
        f"{measured_by('image_sets', result)} {result['images']:,} empty files, whose names are in the memory of the operating "
        "system; memory beside that of the imports."
    )
    return f"{text}\n\n{markdown(header, rows)}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000, help="files in a folder")
    parser.add_argument("--output", help="JSON file of the results")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.folder is not None:
        print(json.dumps(measure(args.folder)))
        return
    result = {"script": "image_sets"} | environment() | {"images": args.images, "layouts": {}}
    for layout, classes in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as folder:
            make_files(folder, args.images, classes)
            command = [sys.executable, __file__, "--folder", folder]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result["layouts"][layout] = json.loads(output.splitlines()[-1])
    print(table(result))
    if args.output is not None:
        write(result, args.output)


if __name__ == "__main__":
    main()
