"""lm-eval's own task files: where they lie, which group holds which, and the functions they name."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def tasks_folder() -> Path:
    """Return the folder of the installed lm-eval's task files."""
    found = importlib.util.find_spec("lm_eval")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "tasks"


@functools.cache
def task_index() -> Mapping[str, Any]:
    """Return lm-eval's own index of its tasks, groups and tags; reading it takes some ten seconds."""
    from lm_eval.tasks import TaskManager

    index: Mapping[str, Any] = TaskManager().task_index
    return index


def local_function(name: str, folder: Path) -> Any:
    """Return the function that a task file names by ``!function``, from the Python file beside it."""
    from lm_eval.tasks._yaml_loader import _import_func_in_yml

    return _import_func_in_yml(name, folder)
