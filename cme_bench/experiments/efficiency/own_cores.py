"""CPU cores of their own for the two processes of an engine: the one that asks, and the one that computes.

A small model's step is mostly their Python. Where a scheduler puts both on one core, or another engine's
beside them, they wait for each other, which says nothing of the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FEWEST = 4
"""Cores that an engine needs for that: one asks, and three threads compute in turn."""


def shared_out(cores: Sequence[int], engines: int) -> list[tuple[frozenset[int], frozenset[int]]]:
    """Return, for each engine, the cores of the process that asks and of the one that computes; none where
    there are too few."""
    each = len(cores) // engines
    if each < FEWEST:
        return []
    shares = [list(cores[i * each : (i + 1) * each]) for i in range(engines)]
    return [(frozenset(share[: each // FEWEST]), frozenset(share[each // FEWEST :])) for share in shares]


def stay_on(worker: Any, cores: Iterable[int]) -> None:
    """Keep all threads of this process on some cores; ``worker`` is vLLM's, in whose process it is called."""
    for task in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)
