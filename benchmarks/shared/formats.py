# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How every table writes its rows, numbers and captions."""

from collections.abc import Iterable


METRICS = {  # of the images: the name in a table, and the scale that it is shown at
    "kernel_distance": ("kernel distance × 1000", 1000),
    "frechet_distance": ("Fréchet distance", 1),
}


def markdown(header: list[str], rows: Iterable[list]) -> str:
    """Write a Markdown table."""
    rule = "|" + "---|" * len(header)
    return "\n".join([_line(header), rule, *map(_line, rows)])


def _line(cells: list) -> str:
    return f"|{'|'.join(f' {cell} ' if cell != '' else ' ' for cell in cells)}|"


def spread(values: list[float], digits: int) -> str:
    """Write the mean over seeds and, if there are several, half the range between them."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.{digits}f}"


def percentages(shares: list[float]) -> str:
    """Write the mean of shares over seeds, and behind it the share of each seed."""
    return f"{100 * sum(shares) / len(shares):.1f} % ({', '.join(f'{100 * share:.1f}' for share in shares)})"


def listing(values: Iterable, noun: str) -> str:
    """Write `seed 0`, or `seeds 0, 1 and 2`."""
    *most, last = map(str, sorted(values))
    return f"{noun}s {', '.join(most)} and {last}" if most else f"{noun} {last}"


def seeds(values: Iterable[int], is_brief: bool = False) -> str:
    """Name the seeds of a table, and say what its ± means (unless in brief), or that one seed gives no finding."""
    found = set(values)
    if len(found) == 1:
        return f"{listing(found, 'seed')}, so no difference here is a finding."
    return listing(found, "seed") + ("." if is_brief else ": means ± half the range between seeds.")


def measured_by(script: str, result: dict, *details: str) -> str:
    """Name the script that measured a result, the machine, further details, and the versions."""
    versions = [f"{name} {result[name]}" for name in ("torch", "diffusers") if name in result]
    return f"Measured by `benchmarks/{script}.py` on {', '.join([result['machine'], *details, *versions])}."


def si(value: float, unit: str) -> str:
    """Write three digits with a prefix of the unit."""
    prefixes = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1, "m": 1e-3, "µ": 1e-6}
    prefix = next((p for p, scale in prefixes.items() if value >= 0.9995 * scale), "µ")
    return f"{value / prefixes[prefix]:.3g} {prefix}{unit}"


def duration(seconds: float) -> str:
    """Write a time in the largest unit that it holds twice."""
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 100 * length else f"{seconds / length:,.0f} {unit}"
    return si(seconds, "s")
