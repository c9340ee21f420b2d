# Copyright 2026 The diffusers-lowfreq authors. Licensed under the Apache License, Version 2.0.
"""Tests use what users use: no private name of ours, no global of a script replaced, no clock; a skip has its reason."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
CODE = [ROOT / "src", ROOT / "examples", ROOT / "benchmarks"]
TESTS = ROOT / "tests"
# Private names of other libraries: what diffusers' pipelines and processors must have, and the mark of a `datasets.Dataset`
OF_OTHERS = {"_interrupt", "_guidance_scale", "_optional_components", "_callback_tensor_inputs", "_attention_backend"}
OF_OTHERS |= {"_fingerprint"}
CLOCKS = {"time", "monotonic", "perf_counter", "process_time", "monotonic_ns", "perf_counter_ns", "time_ns"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names() -> set[str]:
    """Private functions, classes, variables and attributes that our code defines."""
    found = set()
    for path in (path for folder in CODE for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in found if is_private(name)} - OF_OTHERS


def root_of(node: ast.expr) -> str | None:
    """The variable that an expression like `script.Accelerator.log` or `SCRIPTS["demo"].main` starts from."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def scripts_of(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """For each test module the variables that hold a loaded script: bound to one, or imported by name from a folder of them."""
    files = {path.stem for folder in CODE[1:] for path in folder.glob("*.py")}
    found = {}
    for name, tree in trees.items():
        found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and "load_script" in ast.dump(node.value):
                found[name] |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.asname or alias.name for alias in node.names if alias.name in files}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in found:
                found[name] |= {alias.asname or alias.name for alias in node.names if alias.name in found[node.module]}
    return found


def faults(sources: dict[str, str], private: set[str]) -> list[str]:
    """What test modules, given as texts by name, do that they should not: a line each."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    scripts, wrong = scripts_of(trees), []
    for name, tree in trees.items():
        own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for node in ast.walk(tree):
            line = getattr(node, "lineno", 0)
            if isinstance(node, ast.Attribute) and node.attr in private - own and root_of(node) != "self":
                wrong.append(f"{name}.py:{line}: the private name {node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusers_lowfreq"):
                wrong += [f"{name}.py:{line}: the private name {a.name}" for a in node.names if is_private(a.name)]
            if isinstance(node, (ast.Assign, ast.AugAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if not isinstance(target, ast.Name) and root_of(target) in scripts[name]:
                        wrong.append(f"{name}.py:{line}: {ast.unparse(target)} of a script is replaced")
            if isinstance(node, ast.Call):
                function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if function in ("setattr", "delattr", "getattr") and node.args:
                    literal = (
                        node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else ""
                    )
                    if literal in private:
                        wrong.append(f"{name}.py:{line}: the private name {literal}")
                    if function != "getattr" and root_of(node.args[0]) in scripts[name]:
                        wrong.append(
                            f"{name}.py:{line}: {ast.unparse(node.args[0])}.{literal} of a script is replaced"
                        )
                if function == "setitem" and root_of(node.args[0]) in scripts[name]:
                    wrong.append(f"{name}.py:{line}: {ast.unparse(node.args[0])} of a script is replaced")
                if function in ("skip", "skipif", "importorskip", "xfail"):
                    is_told = function == "skip" and bool(node.args)
                    if not is_told and "reason" not in {keyword.arg for keyword in node.keywords}:
                        wrong.append(f"{name}.py:{line}: {function} without a reason")
            if isinstance(node, ast.Attribute) and root_of(node) == "time" and node.attr in CLOCKS:
                wrong.append(f"{name}.py:{line}: time.{node.attr}: a busy machine is slow")
    return sorted(set(wrong))


def test_tests_use_what_users_use():
    sources = {path.stem: path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("*.py"))}
    wrong = faults(sources, private_names())
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("pipe._network_calls", "the private name _network_calls"),
        ("x = model.transformer._network_calls['flow']", "the private name _network_calls"),
        ("monkeypatch.setattr(pipe, '_network_calls', {})", "the private name _network_calls"),
        ("getattr(pipe, '_network_calls')", "the private name _network_calls"),
        ("from diffusers_lowfreq.projections import _matrices", "the private name _matrices"),
        ("script = load_script('x')\nmonkeypatch.setattr(script, 'Guard', 1)", "script.Guard of a script is replaced"),
        ("script = load_script('x')\nscript.Accelerator.log = 1", "script.Accelerator.log of a script is replaced"),
        ("S = {'x': load_script('x')}\nsetattr(S['x'], 'a', 1)", "S['x'].a of a script is replaced"),
        ("script = load_script('x')\npatch.setitem(script.SIZES, 'a', 1)", "script.SIZES of a script is replaced"),
        ("from other import script\npatch.setattr(script, 'a', 1)", "script.a of a script is replaced"),
        ("import train_lowfreq as t\npatch.setattr(t, 'a', 1)", "t.a of a script is replaced"),
        ("pytest.importorskip('deepspeed')", "importorskip without a reason"),
        ("pytest.skip()", "skip without a reason"),
        ("import time\nstarted = time.monotonic()", "time.monotonic: a busy machine is slow"),
    ],
)
def test_what_is_planted_is_found(text, fault):
    other = "script = load_script('x')"
    good = (
        "pipe._interrupt = True\npipe._guidance_scale\nscript = load_script('x')\nscript.main(script.parse_args([]))\n"
    )
    good += "time.sleep(0)\nclass Spy:\n    def _network_calls(self): self._network_calls\n"
    assert not faults({"good": good, "other": other}, {"_network_calls"})
    assert faults({"planted": text, "other": other}, {"_network_calls"}) == [
        f"planted.py:{len(text.splitlines())}: {fault}"
    ]


def with_addresses(ids: list[str]) -> list[str]:
    """Ids that hold the address of an object: each process would have another, and pytest-xdist would not start."""
    return [name for name in ids if re.search("0x[0-9a-f]{6,}", name)]


def test_ids_are_the_same_in_every_process(request):
    assert not with_addresses([item.nodeid for item in request.session.items])
    planted = [repr(object()), repr(with_addresses), "0x10"]
    assert with_addresses(planted) == planted[:2]
