# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The tables of `run_study.py`."""

from scipy.stats import kendalltau
from shared.formats import METRICS, markdown, measured_by, seeds, spread


BUDGETS = (1, 2, 4, 8)  # effective NFE, to 0.1 over: at one flow step there is no other room for a prior model
SETTINGS = {  # what tells the rows of one run apart, and its name in a table
    "coarse": "coarse",
    "prior_steps": "prior steps",
    "noise_ratio": "α",
    "guidance_scale": "guidance",
    "prior_guidance_scale": "prior guidance",
}


def training_teraflops(run: dict) -> float:
    """Count the forward passes of the training of flow and prior model, teachers too, in 10^12 floating point operations."""
    networks = [run[name] for name in ("flow", "prior", "student flow", "student prior") if name in run]
    total = 0
    for facts in networks:
        names = ("FLOPs of a forward pass for one image", "steps", "global batch")
        flops, steps, batch = (int(str(facts[name]).replace(",", "")) for name in names)
        total += flops * steps * batch
    return total / 1e12


def gather(result: dict) -> dict[tuple, dict]:
    """
    Gather what the seeds of each run measured in each setting.

    Returns:
        `dict[tuple, dict]`: for each `(run, *settings)`, in the order of the file, its `seeds`, the cost of their `training`,
        the rows of the `curvature`, and those of the distances by the number of `steps`.
    """
    groups = {}
    for run in result["runs"]:
        for name in ("rows", "curvature"):
            for row in run.get(name, []):
                key = (run["run"], *(row.get(setting) for setting in SETTINGS))
                group = groups.setdefault(key, {"seeds": [], "steps": {}, "curvature": [], "training": []})
                if run["seed"] not in group["seeds"]:
                    group["seeds"].append(run["seed"])
                    group["training"].append(training_teraflops(run))
                rows = group["steps"].setdefault(row["steps"], []) if name == "rows" else group["curvature"]
                rows.append(row)
    for key, group in groups.items():
        for steps, rows in group["steps"].items():
            if len(rows) != len(group["seeds"]) or len({row["effective_nfe"] for row in rows}) != 1:
                raise ValueError(f"`results` must grade {key} once a seed at {steps} steps, at one effective NFE.")
    return groups


def steps_of(groups: dict) -> list[int]:
    return sorted({steps for group in groups.values() for steps in group["steps"]})


def plural(steps: int) -> str:
    return f"{steps} step{'s' * (steps > 1)}"


# ---------------------------------------------------------------------------------------------------------- captions


def caption(result: dict, groups: dict, metric: str, is_brief: bool = False) -> str:
    """Say what was graded, how, and by what; in brief only the distance, the grader and the seeds."""
    rows = [row for run in result["runs"] for row in run["rows"]]
    all_seeds = {run["seed"] for run in result["runs"]}
    (images, reference, split, extractor), *others = {
        (row["num_images"], row["num_reference"], row["split"], row["extractor"]) for row in rows
    }
    if others:
        raise ValueError("`results` must be graded with one extractor, one split and one number of images.")
    name = METRICS[metric][0]
    name = name[0].upper() + name[1:]
    if is_brief:
        return f"{name} by the grader `{extractor}`. Tier `{result['tier']}`, {seeds(all_seeds, is_brief)}"
    text = [f"**{result['question']}**", f"Tier `{result['tier']}`, {seeds(all_seeds)}"]
    for seed in sorted(all_seeds):
        missing = sorted({key[0] for key in groups} - {run["run"] for run in result["runs"] if run["seed"] == seed})
        text += [f"Not run with seed {seed}: {', '.join(missing)}."] if missing else []
    text.append(
        f"{name} of {images:,} images to {reference:,} {split} images on the features of the extractor `{extractor}`; not an "
        "FID. Effective NFE counts the forward passes of the flow, plus those of the prior model, each weighted by its FLOPs relative "
        "to a pass of the flow; training TFLOPs count one forward pass for each image of each batch, of flow and prior model."
    )
    kinds = {key[1] for key in groups}
    meanings = {
        "generated": "*Generated* coarse latents come from the prior model.",
        "true": f"*True* ones come from {images:,} other {split} images: an oracle, at no cost.",
        "truncated": "*Truncated*: the prior model stops early and leaves its noise to the source.",
    }
    text += [meaning for kind, meaning in meanings.items() if kind in kinds]
    text += [agreement(groups, metric, name) for name in result["graders"] if name != extractor]
    text.append(measured_by("run_study", result))
    return " ".join(text)


def agreement(groups: dict, metric: str, grader: str) -> str:
    """Say how far another grader agrees on the order of the settings."""
    cells = [
        [sum(values) / len(values) for values in zip(*((r[metric], r["graders"][grader][metric]) for r in rows))]
        for group in groups.values()
        for rows in group["steps"].values()
    ]
    tau = kendalltau(*zip(*cells)).statistic
    return f"The grader `{grader}` agrees on the order of the {len(cells)} settings with Kendall's τ = {tau:.3f}."


# ------------------------------------------------------------------------------------------------------------ tables


def settings_table(result: dict, metric: str, is_brief: bool) -> str:
    """Write every setting that was graded; in brief without cost of training, curvature and coarse distance."""
    groups, scale = gather(result), METRICS[metric][1]
    steps = steps_of(groups)
    rows = [row for run in result["runs"] for row in run["rows"]]
    curves = [] if is_brief else [row for group in groups.values() for row in group["curvature"]]
    has_coarse = not is_brief and any("coarse_frechet_distance" in row for row in rows)
    has_named = any("class_named" in row for row in rows)
    shown = {}
    for column, setting in enumerate(SETTINGS, start=1):
        # Coarse latents and prior steps are always shown, the others if they tell rows of one run apart
        values = [{key[column] for key in groups if key[0] == run} - {None} for run in {key[0] for key in groups}]
        if setting in ("coarse", "prior_steps") or any(len(v) > 1 for v in values):
            shown[setting] = column
    header = ["run", *(SETTINGS[name] for name in shown), *([] if is_brief else ["training TFLOPs"])]
    header += ["curvature", "curvature / path²", "path²"] * bool(curves) + ["coarse distance"] * has_coarse
    header += ["effective NFE", *(f"distance, {plural(n)}" for n in steps)]
    header += [f"class named, {plural(n)}" for n in steps] * has_named
    details = [caption(result, groups, metric, is_brief)]
    if curves:
        counts = sorted({row["curvature_images"] for row in curves})
        details.append(
            f"Curvature: 128 steps from {' or '.join(f'{n:,}' for n in counts)} sources; raw, over the mean squared path (ratio "
            "of means, free of scale), and that path, per element."
        )
    if has_coarse:
        details.append("Coarse distance: Fréchet distance of generated to true coarse latents themselves.")
    if has_named:
        details.append("Class named: how often the grader names the class that was asked for.")
    lines = []
    for key, group in groups.items():
        cells = [key[0], *("-" if key[column] is None else f"{key[column]}" for column in shown.values())]
        cells += [] if is_brief else [spread(sorted(set(group["training"])), 2)]
        graded = [group["steps"].get(n, []) for n in steps]
        digits = {"curvature": 4, "normalized_curvature": 4, "squared_path_length": 3} if curves else {}
        measured = [(group["curvature"], *item) for item in digits.items()]
        measured += [(next(iter(group["steps"].values()), []), "coarse_frechet_distance", 3)] * has_coarse
        for source, name, number in measured:
            values = [row[name] for row in source if name in row]
            cells.append(spread(values, number) if values else "-")
        cells.append(" / ".join(f"{r[0]['effective_nfe']:.2f}" if r else "-" for r in graded))
        cells += [spread([scale * row[metric] for row in r], 1) if r else "-" for r in graded]
        if has_named:
            cells += [f"{spread([100 * row['class_named'] for row in r], 1)} %" if r else "-" for r in graded]
        lines.append(cells)
    return f"{' '.join(details)}\n\n{markdown(header, lines)}"


def budgets_table(result: dict, metric: str, is_brief: bool) -> str:
    """Write the best setting of each run within each budget, by the mean over seeds; true coarse latents take no part."""
    groups, scale = gather(result), METRICS[metric][1]
    lines = []
    for run in dict.fromkeys(key[0] for key in groups):
        own = {key: group for key, group in groups.items() if key[0] == run and key[1] != "true"}
        if not own:
            continue
        cells = [run, spread(sorted({t for group in own.values() for t in group["training"]}), 2)]
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
            values, split, coarse = min(settings, key=lambda item: sum(item[0]) / len(item[0]))
            cells.append(f"{spread(values, 1)} ({split}{', truncated' if coarse == 'truncated' else ''})")
        lines.append(cells)
    text = (
        f"{caption(result, groups, metric, is_brief)} Each cell is the best setting whose effective NFE is at most "
        "0.1 over the budget, chosen by the distances shown here; in brackets, its flow steps + prior steps."
    )
    return f"{text}\n\n{markdown(['run', 'training TFLOPs', *(f'NFE {budget}' for budget in BUDGETS)], lines)}"


def gap_table(result: dict, metric: str, is_brief: bool) -> str:
    """Write the distance with generated coarse latents less that with true ones, seed by seed."""
    groups, scale = gather(result), METRICS[metric][1]
    steps, lines = steps_of(groups), []
    for key, group in groups.items():
        true = groups.get((key[0], "true", None, *key[3:-1], None))
        if key[1] != "generated" or true is None:
            continue
        cells = [key[0], key[2]]
        for n in steps:
            pairs = list(zip(group["steps"].get(n, []), true["steps"].get(n, [])))
            differences = [scale * (a[metric] - b[metric]) for a, b in pairs]
            share = sum(differences) / sum(scale * b[metric] for _, b in pairs) if pairs else 0
            cells.append(f"{spread(differences, 1)} ({share:+.0%})" if pairs else "-")
        lines.append(cells)
    text = (
        f"{caption(result, groups, metric, is_brief)} Each cell is how much larger it is with generated than with true coarse "
        "latents (in brackets: over the latter)."
    )
    return f"{text}\n\n{markdown(['run', 'prior steps', *(f'steps of the flow: {n}' for n in steps)], lines)}"


def ratios_table(result: dict, metric: str, is_brief: bool) -> str:
    """Write the distance over that of the first run at 16 steps and its most prior steps, with the same kind of coarse latents."""
    groups, scale = gather(result), METRICS[metric][1]
    first = next(iter(groups))[0]
    references = {}
    for key, group in groups.items():
        if key[0] == first and 16 in group["steps"]:
            references[key[1]] = group["steps"][16], key[2]  # the last is the one with the most prior steps
    steps = [n for n in (1, 2, 16) if any(n in group["steps"] for group in groups.values())]
    lines = []
    for key, group in groups.items():
        reference, _ = references[key[1] or next(iter(references))]
        cells = [key[0], key[1] or "-", key[2] or "-"]
        for n in steps:
            rows = group["steps"].get(n, [])
            ratios = [row[metric] / other[metric] for row, other in zip(rows, reference)]
            values = [scale * row[metric] for row in rows]
            cells.append(f"{rows[0]['effective_nfe']:.2f}" if rows else "-")
            cells.append(f"{spread(values, 1)} ({sum(ratios) / len(ratios):.2f}×)" if rows else "-")
        lines.append(cells)
    found = " and ".join(
        f"{scale * sum(row[metric] for row in rows) / len(rows):.1f} with {kind} coarse latents"
        + (f" of {prior_steps} prior steps" if prior_steps else "")
        for kind, (rows, prior_steps) in references.items()
    )
    text = (
        f"{caption(result, groups, metric, is_brief)} In brackets: over that of the run *{first}* at 16 steps, seed by seed; it "
        f"is {found}. Without coarse latents: over the former."
    )
    header = ["run", "coarse", "prior steps"] + [name for n in steps for name in ("effective NFE", plural(n))]
    return f"{text}\n\n{markdown(header, lines)}"


def curvature_table(result: dict, metric: str, is_brief: bool) -> str:
    """Write the curvature of each run, and how many times less it is than in the first; in brief without true coarse latents."""
    groups = {key: group for key, group in gather(result).items() if group["curvature"]}
    digits = {"curvature": 4, "squared_path_length": 3, "normalized_curvature": 4}
    (count,) = {row["curvature_images"] for group in groups.values() for row in group["curvature"]}
    means, lines = {}, []
    for key, group in groups.items():
        cells = [key[0], key[1] or "-"]
        for name, number in digits.items():
            values = [row[name] for row in group["curvature"]]
            mean = means[key, name] = sum(values) / len(values)
            cells += [spread(values, number), f"{means[next(iter(groups)), name] / mean:.1f}"]
        if not is_brief or key[1] != "true":
            lines.append(cells)
    all_seeds = {run["seed"] for run in result["runs"]}
    seeds_of_tier = f"Tier `{result['tier']}`, {seeds(all_seeds, is_brief)}"
    text = (
        f"**{result['question']}** Curvature of the learned flow in 128 steps from {count:,} sources (Lee et al. 2023), the mean "
        "squared path, both per element, and their ratio, which is free of scale; *times less*: the figure of the "
        f"first row over that of this row. {seeds_of_tier} {measured_by('run_study', result)}"
    )
    if is_brief:
        text = f"*Times less*: the figure of the first row over that of this row. {count:,} sources, 128 steps. {seeds_of_tier}"
    header = ["run", "coarse", "raw curvature", "times less", "squared path", "times less"]
    return f"{text}\n\n{markdown([*header, 'curvature / path²', 'times less'], lines)}"


VIEWS = {"budgets": budgets_table, "gap": gap_table, "ratios": ratios_table, "curvature": curvature_table}


def by_grader(result: dict, grader: str) -> dict:
    """Return the results as another of their graders sees them; the first grader takes its place among the others."""
    first, runs = result["extractor"], []
    if grader not in result["graders"]:
        raise ValueError(f"`by` must name one of {list(result['graders'])}, got {grader!r}.")
    for run in result["runs"]:
        rows = []
        for row in run["rows"]:
            distances = {name: row[name] for name in METRICS}
            graders = {name: d for name, d in row["graders"].items() if name != grader} | {first: distances}
            rows.append(row | row["graders"][grader] | {"extractor": grader, "graders": graders})
        runs.append(run | {"rows": rows})
    return result | {"extractor": grader, "runs": runs}


def table(result: dict, *words: str) -> str:
    """
    Write a table of a study.

    Args:
        result (`dict`):
            What `run_study.py` wrote.
        words (`str`):
            What to write: `budgets` (the best split of a budget between prior and flow), `gap` (generated against true
            coarse latents), `ratios` (one and two steps against many of the first run) or `curvature` instead of every
            setting; `frechet_distance` instead of `kernel_distance`; `by GRADER`, by another grader of the file; `brief`,
            with a short caption.
    """
    view, metric, is_brief, rest = settings_table, "kernel_distance", False, list(words)
    while rest:
        word = rest.pop(0)
        if word in VIEWS:
            view = VIEWS[word]
        elif word in METRICS:
            metric = word
        elif word == "by" and rest:
            result = by_grader(result, rest.pop(0))
        elif word == "brief":
            is_brief = True
        else:
            raise ValueError(f"`words` must be of {[*VIEWS, *METRICS, 'by GRADER', 'brief']}, got {list(words)}.")
    return view(result, metric, is_brief)
