"""All of lm-eval that this package uses is imported in one room, and pinned here."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import cme_bench

PACKAGE = Path(cme_bench.__file__).parent

SURFACE = {
    "lm_eval.__main__.cli_evaluate",
    "lm_eval.loggers.EvaluationTracker",
    "lm_eval.utils.hash_string",
    "lm_eval.api.instance.Instance",
    "lm_eval.api.metrics._sacreformat",
    "lm_eval.api.model.TemplateLM",
    "lm_eval.api.registry.aggregation_registry",
    "lm_eval.api.registry.get_aggregation",
    "lm_eval.api.registry.register_aggregation",
    "lm_eval.api.registry.register_metric",
    "lm_eval.api.registry.register_model",
    "lm_eval.api.task",
    "lm_eval.api.task.ConfigurableTask",
    "lm_eval.api.utils.maybe_delimit",
    "lm_eval.api.utils.messages_to_text",
    "lm_eval.models.utils.handle_stop_sequences",
    "lm_eval.models.utils.normalize_gen_kwargs",
    "lm_eval.models.utils.postprocess_generated_text",
    "lm_eval.tasks.TaskManager",
    "lm_eval.tasks._yaml_loader._import_func_in_yml",
    "lm_eval.utils",
    "lm_eval.utils.env",
    "lm_eval.utils.get_rolling_token_windows",
    "lm_eval.utils.make_disjoint_window",
}


def imported(file: Path) -> Iterator[str]:
    """Yield the names of lm-eval that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lm_eval":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "lm_eval")


def test_only_the_room_harness_imports_lm_eval() -> None:
    others = [file for file in PACKAGE.rglob("*.py") if file.parent.name != "harness"]
    assert {str(file.relative_to(PACKAGE)): [*imported(file)] for file in others if [*imported(file)]} == {}


def test_what_is_used_of_lm_eval_is_this() -> None:
    assert {name for file in (PACKAGE / "harness").glob("*.py") for name in imported(file)} == SURFACE


@pytest.mark.parametrize("name", sorted(SURFACE))
def test_the_installed_lm_eval_has_it(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)
