"""Render task templates in Jinja's sandbox. lm-eval renders them with full access to Python, so ``{{
''.__class__ }}`` and its kin would run code of a task file."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils

from cme_bench.util.errors import UsageError


def sandbox_templates() -> None:
    """Make lm-eval render every template of this process in a sandbox; asked again, nothing changes.

    The environment object stays the same, for modules that hold it; its class and the few attributes that
    the sandbox adds are replaced.
    """
    environment = utils.env
    if not isinstance(environment, SandboxedEnvironment):
        sandboxed = SandboxedEnvironment()
        environment.__class__ = SandboxedEnvironment
        environment.globals["range"] = sandboxed.globals["range"]
        environment.binop_table = sandboxed.binop_table
        environment.unop_table = sandboxed.unop_table


def refuse_hub_code() -> None:
    """Make ``evaluate.load`` of this process an error: it fetches a metric as code and runs it.

    The module takes seconds to import, so that it is changed when somebody imports it.
    """
    if module := sys.modules.get("evaluate"):
        module.load = _refuse_metric  # type: ignore[attr-defined]
    elif not any(isinstance(finder, _Guard) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Guard())


class _Guard(MetaPathFinder):
    """Finds ``evaluate`` once, as a module whose ``load`` is an error."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "evaluate":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_guarded(module: ModuleType) -> None:
                run(module)
                refuse_hub_code()

            spec.loader.exec_module = run_guarded  # type: ignore[method-assign]
        return spec


def _refuse_metric(name: Any = None, *args: Any, **kwargs: Any) -> NoReturn:
    raise UsageError(f"evaluate.load({str(name)!r}): code of the hub is not run")
