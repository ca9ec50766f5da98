"""The rules of the house: imports point downwards, there are no circles, and the light parts stay light."""

from __future__ import annotations

import ast
import functools
import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cme_bench"

FLOORS = (
    ("version",),
    ("util",),
    ("images", "stats", "trackers", "vllm_plugin"),
    ("adapters",),
    ("engines",),
    ("models", "scoring"),
    ("prompts",),
    ("harness",),
    ("tasks",),
    ("authoring", "runs"),
    ("reports", "training"),
    ("experiments", "view"),
    ("run",),
    ("api",),
    ("cli",),
)
"""Rooms from the ground up. A module imports from its own room and from floors below."""


@functools.cache
def modules() -> Mapping[str, Path]:
    """Every module of the package, without ``cme_bench.`` before it."""
    files = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file for file in PACKAGE.rglob("*.py")
    }
    return {name.removesuffix("__init__").rstrip("."): file for name, file in files.items()}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Modules that a module imports anywhere in it, in functions and for types too."""
    tree = ast.parse(modules()[module].read_text())
    return frozenset(name for name in _names(tree) if name in modules() and name != module)


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cme_bench":
            base = (node.module or "").removeprefix("cme_bench").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in modules() else base
        elif isinstance(node, ast.Import):
            yield from (
                a.name.removeprefix("cme_bench.") for a in node.names if a.name.startswith("cme_bench.")
            )


def floor(module: str) -> int:
    room = module.split(".", maxsplit=1)[0]
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_is_in_a_room() -> None:
    rooms = {name.split(".")[0] for name in modules()} - {"", "__main__"}
    assert rooms == {room for rooms in FLOORS for room in rooms}


@pytest.mark.parametrize("room", [room for rooms in FLOORS for room in rooms])
def test_imports_point_downwards(room: str) -> None:
    for module in modules():
        if module.split(".")[0] != room:
            continue
        others = {name for name in imports(module) if name and name.split(".")[0] != room}
        upwards = sorted(name for name in others if floor(name) >= floor(module))
        assert not upwards, f"{module} imports {', '.join(upwards)}"


def test_there_are_no_circles() -> None:
    TopologicalSorter({module: imports(module) - {""} for module in modules()}).prepare()


def test_the_former_name_of_the_model_for_lm_eval_still_works() -> None:
    former = importlib.import_module("cme_bench.engines.lm_eval")
    assert former is importlib.import_module("cme_bench.harness.lm_eval_model")


LIGHT = """
cli tasks.suite stats.estimates engines vllm_plugin.spec
reports.table reports.figures.router reports.compare reports.page.render reports.figures.write reports.frame
reports.card reports.efficiency_table
experiments.router experiments.efficiency.options
experiments.reproduce.recipe experiments.reproduce.claims
engines.ray.engine engines.ray.pool runs.ray_worker
""".split()
NAME_THE_HEAVY = """
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module("cme_bench." + module)
    found = {"torch", "lm_eval", "transformers", "ray"} & sys.modules.keys()
    if found:
        sys.exit(f"{module} imports {sorted(found)}")
"""


def test_light_modules_import_no_torch() -> None:
    """One after the other in one process: the first that brings it is named."""
    command = [sys.executable, "-c", NAME_THE_HEAVY, *LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
