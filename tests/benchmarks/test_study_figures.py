# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""The figures of `benchmarks/run_study.py`."""

import pytest
import study_figures
import study_tables
import torch
from shared.figures import COLORS, MARKERS
from small_studies import study_results


def test_study_figure_draws_the_means_and_is_readable_in_grey():
    """No two kinds of lines share marker, fill and dashes."""
    axes = study_figures.study_figure(study_results(), "frechet_distance").axes[0]
    drawn = {tuple(line.get_xdata()): line for line in axes.lines if line.get_linestyle() != "None"}
    # Of equals the cheaper: the settings of two prior steps are pale points only
    assert set(drawn) == {(1, 2), (1.1, 2.1)} and axes.get_xscale() == "log"
    assert list(drawn[1.1, 2.1].get_ydata()) == pytest.approx([13.4, 7.4])
    (pale,) = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert list(pale.get_xdata()) == pytest.approx([1.1, 1.2, 2.1, 2.2])
    looks = {(line.get_marker(), line.get_markerfacecolor(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == len(axes.lines) == 4
    assert len({(color, marker) for color, marker in zip(COLORS, MARKERS)}) == len(COLORS)


def test_sweep_figure_draws_the_setting_that_a_study_varies():
    result = study_results()
    result["sweep"] = "noise_ratio"
    result["runs"] = [run for run in result["runs"] if run["run"] == "ours"]
    for run in result["runs"]:
        rows = run["rows"]
        run["rows"] = [row | {"noise_ratio": a, "frechet_distance": row["frechet_distance"] + a} for a in (0.2, 0.4, 0.6) for row in rows]  # fmt: skip
        run["curvature"] = []
    figure = study_figures.sweep_figure(result, "frechet_distance")
    assert [axes.get_title() for axes in figure.axes] == ["1 step of the flow", "2 steps of the flow"]
    for axes, end in zip(figure.axes, (12.4, 6.4)):
        generated, _, true = axes.lines
        assert list(true.get_xdata()) == [0.2, 0.4, 0.6] and true.get_linestyle() == "--"
        assert list(true.get_ydata()) == pytest.approx([end + a for a in (0.2, 0.4, 0.6)])
        assert list(generated.get_ydata()) == pytest.approx([end + 1 + a for a in (0.2, 0.4, 0.6)])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "ours, generated coarse, prior steps 1",
        "ours, generated coarse, prior steps 2",
        "ours, true coarse",
    ]
    assert "class named" not in study_tables.table(result)
    for run in result["runs"]:
        for row in run["rows"]:
            row["class_named"] = 0.5
    assert study_tables.table(result).endswith("| 50.0 ± 0.0 % | 50.0 ± 0.0 % |")


def test_spectrum_figure_draws_ratios_of_generated_to_real():
    figure = study_figures.spectrum_figure(study_results())
    assert [axes.get_title() for axes in figure.axes] == ["1 step of the flow", "2 steps of the flow"]
    for axes, last in zip(figure.axes, (0.25, 0.5)):
        for line in axes.lines[1:]:
            assert line.get_xydata() == pytest.approx(torch.tensor([[0.25, 0.5], [0.5, last]]).numpy())
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"plain", "ours, generated coarse, 2 prior steps", "ours, true coarse"}
    with pytest.raises(ValueError, match="power spectra"):
        study_figures.spectrum_figure(
            {"spectrum": [4.0, 2.0, 1.0], "runs": [{"run": "plain", "rows": [{"steps": 1}]}]}
        )
