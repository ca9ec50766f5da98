"""The rules of the house: imports point one way, and the light parts stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cme_bench"

FORBIDDEN: dict[str, tuple[str, ...]] = {
    "vllm_plugin": (
        "tasks",
        "prompts",
        "models",
        "adapters",
        "engines",
        "runs",
        "reports",
        "cli",
        "scoring",
        "training",
        "stats",
        "errors",
    ),
    "engines": ("tasks", "scoring", "runs", "reports", "stats", "cli", "training"),
    "tasks": ("models", "engines", "runs", "reports", "cli", "training", "adapters"),
    "authoring": ("models", "engines", "runs", "reports", "cli", "training", "adapters"),
    "prompts": ("tasks", "models", "runs", "reports", "cli", "training", "adapters"),
    "models": ("tasks", "prompts", "engines", "runs", "reports", "cli", "scoring", "training"),
    "adapters": ("tasks", "prompts", "models", "engines", "runs", "reports", "cli", "scoring", "training"),
    "scoring": ("tasks", "prompts", "models", "runs", "reports", "cli", "training", "adapters"),
    "stats": (
        "tasks",
        "prompts",
        "models",
        "engines",
        "runs",
        "reports",
        "cli",
        "scoring",
        "training",
        "adapters",
    ),
    "reports": ("prompts", "models", "engines", "cli", "training", "adapters"),
    "runs": ("reports", "cli", "training"),
    "analysis": ("reports", "cli", "training"),
    "training": ("reports", "cli"),
    "efficiency": ("tasks", "reports", "cli", "training", "analysis"),
    "reproduce": ("cli",),
}
"""Folder -> the folders it must not import. Known exceptions are named below, with their reason."""
for _folder in FORBIDDEN.keys() - {"analysis", "reproduce"}:
    FORBIDDEN[_folder] += ("analysis", "reproduce")
FORBIDDEN["analysis"] += ("reproduce",)
for _folder in FORBIDDEN.keys() - {"efficiency", "reproduce"}:
    FORBIDDEN[_folder] += ("efficiency",)

for _folder in FORBIDDEN.keys() - {"authoring"}:
    FORBIDDEN[_folder] += ("authoring",)

ALLOWED = {
    # the lm-eval entry point puts a model, an engine and lm-eval together; it is a command of its own
    ("engines", "adapters"),
    ("engines", "models"),
}


def imports(file: Path) -> set[str]:
    """Top folders of cme_bench that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {n.split(".")[1] for n in names if n.startswith("cme_bench.")}
    return found


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_point_downwards(folder: str) -> None:
    for file in (PACKAGE / folder).rglob("*.py"):
        wrong = imports(file) & set(FORBIDDEN[folder])
        wrong = {w for w in wrong if (folder, w) not in ALLOWED}
        assert not wrong, f"{file.relative_to(PACKAGE)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize(
    "module",
    [
        "cme_bench.cli",
        "cme_bench.tasks.suite",
        "cme_bench.reports.table",
        "cme_bench.reports.figures.router",
        "cme_bench.reports.compare, cme_bench.reports.page.render",
        "cme_bench.reports.figures.write, cme_bench.reports.frame, cme_bench.reports.card",
        "cme_bench.analysis.router",
        "cme_bench.efficiency.options, cme_bench.reports.efficiency_table",
        "cme_bench.reproduce.recipe, cme_bench.reproduce.jobs, cme_bench.reproduce.claims",
        "cme_bench.stats.estimates",
        "cme_bench.engines",
        "cme_bench.engines.ray.engine, cme_bench.engines.ray.pool, cme_bench.runs.ray_worker",
        "cme_bench.vllm_plugin.spec",
    ],
)
def test_light_modules_import_no_torch(module: str) -> None:
    heavy = ("torch", "lm_eval", "transformers", "ray")
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
