# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""How the figures of all benchmarks look."""

import os


# The colours of Okabe and Ito without their yellow, and markers that differ where the colours repeat
COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP*X<>h"


def style(index: int) -> dict:
    """Return the colour and the marker of a line."""
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def add_grid(axes, **options):
    """Draw a pale grid behind the lines."""
    axes.grid(True, color="0.9", linewidth=0.6, **options)
    axes.set_axisbelow(True)


def write_figure(figure, path: str, dpi: int = 110):
    """Save a figure of matplotlib, the same bytes every time."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    print(f"wrote {path}")
