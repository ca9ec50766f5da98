"""Names of adapters with a task: ``ADAPTER#task=N``."""

from __future__ import annotations

import re

from cme_bench.util.errors import UsageError

_NAMED = re.compile(r"(?P<adapter>.+)#task=(?P<task>.*)", re.DOTALL)


def split_task(name: str) -> tuple[str, int | None]:
    """Return the adapter and the task that ``name`` gives; None if it gives none.

    Raises UsageError if the task is no number from 0.
    """
    found = _NAMED.fullmatch(name)
    if found is None:
        return name, None
    if not re.fullmatch(r"[0-9]{1,9}", found["task"]):
        raise UsageError(f"adapter {name}: a task is a number from 0, as in {found['adapter']}#task=0")
    return found["adapter"], int(found["task"])


def with_task(name: str, task: int | None) -> str:
    """Return the name of an adapter with a task, which ``split_task`` takes apart."""
    return name if task is None else f"{name}#task={task}"
