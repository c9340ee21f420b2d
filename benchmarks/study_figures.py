# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The figures of `run_study.py`."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter
from shared.figures import add_grid, style
from shared.formats import METRICS, listing
from study_tables import SETTINGS, gather, plural


LINES = {None: "-.", "generated": "-", "true": "--", "truncated": ":"}  # by the kind of coarse latents


def look_of(index: int, coarse: str | None) -> dict:
    """Return the colour and the marker of a run; the marker is hollow for true coarse latents."""
    return style(index) | ({"markerfacecolor": "white"} if coarse == "true" else {})


def axis_label(result: dict, metric: str, separator: str = " ") -> str:
    (extractor,) = {row["extractor"] for run in result["runs"] for row in run["rows"]}
    return f"{METRICS[metric][0]}{separator}(features of {extractor}, not an FID)"


def title(result: dict) -> str:
    seeds = {run["seed"] for run in result["runs"]}
    return f"Study {result['study']}, tier {result['tier']}, {listing(seeds, 'seed')}"


def add_legend(figure, panels):
    """Write the names of the panel that has most lines below the figure."""
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def study_figure(result: dict, metric: str) -> Figure:
    """
    Draw the distance against effective NFE; bars are the range of the seeds.

    If a run is graded with several numbers of prior steps, its line is the best that it reaches within each cost, and every
    setting is a pale point.
    """
    groups = gather(result)
    runs = list(dict.fromkeys(key[0] for key in groups))
    points = {}
    for (run, coarse, *_), group in groups.items():
        for rows in group["steps"].values():
            values = [METRICS[metric][1] * row[metric] for row in rows]
            points.setdefault((run, coarse), []).append((rows[0]["effective_nfe"], sum(values) / len(values), values))
    figure = Figure(figsize=(9.5, 5.4), layout="constrained")
    axes = figure.subplots()
    for (run, coarse), line in points.items():
        line.sort()
        look = look_of(runs.index(run), coarse) | {"markersize": 6}
        if coarse is not None and coarse != "true":
            pale = look | {"markersize": 3, "alpha": 0.35, "linestyle": ""}
            axes.plot([nfe for nfe, _, _ in line], [mean for _, mean, _ in line], zorder=1, **pale)
            line = [p for i, p in enumerate(line) if all(p[1] < before[1] for before in line[:i])]
        axes.plot([p[0] for p in line], [p[1] for p in line], linestyle=LINES[coarse], linewidth=1.6, **look)
        for nfe, _, values in line:
            axes.vlines(nfe, min(values), max(values), color=look["color"], linewidth=2.5, alpha=0.5)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    set_log_scale(axes, [mean for line in points.values() for _, mean, _ in line])
    add_grid(axes, which="both")
    axes.set_xlabel("effective NFE (forward passes of the flow; prior model by its FLOPs)")
    axes.set_ylabel(axis_label(result, metric))
    axes.set_title(title(result), fontsize=11)
    axes.legend(handles=study_legend(runs, {key[1] for key in groups}), fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)  # fmt: skip
    return figure


def set_log_scale(axes, values: list[float]):
    """Make the distances logarithmic if all are positive, with plain numbers at the ticks."""
    if min(values) <= 0:
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    is_narrow = max(values) < 20 * min(values)
    axes.yaxis.set_minor_formatter(ScalarFormatter() if is_narrow else NullFormatter())
    axes.tick_params(axis="y", which="minor", labelsize=8)


def study_legend(runs: list[str], kinds: set[str | None]) -> list[Line2D]:
    """Name the runs by colour and marker, and the kinds of coarse latents by their lines."""
    handles = [Line2D([], [], linestyle="", label=run, **style(i)) for i, run in enumerate(runs)]
    labels = {
        "generated": "generated coarse latents",
        "true": "true coarse latents (oracle)",
        None: "no coarse latent",
        "truncated": "prior model stopped early",
    }
    look = {"color": "0.3", "linewidth": 1.6}
    handles += [Line2D([], [], linestyle=LINES[k], label=label, **look) for k, label in labels.items() if k in kinds]
    if "generated" in kinds:
        handles.append(Line2D([], [], linestyle="", label="(best split within each cost;\npale: every setting)"))
    return handles


def sweep_lines(result: dict, metric: str) -> dict[tuple, dict[int, list]]:
    """Gather the points of each line by steps of the flow: (value of the swept setting, distances of the seeds)."""
    swept, groups = result["sweep"], gather(result)
    column = 1 + list(SETTINGS).index(swept)
    lines = {}
    for key, group in groups.items():
        is_swept_in_run = len({k[column] for k in groups if k[0] == key[0]}) > 1
        name = (key[0] if is_swept_in_run else "each a flow of its own", *key[1:column], *key[column + 1 :])
        for steps, rows in group["steps"].items():
            point = key[column], [METRICS[metric][1] * row[metric] for row in rows]
            lines.setdefault(name, {}).setdefault(steps, []).append(point)
    return lines


def sweep_figure(result: dict, metric: str) -> Figure:
    """Draw the distance against the setting that the study sweeps: a panel for each number of steps of the flow."""
    lines = sweep_lines(result, metric)
    steps = sorted({n for line in lines.values() for n in line})
    figure = Figure(figsize=(1.5 + 3.6 * len(steps), 4.8), layout="constrained")
    panels = figure.subplots(1, len(steps), squeeze=False)[0]
    others = [name for name in SETTINGS if name not in (result["sweep"], "coarse")]
    kinds = {"generated": "generated coarse", "true": "true coarse", None: "no coarse latent"}
    for i, (name, line) in enumerate(lines.items()):
        run, coarse, *values = name
        details = [
            f"{SETTINGS[k]} {v:g}"
            for k, v in zip(others, values)
            if v is not None and len({n[2 + others.index(k)] for n in lines}) > 2
        ]
        label, look = ", ".join([run, kinds[coarse], *details]), look_of(i, coarse)
        for axes, number in zip(panels, steps):
            if number not in line:
                continue
            x, distances = zip(*sorted(line[number]))
            means = [sum(d) / len(d) for d in distances]
            axes.plot(x, means, linestyle=LINES[coarse], linewidth=1.5, markersize=5.5, label=label, **look)
            for position, d in zip(x, distances):
                axes.vlines(position, min(d), max(d), color=look["color"], linewidth=1)
    swept = "noise ratio α" if result["sweep"] == "noise_ratio" else SETTINGS[result["sweep"]]
    for axes, number in zip(panels, steps):
        axes.set(xlabel=swept, title=f"{plural(number)} of the flow")
        add_grid(axes)
    panels[0].set_ylabel(axis_label(result, metric, "\n"))
    add_legend(figure, panels)
    figure.suptitle(f"{title(result)} (bars: their range)", fontsize=11)
    return figure


def spectra(result: dict) -> tuple[dict, list[int]]:
    """
    Gather the power spectra of one line for each run and kind of coarse latents, that with the most prior steps.

    Returns:
        `tuple[dict, list[int]]`: for each `(run, coarse, prior_steps)` the spectra of its seeds by steps of the flow; and the
        smallest and the largest number of steps.
    """
    curves = {}
    for run in result["runs"]:
        for row in run["rows"]:
            if "spectrum" in row:
                setting = tuple((name, row.get(name)) for name in SETTINGS)
                by_steps = curves.setdefault((run["run"], setting), {})
                by_steps.setdefault(row["steps"], []).append(row["spectrum"])
    if not curves or "spectrum" not in result:
        raise ValueError(
            "`results` must hold power spectra, of the rows and of the real images: grade with `spectrum`."
        )
    chosen = {}
    for (run, setting), by_steps in curves.items():
        coarse, prior_steps = dict(setting)["coarse"], dict(setting)["prior_steps"]
        if (run, coarse) not in chosen or (prior_steps or 0) > (chosen[run, coarse][0] or 0):
            chosen[run, coarse] = prior_steps, by_steps
    steps = sorted({n for by_steps in curves.values() for n in by_steps})
    lines = {(run, coarse, prior_steps): found for (run, coarse), (prior_steps, found) in chosen.items()}
    return lines, list(dict.fromkeys((steps[0], steps[-1])))


def spectrum_figure(result: dict) -> Figure:
    """Draw the power of generated over real images by frequency, at the smallest and the largest number of steps."""
    lines, counts = spectra(result)
    runs = list(dict.fromkeys(run for run, _, _ in lines))
    side = 2 * (len(result["spectrum"]) - 1)
    frequency = [i / side for i in range(len(result["spectrum"]))]
    figure = Figure(figsize=(1.5 + 4.4 * len(counts), 4.6), layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, steps in zip(panels, counts):
        axes.axhline(1, color="0.5", linewidth=1)
        for (run, coarse, prior_steps), by_steps in lines.items():
            if steps not in by_steps:
                continue
            power = [sum(values) / len(values) for values in zip(*by_steps[steps])]
            details = {None: "", "true": ", true coarse"}
            label = run + details.get(coarse, f", generated coarse, {prior_steps} prior steps")
            ratio = [p / r for p, r in zip(power, result["spectrum"])]
            look = look_of(runs.index(run), coarse) | {"linestyle": LINES[coarse], "linewidth": 1.5, "markersize": 5}
            axes.plot(frequency[1:], ratio[1:], label=label, **look)
        if axes.get_ylim()[1] > 4:
            axes.set_yscale("log", base=2)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        add_grid(axes)
        axes.set(xlabel="radial frequency, cycles per pixel", title=f"{plural(steps)} of the flow")
    panels[0].set_ylabel("power of generated / power of real images")
    add_legend(figure, panels)
    return figure


def figures(result: dict, metric: str) -> dict[str, Figure]:
    """Draw the figures of a study; what is added to the name of each file is the key."""
    drawn = {"": (sweep_figure if result.get("sweep") else study_figure)(result, metric)}
    return drawn | ({"-spectrum": spectrum_figure(result)} if "spectrum" in result else {})
