#!/usr/bin/env python
# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Write the tables of a results file between its marks in Markdown files, and draw its figures.

    python benchmarks/report.py --results benchmarks/results/few-steps-cpu.json --figures_dir docs/figures docs/evidence.md

The marks are `<!-- study few-steps-cpu -->` and `<!-- /study -->`, the name being that of the results file. After the name
may stand what to write, `budgets` (the best split of a budget between prior and flow), `gap` (generated against true coarse
latents), `ratios` (one and two steps against many of the first run) or `curvature` instead of everything, `frechet_distance` instead of the kernel distance, and `by GRADER`, a second
one of the file. Takes what `run_study.py`, `coupling.py`, `degraded_latents.py`, `upscale.py`, `training_speed.py` and `text_to_image.py` write,
and of `overhead.py` the times of the objectives and, as `starts`, of other people's pipelines, and of `scale.py` the times of a step
and, as `costs`, `checked`, `networks`, `engines`, `sets` and `limits`, everything else.
"""

import argparse
import json
import os
import re

from scipy.stats import kendalltau


METRICS = {"kernel_distance": ("kernel distance × 1000", 1000), "frechet_distance": ("Fréchet distance", 1)}
BUDGETS = (1, 2, 4, 8)  # effective NFE, to 0.1 over: at one flow step there is no other room for a prior model
SETTINGS = {  # what tells the rows of one run apart, and how a table calls it
    "coarse": "coarse",
    "prior_steps": "prior steps",
    "noise_ratio": "α",
    "guidance_scale": "guidance",
    "prior_guidance_scale": "prior guidance",
}
# Okabe and Ito's colours without their yellow, and markers that differ where the colours repeat
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*X<>h"
LINES = {None: "-.", "generated": "-", "true": "--", "truncated": ":"}


def load(path: str) -> dict:
    with open(path, encoding="utf-8") as file:
        result = json.load(file)
    kinds = ("runs", "rows", *TABLES)
    if not any(result.get(kind) for kind in kinds):
        raise ValueError(f"`results` {path!r} must hold one of {list(kinds)}, got none of them.")
    return result


def spread(values: list[float], digits: int) -> str:
    """Write the mean over seeds and, where there are several, half the range between them."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


def listing(values, what: str) -> str:
    """Write `what 0`, or `whats 0, 1 and 2`."""
    *most, last = map(str, sorted(values))
    return f"{what}s {', '.join(most)} and {last}" if most else f"{what} {last}"


def training_teraflops(run: dict) -> float:
    """Count the forward passes of the training of flow and prior model, teachers too, in 10^12 floating point operations."""
    parts = [run[part] for part in ("flow", "prior", "student flow", "student prior") if part in run]
    number = [[str(p[k]).replace(",", "") for k in ("FLOPs of a forward pass for one image", "steps", "global batch")] for p in parts]  # fmt: skip
    return sum(int(flops) * int(steps) * int(batch) for flops, steps, batch in number) / 1e12


def gather(result: dict) -> dict[tuple, dict]:
    """Gather what the seeds of each run measured in each setting: `{(run, *settings): {...}}`, in the file's order."""
    groups = {}
    for run in result["runs"]:
        for kind in ("rows", "curvature"):
            for row in run.get(kind, []):
                key = (run["run"], *(row.get(k) for k in SETTINGS))
                group = groups.setdefault(key, {"seeds": [], "steps": {}, "curvature": [], "training": []})
                if run["seed"] not in group["seeds"]:
                    group["seeds"].append(run["seed"])
                    group["training"].append(training_teraflops(run))
                (group["steps"].setdefault(row["steps"], []) if kind == "rows" else group["curvature"]).append(row)
    for key, group in groups.items():
        for steps, rows in group["steps"].items():
            if len(rows) != len(group["seeds"]) or len({row["effective_nfe"] for row in rows}) != 1:
                raise ValueError(f"`results` must grade {key} once a seed at {steps} steps, at one effective NFE.")
    return groups


def study_table(result: dict, metric: str) -> str:
    groups = gather(result)
    steps = sorted({n for group in groups.values() for n in group["steps"]})
    shown = {}
    for i, setting in enumerate(SETTINGS):
        # Coarse latents and prior steps are always told, the others where they tell rows of one run apart
        values = [{key[i + 1] for key in groups if key[0] == run} - {None} for run in {key[0] for key in groups}]
        if i < 2 or any(len(v) > 1 for v in values):
            shown[setting] = i + 1
    curves = [row for group in groups.values() for row in group["curvature"]]
    with_coarse = any("coarse_frechet_distance" in row for run in result["runs"] for row in run["rows"])
    header = ["run", *(SETTINGS[k] for k in shown), "training TFLOPs"]
    header += ["curvature", "curvature / path²", "path²"] * bool(curves) + ["coarse distance"] * with_coarse
    scale = METRICS[metric][1]
    header += ["effective NFE", *(f"distance, {n} step{'s' * (n > 1)}" for n in steps)]
    named = any("class_named" in row for run in result["runs"] for row in run["rows"])
    header += [f"class named, {n} step{'s' * (n > 1)}" for n in steps] * named
    details = [caption(result, groups, metric)]
    if curves:
        counts = {row["curvature_images"] for row in curves}
        details.append(
            f"Curvature: 128 steps from {' or '.join(f'{n:,}' for n in sorted(counts))} sources; raw, over the mean "
            "squared path (ratio of means, free of scale), and that path, per element."
        )
    if with_coarse:
        details.append("Coarse distance: Fréchet distance of generated to true coarse latents themselves.")
    if named:
        details.append("Class named: how often the grader names the class that was asked for.")
    lines = [" ".join(details), "", f"| {' | '.join(header)} |"]
    lines.append("|" + "---|" * len(header))
    for key, group in groups.items():
        cells = [key[0], *("-" if key[i] is None else f"{key[i]}" for i in shown.values())]
        cells.append(spread(sorted(set(group["training"])), 2))
        rows = [group["steps"].get(n, []) for n in steps]
        keys = {"curvature": 4, "normalized_curvature": 4, "squared_path_length": 3} if curves else {}
        measured = [(group["curvature"], *key) for key in keys.items()]
        measured += [(next(iter(group["steps"].values()), []), "coarse_frechet_distance", 3)] * with_coarse
        for source, k, digits in measured:
            values = [row[k] for row in source if k in row]
            cells.append(spread(values, digits) if values else "-")
        cells.append(" / ".join(f"{r[0]['effective_nfe']:.2f}" if r else "-" for r in rows))
        cells += [spread([scale * row[metric] for row in r], 1) if r else "-" for r in rows]
        cells += [f"{spread([100 * row['class_named'] for row in r], 1)} %" if r else "-" for r in rows if named]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def budgets_table(result: dict, metric: str) -> str:
    """For each run and budget, its best setting by the mean over seeds; true coarse latents take no part."""
    groups, scale = gather(result), METRICS[metric][1]
    lines = [
        f"{caption(result, groups, metric)} Each cell is the best setting within a budget of effective NFE (to 0.1 over), "
        "with its steps of the flow + of the prior model; chosen by the figures shown.",
        "",
        f"| run | training TFLOPs | {' | '.join(f'NFE {budget}' for budget in BUDGETS)} |",
        "|" + "---|" * (2 + len(BUDGETS)),
    ]
    for run in dict.fromkeys(key[0] for key in groups):
        own = {key: group for key, group in groups.items() if key[0] == run and key[1] != "true"}
        if not own:
            continue
        cells = [spread(sorted({t for group in own.values() for t in group["training"]}), 2)]
        for budget in BUDGETS:
            settings = [
                ([scale * row[metric] for row in rows], f"{steps}{f' + {key[2]}' if key[2] else ''}", key[1])
                for key, group in own.items()
                for steps, rows in group["steps"].items()
                if rows[0]["effective_nfe"] <= budget + 0.1
            ]
            if not settings:
                cells.append("-")
                continue
            values, steps, coarse = min(settings, key=lambda item: sum(item[0]) / len(item[0]))
            cells.append(f"{spread(values, 1)} ({steps}{', truncated' if coarse == 'truncated' else ''})")
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return "\n".join(lines)


def gap_table(result: dict, metric: str) -> str:
    """The distance with generated coarse latents less that with true ones, seed by seed."""
    groups, scale = gather(result), METRICS[metric][1]
    steps = sorted({n for group in groups.values() for n in group["steps"]})
    lines = [
        f"{caption(result, groups, metric)} Each cell is how much larger it is with generated than with true coarse latents "
        "(in brackets: over the latter).",
        "",
        f"| run | prior steps | {' | '.join(f'steps of the flow: {n}' for n in steps)} |",
        "|" + "---|" * (2 + len(steps)),
    ]
    for key, group in groups.items():
        true = groups.get((key[0], "true", None, *key[3:-1], None))
        if key[1] != "generated" or true is None:
            continue
        cells = []
        for n in steps:
            pairs = list(zip(group["steps"].get(n, []), true["steps"].get(n, [])))
            differences = [scale * (a[metric] - b[metric]) for a, b in pairs]
            share = sum(differences) / sum(scale * b[metric] for _, b in pairs) if pairs else 0
            cells.append(f"{spread(differences, 1)} ({share:+.0%})" if pairs else "-")
        lines.append(f"| {key[0]} | {key[2]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios_table(result: dict, metric: str) -> str:
    """The distance over that of the first run, with the same kind of coarse latents, at 16 steps and its most prior steps."""
    groups, scale = gather(result), METRICS[metric][1]
    first = next(iter(groups))[0]
    references = {}
    for key, group in groups.items():
        if key[0] == first and 16 in group["steps"]:
            references[key[1]] = group["steps"][16], key[2]  # the last is the one with the most prior steps
    steps = [n for n in (1, 2, 16) if any(n in group["steps"] for group in groups.values())]
    told = " and ".join(
        f"{scale * sum(row[metric] for row in rows) / len(rows):.1f} with {kind} coarse latents"
        + (f" of {prior_steps} prior steps" if prior_steps else "")
        for kind, (rows, prior_steps) in references.items()
    )
    lines = [
        f"{caption(result, groups, metric)} In brackets: over that of the run *{first}* at 16 steps, seed by seed; it is {told}. "
        "Without coarse latents: over the former.",
        "",
        f"| run | coarse | prior steps | {' | '.join(f'effective NFE | {n} step' + 's' * (n > 1) for n in steps)} |",
        "|" + "---|" * (3 + 2 * len(steps)),
    ]
    for key, group in groups.items():
        reference, _ = references[key[1] or next(iter(references))]
        cells = []
        for n in steps:
            rows = group["steps"].get(n, [])
            ratios = [row[metric] / other[metric] for row, other in zip(rows, reference)]
            nfe = f"{rows[0]['effective_nfe']:.2f}" if rows else "-"
            values = [scale * row[metric] for row in rows]
            cells.append(f"{nfe} | {f'{spread(values, 1)} ({sum(ratios) / len(ratios):.2f}×)' if rows else '-'}")
        lines.append(f"| {key[0]} | {key[1] or '-'} | {key[2] or '-'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def curvature_table(result: dict, metric: str) -> str:
    """The curvature of each run, and how many times less that is than that of the first."""
    groups = {key: group for key, group in gather(result).items() if group["curvature"]}
    names = {"curvature": 4, "squared_path_length": 3, "normalized_curvature": 4}
    (count,) = {row["curvature_images"] for group in groups.values() for row in group["curvature"]}
    lines = [
        f"**{result['question']}** Curvature of the learned flow in 128 steps from {count:,} sources (Lee et al. 2023), the mean "
        "squared path, both per element, and their ratio, which is free of scale; behind each, how many times less than in "
        f"the first row. {listing({run['seed'] for run in result['runs']}, 'seed').capitalize()}: means ± half the range. "
        f"Measured by `benchmarks/run_study.py`, tier `{result['tier']}`, on {result['machine']}.",
        "",
        "| run | coarse | raw curvature | times less | squared path | times less | curvature / path² | times less |",
        "|" + "---|" * 8,
    ]
    means = {}
    for key, group in groups.items():
        cells = [key[0], key[1] or "-"]
        for name, digits in names.items():
            values = [row[name] for row in group["curvature"]]
            mean = means[key, name] = sum(values) / len(values)
            cells += [spread(values, digits), f"{means[next(iter(groups)), name] / mean:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def caption(result: dict, groups: dict, metric: str) -> str:
    rows = [row for run in result["runs"] for row in run["rows"]]
    seeds = {run["seed"] for run in result["runs"]}
    kinds = {key[1] for key in groups} - {None}
    (images, reference, split, extractor), *others = {
        (row["num_images"], row["num_reference"], row["split"], row["extractor"]) for row in rows
    }
    if others:
        raise ValueError("`results` must be graded with one extractor, one split and one number of images.")
    text = [
        f"**{result['question']}**",
        f"Tier `{result['tier']}`, {listing(seeds, 'seed')}"
        + (": means ± half the range between seeds." if len(seeds) > 1 else ", so no difference here is a finding."),
    ]
    for seed in sorted(seeds):
        missing = sorted({key[0] for key in groups} - {run["run"] for run in result["runs"] if run["seed"] == seed})
        text += [f"Not run with seed {seed}: {', '.join(missing)}."] if missing else []
    distance = METRICS[metric][0]
    text.append(
        f"{distance[0].upper()}{distance[1:]} of {images:,} images to {reference:,} {split} images on the features of the "
        f"extractor `{extractor}`; not an FID. Effective NFE counts forward passes of the flow, and those of the prior "
        "model by their share of its FLOPs; training TFLOPs count one forward pass for each image of each batch, of flow "
        "and prior model."
    )
    meaning = {
        "generated": "*Generated* coarse latents come from the prior model.",
        "true": f"*True* ones come from {images:,} other {split} images: an oracle, at no cost.",
        "truncated": "*Truncated*: the prior model stops early and leaves its noise to the source.",
    }
    text += [meaning[kind] for kind in ("generated", "true", "truncated") if kind in kinds]
    for name in result["graders"]:
        if name != extractor:
            cells = [
                [sum(values) / len(values) for values in zip(*((r[metric], r["graders"][name][metric]) for r in rows))]
                for group in groups.values()
                for rows in group["steps"].values()
            ]
            tau = kendalltau(*zip(*cells)).statistic
            text.append(
                f"The grader `{name}` agrees on the order of the {len(cells)} settings with Kendall's τ = {tau:.3f}."
            )
    versions = ", ".join(f"{k} {result[k]}" for k in ("torch", "diffusers") if k in result)
    text.append(f"Measured by `benchmarks/run_study.py` on {result['machine']}, {versions}.")
    return " ".join(text)


def objectives_table(result: dict) -> str:
    """The time of a training step of each one-step objective over one of flow matching."""
    lines = [
        f"Time of a training step over one of flow matching with the same network and batch, in turn in one run: medians and "
        f"quartiles. Half of the pairs of times are equal. Measured by `benchmarks/overhead.py` on {result['machine']}, "
        f"{result['threads']} threads, torch {result['torch']}, with the flow of `{result['pipeline']}`.",
        "",
        "| objective | time of a step | training images a second |",
        "|---|---|---|",
    ]
    for name, row in result["objective_steps"].items():
        low, high = row["quartiles"]
        lines.append(f"| {name} | {row['ratio']:.2f}× ({low:.2f} to {high:.2f}) | {1 / row['ratio']:.2f}× |")
    return "\n".join(lines)


def starts_table(result: dict, metric: str) -> str:
    """The time of `generate_from_coarse` on stock pipelines over their bare call."""
    found = [
        f"{row['ratio']:.3f} (quartiles {row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f}) on `{name}`"
        for name, row in result["stock_starts"].items()
    ]
    (pairs,) = {row["pairs"] for row in result["stock_starts"].values()}
    return (
        f"The time of a call over that of the bare stock call with as many network calls, both in latents and in turn in one run: "
        f"{', '.join(found)}; {pairs} pairs. Measured by `benchmarks/overhead.py` on {result['machine']}, "
        f"{result['threads']} threads, torch {result['torch']}."
    )


def training_speed_table(result: dict) -> str:
    """What the training script makes of the time it has."""
    rows, processes, saves, memory = [], result["two_processes"], result["checkpoints"], result["memory"]
    for kind, title in (("independent", "independent coupling"), ("minibatch_ot", "minibatch optimal transport")):
        found = result[kind]
        low, high = found["quartiles"]
        rows.append(
            (
                f"images a second, over a plain loop around torchcfm's matcher, {title}",
                f"**{found['ratio']:.3f}** (quartiles {low:.3f} to {high:.3f} of {found['blocks']} pairs of blocks of "
                f"{found['steps_of_a_block']} steps): {found['images_per_second']:.0f} against "
                f"{found['images_per_second_of_the_plain_loop']:.0f}",
            )
        )
    times = processes["step_ms"]
    rows += [
        (
            f"images a second of two single-threaded processes over one, total batch {processes['total_batch']}",
            f"**{processes['ratio']:.2f}** ({', '.join(f'{r:.2f}' for r in processes['ratios'])}); two that know nothing of each "
            f"other: {processes['ratio_of_two_apart']:.2f}. A step takes {times['one']:.0f}, {times['two']:.0f} and "
            f"{times['two apart']:.0f} ms",
        ),
        (
            f"sent by each of the two in a step, {processes['parameters'] / 1e6:.2f} M parameters",
            f"{processes['mb_sent_by_each_measured']} MB measured, {processes['mb_sent_by_each_calculated']} MB calculated",
        ),
        (
            f"share of a run for a checkpoint every {saves['checkpointing_steps']} steps",
            f"**{saves['share']:.2%}**: {saves['save_ms']:.0f} ms against steps of {saves['step_ms']:.0f} ms",
        ),
        (
            f"growth of the resident memory over {memory['steps']:,} steps, from the second tenth to the last",
            f"**{memory['growth_mib_from_the_second_to_the_last_tenth']:.1f} MiB** of {memory['mib_by_tenth_of_the_run'][-1]:.0f}",
        ),
    ]
    return "\n".join(
        [
            f"Measured by `benchmarks/training_speed.py` on {result['machine']}, {result['threads']} threads where nothing else is "
            f"said, torch {result['torch']}, seed {result['seed']}, batch {result['batch_size']}, network "
            f"{result['transformer_size']}; load before: {result['load_at_start']}. The plain loop has the same network, batch, "
            "optimiser (in the default kernel of torch, where the script asks for the fused one), averages and clipping.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
        ]
    )


def text_table(result: dict) -> str:
    """How often the grader names the class in the prompt, and the class of a negative prompt."""

    def mean(values):
        return f"{100 * sum(values) / len(values):.1f} % ({', '.join(f'{100 * v:.1f}' for v in values)})"

    runs, settings = result["runs"], result["settings"]
    flow, prior = runs[0]["flow"], runs[0]["prior"]
    classes = len(runs[0]["negative"])
    lines = [
        f"**Does the text decide what is shown?** A flow of {flow['parameters']} and a prior model of {prior['parameters']} "
        f"parameters on {settings['train']['resolution']}² images, trained {flow['steps']} and {prior['steps']} steps of "
        f"{flow['global batch']} and {prior['global batch']} on captions made of the {classes} class names by {len(result['templates'])} "
        f"templates; the text encoder is a frozen T5 encoder with random weights "
        f"({settings['encoder']['num_layers']} layers of {settings['encoder']['d_model']}). "
        f"{settings['steps']} steps of the flow, {settings['prior_steps']} of the prior model. *Named*: how often the "
        f"grader, which is right on {result['accuracy']:.1%} of the real {result['split']} images of this size, names the class "
        f"in the prompt (chance: {1 / classes:.0%}); *if another is asked for*: how often it names a class while the prompt holds "
        "another; *verdict changed*: how often two prompts of different classes with the same noise give different verdicts. "
        f"Means over seeds, each in brackets. Measured by `benchmarks/text_to_image.py` on {result['machine']}, torch "
        f"{result['torch']}.",
        "",
        "| prompts | guidance | effective NFE | named | if another is asked for | verdict changed |",
        "|" + "---|" * 6,
    ]
    for rows in zip(*(run["rows"] for run in runs)):
        row = rows[0]
        cells = [row["templates"], f"{row['guidance_scale']:g}", f"{row['effective_nfe']:.2f}"]
        keys = ("class_named", "class_named_if_another_is_asked", "verdict_changed")
        cells += [mean([r[key] for r in rows]) for key in keys]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"A prompt that names no class (the empty one), without and with a negative prompt that names one, at guidance "
        f"{settings['negative_guidance_scale']:g}; {runs[0]['negative'][0]['images']} images of the same noise each.",
        "",
        "| class | named | named with it as negative prompt |",
        "|" + "---|" * 3,
    ]
    of_all = []
    for rows in zip(*(run["negative"] for run in runs)):
        cells = [[r[key] for r in rows] for key in ("named", "named_with_negative_prompt")]
        of_all.append(cells)
        lines.append(f"| {rows[0]['class']} | {' | '.join(map(mean, cells))} |")
    overall = [[sum(v) / len(v) for v in zip(*cells)] for cells in zip(*of_all)]
    lines.append(f"| all | {' | '.join(map(mean, overall))} |")
    return "\n".join(lines)


def coupling_cells(result: dict) -> dict[tuple, dict[float, list[float]]]:
    """Gather the identity kept, in percent: `{(pairs, operator, factor): {noise ratio: [one for each seed]}}`."""
    cells = {}
    for row in result["rows"]:
        cell = cells.setdefault((row["num_pairs"], row["operator"], row["factor"]), {})
        cell.setdefault(row["noise_ratio"], []).append(100 * row["identity_kept"])
    operators = list(dict.fromkeys(key[1] for key in cells))
    return dict(sorted(cells.items(), key=lambda item: (item[0][0], operators.index(item[0][1]), item[0][2])))


def coupling_table(result: dict) -> str:
    cells = coupling_cells(result)
    ratios = sorted({ratio for cell in cells.values() for ratio in cell})
    seeds = {}
    for row in result["rows"]:
        seeds.setdefault(row["num_pairs"], set()).add(row["seed"])
    counts = "; ".join(f"{pairs:,} pairs: {listing(s, 'seed')}" for pairs, s in sorted(seeds.items()))
    lines = [
        f"Share of pairs (%) that an exact assignment between sources and samples leaves together, in {result['space']}, "
        f"by noise ratio α: means ± half the range between seeds ({counts}). The masks are controls: orthogonal "
        "projections that are not of low frequency. Measured by `benchmarks/coupling.py` on "
        f"{result['machine']}, torch {result['torch']}.",
        "",
        f"| pairs | operator | factor | {' | '.join(f'α = {ratio:g}' for ratio in ratios)} |",
        "|" + "---|" * (3 + len(ratios)),
    ]
    for (pairs, operator, factor), cell in cells.items():
        values = [spread(cell[ratio], 2) if ratio in cell else "-" for ratio in ratios]
        lines.append(f"| {pairs:,} | {operator} | {factor} | {' | '.join(values)} |")
    return "\n".join(lines)


def degraded_latents_table(result: dict) -> str:
    """How far the coarse latent of a degraded image is from that of the image, beside the same in pixels."""
    lines = [
        f"Distance of the coarse latents of {result['num_images']:,} degraded {result['split']} images from those of the images "
        f"themselves, `|D E(x) - D E(degraded x)| / |D E(x)|`, with the autoencoder of `{result['pipeline']}` and its projection "
        f"(`{result['projection']}`, factor {result['factor']}); in brackets over the length without the mean of each channel. "
        f"In pixels: the same for `D` itself, by {result['pixel_factor']} to as many places: what a linear encoder would "
        f"leave. Measured by `benchmarks/degraded_latents.py` on {result['machine']}, torch {result['torch']}.",
        "",
        "| degradation | latents | pixels |",
        "|---|---|---|",
    ]
    for row in result["degradations"]:
        cells = [
            f"{row[k]['relative_distance']:.1%} ({row[k]['centred_distance']:.1%})" for k in ("latents", "pixels")
        ]
        lines.append(f"| {row['degradation']} by {row['factor']:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def upscaling_table(result: dict) -> str:
    """Upscaling with a flow and with its LoRA, beside no network and the autoencoder alone."""
    methods = {
        "image": "none: the picture as it is",
        "autoencoder": "autoencoder alone",
        "flow": f"flow of `{result['pipeline']}`",
        "LoRA": f"with `{result['lora']}`",
    }
    accuracy = result["graders"][result["extractor"]]["accuracy"]
    lines = [
        f"{result['num_images']:,} {result['split']} images, degraded and scaled up again (seed {result['seed']}, their labels told, "
        f"guidance {result['guidance_scale']:g}). *Fidelity*: PSNR between thumbnails of the result and of the image, of the "
        "size of the coarse latent. *Class named*: how often the grader, a classifier that is right on "
        f"{accuracy:.1%} of the real images, names the class; the distances are on its features, to {result['num_reference']:,} "
        f"other {result['split']} images, and no FID. Not degraded, the coarse latent is the true one: an oracle. Measured by "
        f"`benchmarks/upscale.py` on {result['machine']}, torch {result['torch']}.",
        "",
        "| picture | method | α | steps | fidelity | PSNR | class named | Fréchet distance | kernel distance × 1000 |",
        "|" + "---|" * 9,
    ]
    for row in result["upscaling"]:
        told = ["-" if row["strength"] is None else f"{row['strength']:g}", row["steps"] or "-"]
        same = row["degradation"] == "none" and row["method"] == "image"
        told += ["-" if same else f"{row[k]:.1f} dB" for k in ("fidelity_db", "psnr_db")]
        kind = "the image" if row["degradation"] == "none" else row["degradation"].replace("-", " by ")
        lines.append(
            f"| {kind} | {methods[row['method']]} | {' | '.join(map(str, told))} | {row['class_named']:.1%} | "
            f"{row['frechet_distance']:.1f} | {1000 * row['kernel_distance']:.1f} |"
        )
    return "\n".join(lines)


STRANGERS = {
    "SDEdit as in img2img": "SDEdit, stock grid (image-to-image)",
    "training-free start": "training-free start (SDEdit, even grid)",
}


def strangers_table(result: dict) -> str:
    """The distances of each way to sample somebody else's flow, where strengths were tried the best for each number of steps."""
    steps, seeds = result["settings"]["evaluate"]["steps"], sorted({row["seed"] for row in result["rows"]})
    (prior_steps,) = result["settings"]["evaluate"]["prior_steps"]
    rows = {}
    for row in result["rows"]:
        key = (row["method"], row["coarse"], row["noise_ratio"], row["steps"])
        rows.setdefault(key, []).append(row)

    def cell(method, coarse, n, metric, scale, ratios):
        """The best of `ratios` by the mean over seeds, and which it is where there is a choice."""
        found = []
        for ratio in ratios:
            values = [scale * row[metric] for row in rows[method, coarse, ratio, n]]
            found.append((sum(values) / len(values), (max(values) - min(values)) / 2, ratio))
        mean, spread, ratio = min(found)
        return f"{mean:.1f} ± {spread:.1f}" + (f" ({ratio:g})" if len(ratios) > 1 else "")

    any_row = next(row for row in result["rows"] if row["coarse"] == "generated")
    cost = any_row["effective_nfe"] - any_row["steps"]
    lora, flow = result["lora"], result["training"][str(seeds[0])]["flow"]
    text = (
        f"**{result['question']}** Tier `{result['tier']}`, seeds {' and '.join(map(str, seeds))}: means ± half the range. A flow "
        f"of {flow['parameters']} parameters from Gaussian noise ({flow['steps']} steps of {flow['global batch']} images) is the "
        f"stranger. A LoRA of rank {lora['rank']} is trained on it for {lora['max_train_steps']} steps of "
        f"{lora['train_batch_size']}, and so is the stranger itself in the row *trained longer*. Coarse latents are *generated* by a "
        f"prior model in {prior_steps} steps, which cost {cost:.2f} effective NFE more than the columns say, or *true*, an oracle: "
        f"those of other test images. In brackets the strength (the noise ratio of the start) that was best there, of "
        f"{', '.join(f'{s:g}' for s in result['strengths'])}. {result['settings']['evaluate']['num_images']:,} images, features of "
        f"`{result['extractor']}`; not an FID. Measured by `benchmarks/strangers.py` on {result['machine']}, torch "
        f"{result['torch']}, diffusers {result['diffusers']}."
    )
    parts = [text]
    for title, metric, scale in (
        ("Kernel distance × 1000", "kernel_distance", 1000),
        ("Fréchet distance", "frechet_distance", 1),
    ):
        lines = [
            f"| {title} | coarse | " + " | ".join(f"NFE {n}" for n in steps) + " |",
            "|---" * (len(steps) + 2) + "|",
        ]
        for method in dict.fromkeys(row["method"] for row in result["rows"]):
            ratios = [row["noise_ratio"] for row in result["rows"] if row["method"] == method]
            ratios = list(dict.fromkeys(ratios))
            kinds = list(dict.fromkeys(row["coarse"] for row in result["rows"] if row["method"] == method))
            for choice in [[r] for r in ratios] if method == "LoRA" else [ratios]:
                name = f"LoRA (α = {choice[0]:g})" if method == "LoRA" else STRANGERS.get(method, method)
                for kind in kinds:
                    cells = [cell(method, kind, n, metric, scale, choice) for n in steps]
                    lines.append(f"| {name} | {kind or '-'} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def si(value: float, unit: str) -> str:
    """Write three digits with a prefix of the unit."""
    prefixes = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1, "m": 1e-3, "µ": 1e-6}
    prefix = next((p for p, scale in prefixes.items() if value >= 0.9995 * scale), "µ")
    return f"{value / prefixes[prefix]:.3g} {prefix}{unit}"


def duration(seconds: float) -> str:
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 100 * length else f"{seconds / length:,.0f} {unit}"
    return si(seconds, "s")


def scale_caption(result: dict) -> str:
    return (
        f"By `benchmarks/scale.py` on {result['machine']} (load before: {result['load']:g}), {result['threads']} thread a process, "
        f"torch {result['torch']}, seed {result['seed']}."
    )


def steps_table(result: dict, metric: str | None = None) -> str:
    """The measured time of a training step against tokens and parameters."""
    settings, steps = result["settings"], result["measured"]["steps"]
    lines = [
        f"**Measured**: one training step in float32 (loss, gradient, clipping, AdamW, averages) of {settings['batch_size']} images: "
        f"medians and quartiles of {settings['repeats']} steps, the cases in turn. {scale_caption(result)}",
        "",
        "| network | parameters | tokens | FLOPs of a step | time | rate |",
        "|" + "---|" * 6,
    ]
    for row in steps["tokens"] + steps["parameters"]:
        low, high = (si(t, "s") for t in row["quartiles"])
        lines.append(
            f"| {row['size']} | {row['parameters'] / 1e6:.1f} M | {row['tokens']} | {si(row['step_flops'], 'FLOP')} | "
            f"{si(row['seconds'], 's')} ({low} to {high}) | {si(row['flops_per_second'], 'FLOP/s')} |"
        )
    return "\n".join(lines)


def costs_table(result: dict, metric: str | None = None) -> str:
    """What else was measured: the cache, the draws, the checkpoint, two processes."""
    measured, settings = result["measured"], result["settings"]
    cache, order, checkpoint, two = (measured[k] for k in ("cache", "order", "checkpoint", "two_processes"))
    images, times = f"{cache['images']:,} images", "{} repeats".format
    rows = [
        ("building a latent cache (32 px PNG, `cifar10-32`)", f"{cache['built_per_second']:,.0f} images/s", f"{images}, once"),
        ("its files", f"{cache['stored_bytes_per_image']:,.0f} bytes an image", images),
        ("opening it", f"{si(cache['open_seconds_per_shard'], 's')} a file", f"{cache['shards']} files, {times(settings['repeats'])}"),
    ]  # fmt: skip
    if cache["maps_per_shard"] is not None:
        rows.append(("memory maps it takes", f"{cache['maps_per_shard']:g} a file", f"{cache['shards']} files"))
    for row in cache["reading"]:
        rate = f"{row['images_per_second']:,.0f} images/s, {si(row['bytes_per_second'], 'B/s')}"
        rows.append((f"reading latents of {row['latents']}, {row['order']}, batches of 64, one process, from the page cache", rate, f"{row['images']:,} images, {times(row['repeats'])}"))  # fmt: skip
    rows += [
        ("the order of an epoch", f"{si(order['seconds'], 's')}, {order['bytes_per_image']:g} bytes an image", f"{order['set_size']:,} images, {times(order['repeats'])}"),
        (f"noise of {'×'.join(map(str, result['assumed']['sample']))}, a generator an image", f"{order['noise_per_second']:,.0f} images/s", times(order["noise_repeats"])),
        ("a checkpoint, DDP", f"{checkpoint['bytes_per_parameter']:.1f} bytes a parameter, {si(checkpoint['bytes_per_second'], 'B/s')}", f"{checkpoint['parameters'] / 1e6:.1f} M parameters, {times(checkpoint['repeats'])}"),
    ]  # fmt: skip
    for row in two["all_reduce"]:
        rate = f" ({si(row['bytes'] / row['seconds'], 'B/s')})" if row["bytes"] > 1000 else ""
        rows.append((f"all-reduce of {si(row['bytes'], 'B')}, gloo, two processes", f"{si(row['seconds'], 's')}{rate}", times(row["repeats"])))  # fmt: skip
    for row in two["steps"]:
        both = f"{si(row['DDP'], 's')} against {si(row['alone'], 's')}"
        rows.append((f"a step of {row['parameters'] / 1e6:.1f} M parameters under DDP, two processes, against each alone", both, times(row["repeats"])))  # fmt: skip
    lines = [
        f"**Measured**; medians where there are repeats. {scale_caption(result)}",
        "",
        "| what | | of |",
        "|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def checked_table(result: dict, metric: str | None = None) -> str:
    """The formulas beside what could be measured of them."""
    measured = result["measured"]
    steps = measured["steps"]["tokens"] + measured["steps"]["parameters"]
    flops = [row["calculated_flops"] / row["forward_flops"] for row in steps]
    rows = [("FLOPs of a forward pass", f"`count_flops`, {len(flops)} networks", flops)]
    for bf16 in (False, True):
        for checkpointing in (False, True):
            found = [r for r in measured["activations"] if (r["bf16"], r["checkpointing"]) == (bf16, checkpointing)]
            name = f"activations, {'autocast to bf16' if bf16 else 'float32'}{', checkpointing' * checkpointing}"
            of = f"saved tensors, {len(found)} networks{', without the layer that is made again' * checkpointing}"
            rows.append((name, of, [r["calculated"] / r["measured"] for r in found]))
    one, two = measured["checkpoint"]["state_bytes_per_parameter"], measured["two_processes"]["fsdp2_state_bytes_per_parameter"]  # fmt: skip
    expected = {"weights": 4, "gradients": 4, "moments": 8, "averages": 4}
    for name, state, processes in (("one process", one, 1), ("FSDP2 on two, a process", two, 2)):
        rows.append((f"weights, gradients, moments, averages: {name}", "their tensors", [expected[k] / processes / v for k, v in state.items()]))  # fmt: skip
    cache = measured["cache"]
    stored = [cache["calculated_bytes_per_image"] / cache["stored_bytes_per_image"]]
    rows.append(("bytes of a latent cache", "its files", stored))
    lines = [
        f"**Calculated over measured**: the lowest and the highest ratio. {scale_caption(result)}",
        "",
        "| formula | measured as | ratio |",
        "|---|---|---|",
    ]
    return "\n".join(lines + [f"| {name} | {of} | {min(r):.3f} to {max(r):.3f} |" for name, of, r in rows])


def networks_table(result: dict, metric: str | None = None) -> str:
    """The calculated step of large networks."""
    a, calculated = result["assumed"], result["calculated"]
    size = "×".join(map(str, a["sample"]))
    lines = [
        f"**Calculated**: {a['images_per_gpu']} latents of {size} a GPU ({a['sample'][1] ** 2 // 4:,} tokens), "
        f"bf16, at an assumed {a['utilisation']:.0%} of {si(a['flops_per_second'], 'FLOP/s')} (H100, dense). In brackets: with "
        "`--gradient_checkpointing`.",
        "",
        "| network | `--transformer_size` | parameters | FLOPs of a forward pass | time of a step | activations | checkpoint |",
        "|" + "---|" * 7,
    ]
    for row in calculated["networks"]:
        cells = [row["network"], row["size"], f"{row['parameters'] / 1e9:.2f} B", si(row["forward_flops"], "FLOP")]
        cells.append(f"{si(row['step_seconds'], 's')} ({si(row['step_seconds_checkpointed'], 's')})")
        cells.append(f"{row['activations'] / 1e9:.1f} GB ({row['activations_checkpointed'] / 1e9:.1f} GB)")
        lines.append(f"| {' | '.join([*cells, si(row['checkpoint'], 'B')])} |")
    return "\n".join(lines)


def engines_table(result: dict, metric: str | None = None) -> str:
    """The calculated memory and communication of each engine."""
    a, calculated = result["assumed"], result["calculated"]
    limit = a["memory_bytes"]
    cells = {}
    for memory, sent in zip(calculated["memory"], calculated["communication"]):
        cells.setdefault((memory["network"], memory["engine"]), []).append((memory, sent))
    gpus = [memory["gpus"] for memory, _ in next(iter(cells.values()))]
    step = {row["network"]: row["step_seconds"] for row in calculated["networks"]}
    lines = [
        f"**Calculated**: memory of a GPU in GB without activations (bold: over {limit / 1e9:.0f}), with averages, and in brackets "
        "with `--no-use_ema`; what a GPU sends in a step, and how long that takes over the step of the table above, if nothing "
        f"is hidden behind it, at nominal rates: {si(a['link_within_machine'], 'B/s')} within a machine of {a['gpus_per_machine']} "
        f"(NVLink), {si(a['link_between_machines'], 'B/s')} a GPU between machines (400 Gb/s).",
        "",
        f"| network | engine | at the start | {' | '.join(f'{n:,} GPUs' for n in gpus)} | sent | "
        f"time, {gpus[0]:,} | time, {gpus[-1]:,} |",
        "|" + "---|" * (6 + len(gpus)),
    ]

    def gb(value):
        text = f"{value / 1e9:.1f}"
        return f"**{text}**" if value > limit else text

    for (name, engine), pairs in cells.items():
        row = [name, engine, gb(pairs[0][0]["at_start"])]
        row += [f"{gb(memory['all'])} ({gb(memory['without_averages'])})" for memory, _ in pairs]
        row.append(si(pairs[-1][1]["bytes"], "B"))
        row += [
            f"{si(sent['seconds'], 's')} ({sent['seconds'] / step[name]:.0%})" for _, sent in (pairs[0], pairs[-1])
        ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def sets_table(result: dict, metric: str | None = None) -> str:
    """The calculated size of latent caches, and the rate at which they are read."""
    a, calculated = result["assumed"], result["calculated"]
    few, many = (f"{a[k]:,}" for k in ("images", "many_images"))
    lines = [
        f"**Calculated**: both orientations in float16, with label and row; read at {calculated['images_per_second']:,.0f} images/s a "
        "GPU, what the smallest network above takes at most (the others take less). The coupling is "
        "`--prior_coupling semi_discrete`, on every GPU, at factor 4.",
        "",
        f"| latents | an image | {few} images | {many} images | read, a GPU | 8 GPUs | 64 GPUs | 1,024 GPUs | coupling, {few} images |",
        "|" + "---|" * 9,
    ]
    for row in calculated["cache"]:
        cells = [row["latents"], si(row["bytes"], "B"), si(row["bytes"] * a["images"], "B")]
        cells += [si(row["bytes"] * a["many_images"], "B")]
        cells += [si(row["read_per_gpu"] * n, "B/s") for n in (1, 8, 64, 1024)]
        lines.append(f"| {' | '.join([*cells, si(row['semi_discrete'] * a['images'], 'B')])} |")
    return "\n".join(lines)


def limits_table(result: dict, metric: str | None = None) -> str:
    """What breaks first, why, and the setting that answers it."""
    a, calculated, measured = result["assumed"], result["calculated"], result["measured"]
    network = {row["network"]: row for row in calculated["networks"]}
    small, middle, large = network.values()
    engines = {(r["network"], r["engine"], r["gpus"]): r for r in calculated["memory"]}
    sent = {(r["network"], r["engine"], r["gpus"]): r["seconds"] for r in calculated["communication"]}
    slow, fast = a["encoded_per_second"]
    noise = a["images_per_gpu"] / measured["order"]["noise_per_second"]
    gradients = large["unscattered_gradients"]
    every = a["checkpointing_steps"]
    held = calculated["held_bytes_per_image"] * a["many_images"]
    order = measured["order"]["seconds"] / measured["order"]["set_size"] * a["many_images"]
    files = -(-a["many_images"] // a["shard_size"])
    coupling = max(row["semi_discrete"] for row in calculated["cache"] if row["latents"].startswith("256"))
    rows = [
        ("8", "the cache is built by one process, the others wait", f"{a['images']:,} images at {fast:,} to {slow:,} a second (assumed): {duration(a['images'] / fast)} to {duration(a['images'] / slow)}; {a['many_images']:,}: {duration(a['many_images'] / fast)} to {duration(a['many_images'] / slow)}", "a run on one GPU first, with the same `--cache_dir`; or `--streaming`"),
        ("8", "activations", f"{middle['activations'] / 1e9:.0f} GB beside {engines['1 B', 'DDP', 8]['all'] / 1e9:.0f} GB, 1 B under DDP", "`--gradient_checkpointing`, or a smaller `--train_batch_size` with `--gradient_accumulation_steps`"),
        ("8", "10 B under DDP", f"{engines['10 B', 'DDP', 8]['all'] / 1e9:.0f} GB on every GPU, however many", "`fsdp2.yaml`"),
        ("8", "10 B under ZeRO: the averages are whole on each GPU, and there before DeepSpeed takes parts", f"{engines['10 B', 'ZeRO-3', 8]['at_start'] / 1e9:.0f} GB at the start", "`fsdp2.yaml`, where they are in parts, or `--no-use_ema`"),
        ("8", "memory of the machine at the start: every process makes the whole network on its CPU", f"10 B: {large['host_at_start'] / 1e9:.0f} GB for {a['gpus_per_machine']} processes", "a smaller network; no setting"),
        ("8", "noise is drawn on the CPU, an image at a time", f"{si(noise, 's')} of a step of {si(small['step_seconds'], 's')} at 0.1 B", "no setting; larger networks hide it"),
        ("64", "gradients between machines", f"1 B under DDP: {si(sent['1 B', 'DDP', 64], 's')} beside a step of {si(middle['step_seconds'], 's')}, of which the backward pass hides a part", "more images a step and GPU: `--gradient_checkpointing` for a larger `--train_batch_size`, `--gradient_accumulation_steps`"),
        ("64", "accumulation under FSDP2 keeps whole bf16 gradients on each GPU, and gathers the weights for every part", f"10 B: {gradients / 1e9:.0f} GB more", "`--gradient_checkpointing` and a larger `--train_batch_size` instead"),
        ("64", "one process writes a checkpoint under DDP, the others wait", f"1 B: {duration(middle['write_seconds'])} at {si(a['disk_write'], 'B/s')} (assumed) every {every} steps, {duration(every * middle['step_seconds'])}", "`--checkpointing_steps`; the sharded ones of `fsdp2_multi_node.yaml`; `--checkpoints_total_limit`"),
        ("64", "one process validates under DDP and ZeRO-2, the others wait", f"the time of {calculated['validation_steps']:.0f} steps every {a['validation_steps']:,}", "`--validation_steps`, `--num_validation_images`"),
        ("64", "minibatch optimal transport sees the batch of one process", "the same global batch over more GPUs is a weaker coupling", "`--prior_coupling semi_discrete`; or `--train prior` on few GPUs, it is small"),
        ("64", "the semi-discrete coupling holds all coarse latents on each GPU", f"{a['images']:,} images of 256 px with 16 channels: {coupling * a['images'] / 1e9:.0f} GB", "`--prior_coupling minibatch_ot` or `independent`"),
        ("1,024", "something fails", f"every {duration(calculated['failure_hours']['1024'] * 3600)}, if a GPU does every {a['failure_hours']:,} hours (419 failures in 54 days of 16,384 GPUs: arXiv 2407.21783)", f"[start again by itself](#start-again); a checkpoint every {duration(middle['best_interval_seconds']['1024'])} loses least for 1 B under DDP"),
        ("1,024", "a machine is lost for good", "under FSDP2, ZeRO and `--streaming` a checkpoint goes on on as many processes only", "a machine in reserve; under `ddp_multi_node.yaml` fewer processes, with the same global batch"),
        ("1,024", "a process hangs", "the others wait a day: the time limit of collectives is that long because of the cache", "no setting; let the batch system watch `--logging_steps`"),
        ("1,024", "the global batch", f"{a['images_per_gpu'] * 1024:,} images; one for each GPU is the least", "fewer GPUs: no study here went beyond batches of hundreds"),
        ("1,024", "weights under FSDP2 are in parts over all GPUs, not within a machine", f"10 B: {si(sent['10 B', 'FSDP2', 1024], 's')} beside a step of {si(large['step_seconds'], 's')}", "more images a step and GPU, as above"),
        ("any", "a process holds labels, rows and the order of an epoch", f"{held / 1e9:.0f} GB for {a['many_images']:,} images, {a['gpus_per_machine']} times that a machine; the order anew in {duration(order)} or more an epoch", "`--streaming`"),
        ("any", "every file of a cache is a memory map of the process", f"{files:,} files for {a['many_images']:,} images, {a['maps']:,} maps allowed by default", "`sysctl vm.max_map_count`, or `--streaming`"),
        ("any", "latents are read in random order, a page at a time", "what does not fit the page cache is read from the disk, on network disks slowly", "`--cache_dir` on a local disk that all processes of the machine share, `--dataloader_num_workers`; or `--streaming`"),
    ]  # fmt: skip
    lines = [
        "**Calculated**, from the tables above and what is measured; nothing of it was run.",
        "",
        "| GPUs | what breaks | why | what answers it |",
        "|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


TABLES = {
    "lora_noise_ratios": strangers_table,
    "templates": text_table,
    "objective_steps": objectives_table,
    "two_processes": training_speed_table,
    "degradations": degraded_latents_table,
    "upscaling": upscaling_table,
    "measured": steps_table,
}
VIEWS = {
    None: study_table,
    "starts": starts_table,
    "costs": costs_table,
    "checked": checked_table,
    "networks": networks_table,
    "engines": engines_table,
    "sets": sets_table,
    "limits": limits_table,
    "budgets": budgets_table,
    "gap": gap_table,
    "ratios": ratios_table,
    "curvature": curvature_table,
}


def by_grader(result: dict, name: str) -> dict:
    """The results with the distances of another of their graders in the first place."""
    first, runs = result["extractor"], []
    for run in result["runs"]:
        rows = []
        for row in run["rows"]:
            distances = {k: row[k] for k in METRICS}
            graders = {k: v for k, v in row["graders"].items() if k != name} | {first: distances}
            rows.append(row | row["graders"][name] | {"extractor": name, "graders": graders})
        runs.append(run | {"rows": rows})
    return result | {"extractor": name, "runs": runs}


def table(result: dict, view: str | None = None, metric: str = "kernel_distance", grader: str | None = None) -> str:
    """Make the Markdown of a results file; no figure in it comes from anywhere else."""
    for kind, make in TABLES.items():
        if kind in result:
            return VIEWS[view](result, metric) if view else make(result)
    if "rows" in result:
        return coupling_table(result)
    return VIEWS[view](by_grader(result, grader) if grader else result, metric)


def marks(text: str) -> list[tuple]:
    """Find the marked places of a text: name of the results file, view, metric, grader, opening mark, what stands there."""
    views = "|".join(view for view in VIEWS if view)
    words = rf"([\w.-]+)(?: ({views}))?(?: ({'|'.join(METRICS)}))?(?: by ([\w.-]+))?"
    found = re.findall(rf"(<!-- study {words} -->)\n(.*?)\n?<!-- /study -->", text, re.DOTALL)
    return [
        (name, view or None, metric or "kernel_distance", grader or None, mark, content)
        for mark, name, view, metric, grader, content in found
    ]


def write_tables(result: dict, name: str, files: list[str]):
    texts = {}
    for path in files:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        for found, view, metric, grader, mark, _ in marks(text):
            if found == name:
                block = f"{mark}\n{table(result, view, metric, grader)}\n<!-- /study -->"
                pattern = f"{re.escape(mark)}\n.*?<!-- /study -->"
                texts[path] = re.sub(pattern, lambda _: block, texts.get(path, text), flags=re.DOTALL)
    if not texts:
        raise ValueError(f"`files`: none of {files} has <!-- study {name} --> with a <!-- /study --> after it.")
    for path, text in texts.items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def style(index: int) -> dict:
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def study_figure(result: dict, metric: str):
    """
    Draw the distance against effective NFE, the seeds as bars.

    Where a run is graded with several numbers of prior steps, the line is the best that it reaches within each cost; every
    setting is a pale point.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    groups = gather(result)
    runs = list(dict.fromkeys(key[0] for key in groups))
    rows = [row for run in result["runs"] for row in run["rows"]]
    points = {}
    for (run, coarse, *_), group in groups.items():
        for cell in group["steps"].values():
            values = [METRICS[metric][1] * row[metric] for row in cell]
            points.setdefault((run, coarse), []).append((cell[0]["effective_nfe"], sum(values) / len(values), values))
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    axes = figure.subplots()
    everything = [mean for line in points.values() for _, mean, _ in line]
    for (run, coarse), line in points.items():
        line.sort()
        look = style(runs.index(run)) | {"markersize": 6}
        if coarse == "true":
            look["markerfacecolor"] = "white"
        if coarse is not None and coarse != "true":
            pale = look | {"markersize": 3, "alpha": 0.35, "linestyle": ""}
            axes.plot([nfe for nfe, _, _ in line], [mean for _, mean, _ in line], zorder=1, **pale)
            line = [p for i, p in enumerate(line) if all(p[1] < before[1] for before in line[:i])]
        axes.plot([p[0] for p in line], [p[1] for p in line], linestyle=LINES[coarse], linewidth=1.6, **look)
        for nfe, _, values in line:
            axes.vlines(nfe, min(values), max(values), color=look["color"], linewidth=2.5, alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if min(everything) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        is_narrow = max(everything) < 20 * min(everything)
        axes.yaxis.set_minor_formatter(ScalarFormatter() if is_narrow else NullFormatter())
        axes.tick_params(axis="y", which="minor", labelsize=8)
    axes.grid(True, which="both", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    (extractor,) = {row["extractor"] for row in rows}
    axes.set_xlabel("effective NFE (forward passes of the flow; prior model by its FLOPs)")
    axes.set_ylabel(f"{METRICS[metric][0]} (features of {extractor}, not an FID)")
    seeds = {run["seed"] for run in result["runs"]}
    axes.set_title(f"Study {result['study']}, tier {result['tier']}, {listing(seeds, 'seed')}", fontsize=11)
    handles = [Line2D([], [], linestyle="", label=run, **style(i)) for i, run in enumerate(runs)]
    kinds = {"generated": "generated coarse latents", "true": "true coarse latents (oracle)", None: "no coarse latent"}
    kinds["truncated"] = "prior model stopped early"
    present = {key[1] for key in groups}
    look = {"color": "0.3", "linewidth": 1.6}
    handles += [Line2D([], [], linestyle=LINES[k], label=label, **look) for k, label in kinds.items() if k in present]
    if "generated" in present:
        handles.append(Line2D([], [], linestyle="", label="(best split within each cost;\npale: every setting)"))
    axes.legend(handles=handles, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def sweep_figure(result: dict, metric: str):
    """Draw the distance against the setting that the study sweeps: a panel for each number of steps of the flow."""
    from matplotlib.figure import Figure

    swept, groups = result["sweep"], gather(result)
    place = 1 + list(SETTINGS).index(swept)
    lines = {}
    for key, group in groups.items():
        several = len({k[place] for k in groups if k[0] == key[0]}) > 1
        name = (key[0] if several else "each a flow of its own", *key[1:place], *key[place + 1 :])
        for steps, rows in group["steps"].items():
            point = key[place], [METRICS[metric][1] * row[metric] for row in rows]
            lines.setdefault(name, {}).setdefault(steps, []).append(point)
    steps = sorted({n for line in lines.values() for n in line})
    figure = Figure(figsize=(1.5 + 3.6 * len(steps), 4.8), layout="constrained")
    grid = figure.subplots(1, len(steps), squeeze=False)[0]
    others = [k for k in SETTINGS if k not in (swept, "coarse")]
    for i, (name, line) in enumerate(lines.items()):
        run, coarse, *values = name
        told = [
            f"{SETTINGS[k]} {v:g}"
            for k, v in zip(others, values)
            if v is not None and len({n[2 + others.index(k)] for n in lines}) > 2
        ]
        kind = {"generated": "generated coarse", "true": "true coarse", None: "no coarse latent"}[coarse]
        for axes, number in zip(grid, steps):
            if number not in line:
                continue
            x, values = zip(*sorted(line[number]))
            look = style(i) | ({"markerfacecolor": "white"} if coarse == "true" else {})
            means = [sum(v) / len(v) for v in values]
            axes.plot(
                x,
                means,
                linestyle=LINES[coarse],
                linewidth=1.5,
                markersize=5.5,
                label=", ".join([run, kind, *told]),
                **look,
            )
            for a, v in zip(x, values):
                axes.vlines(a, min(v), max(v), color=look["color"], linewidth=1)
    for axes, number in zip(grid, steps):
        axes.set(
            xlabel=SETTINGS[swept] if swept != "noise_ratio" else "noise ratio α",
            title=f"{number} step{'s' * (number > 1)} of the flow",
        )
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    (extractor,) = {row["extractor"] for run in result["runs"] for row in run["rows"]}
    grid[0].set_ylabel(f"{METRICS[metric][0]}\n(features of {extractor}, not an FID)")
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    seeds = listing({run["seed"] for run in result["runs"]}, "seed")
    figure.suptitle(f"Study {result['study']}, tier {result['tier']}, {seeds} (bars: their range)", fontsize=11)
    return figure


def coupling_figure(result: dict):
    """Draw the identity kept against the noise ratio: a panel for each factor and number of pairs."""
    from matplotlib.figure import Figure

    cells = coupling_cells(result)
    pairs, factors = (sorted({key[i] for key in cells}) for i in (0, 2))
    operators = list(dict.fromkeys(key[1] for key in cells))
    figure = Figure(figsize=(1.2 + 3.1 * len(factors), 1.1 + 2.5 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), len(factors), squeeze=False, sharex=True, sharey=True)
    for (count, operator, factor), cell in cells.items():
        axes = grid[pairs.index(count)][factors.index(factor)]
        ratios = sorted(cell)
        means = [sum(cell[r]) / len(cell[r]) for r in ratios]
        bars = [[m - min(cell[r]) for r, m in zip(ratios, means)], [max(cell[r]) - m for r, m in zip(ratios, means)]]
        line = {"linestyle": "--" if operator.endswith("mask") else "-", "linewidth": 1.4, "markersize": 5}
        axes.errorbar(ratios, means, bars, capsize=2, label=operator, **style(operators.index(operator)), **line)
    for i, row in enumerate(grid):
        for j, axes in enumerate(row):
            axes.set_title(f"factor {factors[j]}, {pairs[i]:,} pairs", fontsize=10)
            axes.grid(True, color="0.9", linewidth=0.6)
            axes.set_axisbelow(True)
            axes.set_ylim(-4, 104)
            axes.set(xlabel="noise ratio α", ylabel="identity kept, %")
            axes.tick_params(labelbottom=True, labelleft=True)
            axes.set_visible(axes.has_data())  # not every number of pairs is measured at every factor
    shown = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(
        [shown[o] for o in operators], operators, loc="outside lower center", ncols=len(operators), frameon=False
    )
    figure.suptitle(f"Pairs that an exact assignment leaves together, {result['space']}", fontsize=11)
    return figure


def spectrum_figure(result: dict):
    """Draw the power of generated over real images by frequency, at the smallest and the largest number of steps."""
    from matplotlib.figure import Figure

    runs = result.get("runs") or [{"run": result["pipeline"], "rows": result["rows"]}]
    curves = {}
    for run in runs:
        for row in run["rows"]:
            if "spectrum" in row:
                setting = tuple((k, row.get(k)) for k in SETTINGS)
                curves.setdefault((run["run"], setting, row["steps"]), []).append(row["spectrum"])
    if not curves or "spectrum" not in result:
        raise ValueError(
            "`results` must hold power spectra, of the rows and of the real images: grade with `spectrum`."
        )
    # For each run one line of each kind: with the most steps of the prior model, other settings as they come first
    chosen = {}
    for run, setting, steps in curves:
        coarse, prior_steps = dict(setting)["coarse"], dict(setting)["prior_steps"] or 0
        if (run, coarse) not in chosen or prior_steps > (dict(chosen[run, coarse])["prior_steps"] or 0):
            chosen[run, coarse] = setting
    names = list(dict.fromkeys(run for run, _ in chosen))
    counts = sorted({steps for _, _, steps in curves})
    counts = list(dict.fromkeys((counts[0], counts[-1])))
    side = 2 * (len(result["spectrum"]) - 1)
    frequency = [i / side for i in range(len(result["spectrum"]))]
    figure = Figure(figsize=(1.5 + 4.4 * len(counts), 4.6), layout="constrained")
    grid = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, steps in zip(grid, counts):
        axes.axhline(1, color="0.5", linewidth=1)
        for (run, coarse), setting in chosen.items():
            spectra = curves.get((run, setting, steps))
            if not spectra:
                continue
            mean = [sum(values) / len(values) for values in zip(*spectra)]
            details = {None: "", "true": ", true coarse"}
            label = run + details.get(coarse, f", generated coarse, {dict(setting)['prior_steps']} prior steps")
            look = style(names.index(run)) | ({"markerfacecolor": "white"} if coarse == "true" else {})
            ratio = [m / r for m, r in zip(mean, result["spectrum"])]
            axes.plot(
                frequency[1:], ratio[1:], linestyle=LINES[coarse], linewidth=1.5, markersize=5, label=label, **look
            )
        if axes.get_ylim()[1] > 4:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set(xlabel="radial frequency, cycles per pixel", title=f"{steps} step{'s' * (steps > 1)} of the flow")
    grid[0].set_ylabel("power of generated / power of real images")
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def save(figure, path: str):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", required=True)
    parser.add_argument("--metric", choices=list(METRICS), default="kernel_distance", help="of the figure")
    parser.add_argument("--figures_dir", help="where to draw NAME.png, and NAME-spectrum.png where there are spectra")
    parser.add_argument("files", nargs="*", help="Markdown files with marks")
    args = parser.parse_args()
    result = load(args.results)
    name = os.path.splitext(os.path.basename(args.results))[0]
    if args.files:
        write_tables(result, name, args.files)
    if args.figures_dir:
        path = os.path.join(args.figures_dir, name)
        if "rows" in result:
            figure = coupling_figure(result)
        else:
            figure = (sweep_figure if result.get("sweep") else study_figure)(result, args.metric)
        save(figure, f"{path}.png")
        if "spectrum" in result:
            save(spectrum_figure(result), f"{path}-spectrum.png")


if __name__ == "__main__":
    main()
