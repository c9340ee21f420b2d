#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Write the figures of results files into the README and the model card, between their `figures` marks.

python benchmarks/tables.py --results benchmarks/results/cifar10-32.json benchmarks/results/cifar10-32-truncated.json \
    --files README.md checkpoints/cifar10-32/README.md
"""

import argparse
import json
import re


def table(result: dict) -> str:
    accuracy = result["graders"][result["extractor"]]["accuracy"]
    kinds = {row["coarse"] for row in result["rows"]}
    meaning = {
        "generated": "*Generated* coarse latents come from the prior model.",
        "truncated": "*Truncated* ones come from the prior model, which stops early and leaves its noise to the source.",
        "true": f"*True* ones come from {result['num_images']:,} {result['split']} images that are not compared with.",
    }
    lines = [
        f"Measured by `benchmarks/evaluate.py` (seed {result['seed']}, {result['num_images']:,} images with the labels of as "
        f"many {result['split']} images, {result['machine']}, torch {result['torch']}). *Class named* is how often the grader, "
        f"a classifier that is right on {accuracy:.1%} of the real {result['split']} images, names the "
        f"class asked for (chance: 10%). The distance is a Fréchet distance on that classifier's features against "
        f"{result['num_reference']:,} {result['split']} images; it is not an FID. "
        + " ".join(text for kind, text in meaning.items() if kind in kinds)
        + f" The autoencoder alone reaches {result['autoencoder_psnr_db']:.2f} dB PSNR on "
        f"{result['autoencoder_psnr_images']:,} {result['split']} images.",
        "",
        "| checkpoint | coarse | prior steps | α | guidance | steps | effective NFE | class named | Fréchet distance |",
        "|" + "---|" * 9,
    ]
    for row in result["rows"]:
        prior_steps = "-" if row["prior_steps"] is None else row["prior_steps"]
        lines.append(
            f"| {row['pipeline']} | {row['coarse']} | {prior_steps} | {row['noise_ratio']:g} | {row['guidance_scale']:g} | "
            f"{row['steps']} | {row['effective_nfe']:.2f} | {row['class_named']:.1%} | {row['frechet_distance']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", nargs="+", required=True, help="of checkpoints that are graded in one way")
    parser.add_argument("--files", nargs="+", required=True)
    args = parser.parse_args()
    results = []
    for path in args.results:
        with open(path, encoding="utf-8") as file:
            results.append(json.load(file))
        for key in results[0].keys() - {"pipeline", "rows", "spectrum", "curvature"}:
            if results[-1][key] != results[0][key]:
                raise ValueError(f"`results` must agree on `{key}`: {path!r} does not.")
    rows = [{"pipeline": result["pipeline"]} | row for result in results for row in result["rows"]]
    figures = table(results[0] | {"rows": rows})
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
