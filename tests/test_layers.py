# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Imports run down only: from the front ends to the mathematics, never back and never in a circle."""

import ast
import shutil
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


PACKAGE = "diffusers_lowfreq"
SOURCES = Path(__file__).parents[1] / "src" / PACKAGE

MATHS = {"guards", "projections"}
PARTS = {"schedulers", "models", "images", "autoencoding", "text_encoding"}
# What each module or package of the top level may import, apart from itself. Every row names only rows above it.
LAYERS = {
    "version": set(),
    "guards": {"version"},
    "flops": set(),
    "projections": {"guards"},
    # These never know each other
    "schedulers": MATHS,
    "models": MATHS,
    "objectives": MATHS,
    "couplings": MATHS,
    "evaluation": MATHS | {"flops"},
    "autoencoding": MATHS,
    "text_encoding": MATHS,
    "images": MATHS,
    "model_card": {"guards", "version", "schedulers"},
    "adapters": {"guards", "schedulers"},
    # Front ends
    "pipelines": MATHS | PARTS | {"flops", "adapters", "model_card", "version"},
    "stock": MATHS | PARTS | {"adapters"},
    "modular": MATHS | PARTS | {"pipelines"},
    "training": MATHS | PARTS | {"objectives", "couplings", "flops", "adapters", "model_card"},
    "__init__": MATHS | PARTS | {"pipelines", "stock", "version"},
}
# Single modules that may import more: a training starts from a pipeline, and its validation makes pictures
MORE = {"training.start_pipeline": {"pipelines"}, "training.validation": {"pipelines", "stock"}}
OPTIONAL = {"accelerate", "datasets", "tqdm", "tensorboard"}  # only of a training


def modules(sources: Path) -> dict[str, Path]:
    """Every module by its dotted name below the package; that of a package ends in `__init__`."""
    return {".".join(path.relative_to(sources).with_suffix("").parts): path for path in sorted(sources.rglob("*.py"))}


def imports(name: str, path: Path) -> list[tuple[str, str, int]]:
    """Every import in a module, wherever it stands: the dotted name of what it is from, the name, the line."""
    found = []
    parents = name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = [PACKAGE, *parents][: len(parents) + 2 - node.level] if node.level else []
            found += [
                (".".join([*above, *(node.module or "").split(".")]).strip("."), a.name, node.lineno)
                for a in node.names
            ]
    return found


def find_circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Return modules of which each is imported by the next, the last being the first, if there are such."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]


def faults(sources: Path) -> list[str]:
    """What is wrong with the imports of a source tree, a line for each import."""
    known, wrong, edges = modules(sources), [], {}
    for name, path in known.items():
        unit, edges[name] = name.split(".")[0], set()
        if unit not in LAYERS:
            wrong.append(f"{name} has no row in the table of layers")
            continue
        for source, imported, line in imports(name, path):
            where = f"{path.relative_to(sources)}:{line}: {name} imports {source} {imported}".rstrip()
            if source.split(".")[0] in OPTIONAL and unit != "training":
                wrong.append(f"{where}, which only a training may")
            if source.split(".")[0] != PACKAGE:
                continue
            inside = ".".join(filter(None, [*source.split(".")[1:], imported]))
            target = inside if inside in known else ".".join(source.split(".")[1:]) or "__init__"
            target = f"{target}.__init__" if f"{target}.__init__" in known else target
            edges[name].add(target)
            if target.endswith("__init__") and name.startswith(target.removesuffix("__init__")) and name != target:
                wrong.append(f"{where}, the `__init__` of a package that it is in")
            other = target.split(".")[0]
            if other != unit and other not in LAYERS[unit] | MORE.get(name, set()):
                wrong.append(f"{where}, which is not below it")
    while circle := find_circle(edges):
        wrong.append(f"a circle: {' <- '.join(circle)}")
        edges[circle[1]].remove(circle[0])
    return wrong


@cache
def faults_of_sources() -> list[str]:
    return faults(SOURCES)


def test_the_table_runs_down():
    rows = list(LAYERS)
    for row, below in LAYERS.items():
        assert below <= set(rows[: rows.index(row)]), row


def test_imports_run_down_only():
    assert not faults_of_sources(), "\n" + "\n".join(faults_of_sources())


@pytest.mark.parametrize(
    "file, line, fault",
    [
        ("projections.py", "from .schedulers import LowFreqFlowMatchScheduler", "which is not below it"),
        ("flops.py", "def f():\n    from .training import keyed", "which is not below it"),
        ("images.py", "import diffusers_lowfreq.autoencoding", "which is not below it"),
        ("models/transformer_lowfreq.py", "from ..schedulers import LowFreqFlowMatchScheduler", "which is not below it"),
        ("pipelines/base.py", "from ..evaluation import count_flops", "which is not below it"),
        ("pipelines/base.py", "from ..training.keyed import keyed_generator", "which is not below it"),
        ("training/keyed.py", "from ..pipelines import LowFreqPipeline", "which is not below it"),
        ("guards/versions.py", "from .. import __version__", "the `__init__` of a package that it is in"),
        ("training/keyed.py", "from . import LatentCache", "the `__init__` of a package that it is in"),
        ("training/keyed.py", "import diffusers_lowfreq", "the `__init__` of a package that it is in"),
        ("training/data/images.py", "from .load import load_images", "a circle"),
        ("pipelines/base.py", "def f():\n    import datasets", "which only a training may"),
        ("stock/start.py", "from accelerate import Accelerator", "which only a training may"),
        ("news.py", "", "has no row"),
    ],
)  # fmt: skip
def test_a_planted_import_is_found(tmp_path, file, line, fault):
    tree = shutil.copytree(SOURCES, tmp_path / "tree", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tree / file, "a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    found = [line for line in faults(tree) if line not in faults_of_sources()]
    assert any(fault in line for line in found), found


INFERENCE = """
import sys
sys.modules["datasets"] = None  # cannot be imported
import torch
import diffusers_lowfreq
from diffusers_lowfreq import LowFreqFlowMatchScheduler, LowFreqPipeline, LowFreqTransformer2DModel
small = dict(patch_size=1, in_channels=3, num_layers=1, num_attention_heads=1, attention_head_dim=8)
pipe = LowFreqPipeline(
    LowFreqTransformer2DModel(sample_size=8, **small),
    LowFreqFlowMatchScheduler(factor=2),
    prior=LowFreqTransformer2DModel(sample_size=4, **small),
)
pipe.save_pretrained("saved")
pipe = LowFreqPipeline.from_pretrained("saved")
assert pipe(num_images_per_prompt=2, num_inference_steps=1).images[1].size == (8, 8) and pipe.effective_nfe > 0
found = sorted(name for name in sys.modules if name.startswith("diffusers_lowfreq.") and name.split(".")[1] in FORBIDDEN)
assert not found, found
"""


@pytest.mark.slow
def test_inference_loads_neither_training_nor_evaluation_nor_what_they_need(tmp_path):
    code = INFERENCE.replace("FORBIDDEN", repr(("training", "evaluation", "objectives", "couplings", "modular")))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
