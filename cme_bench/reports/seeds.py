"""Runs of one method trained with several seeds, as one run whose errors generalise over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cme_bench.errors import UsageError
from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import AVERAGE, TaskScores, paired_tasks, weights
from cme_bench.stats.seeds import seeds_mean

_SAME = ("method", "rank", "experts", "targets", "settings")


def pool_seeds(runs: Sequence[RunView], *, allow_mixed: bool = False) -> list[RunView]:
    """The runs, with those of one base, method and settings but other weights pooled into one, in the order
    of their first.

    Its scores are means over seeds and items with :func:`~cme_bench.stats.seeds.seeds_mean`'s standard
    errors. Needs per-item records. UsageError if no two runs belong together.
    """
    groups: dict[str, list[RunView]] = {}
    for number, run in enumerate(runs):
        adapter = run.run.get("adapter")
        key = (run.run["identity"]["model"], *(adapter.get(k) for k in _SAME)) if adapter else (number,)
        groups.setdefault(repr(key), []).append(run)
    if len(groups) == len(runs):
        raise UsageError("--pool-seeds: no two runs share base, method, rank, experts and settings")
    return [group[0] if len(group) == 1 else _pool(group, allow_mixed) for group in groups.values()]


def _pool(runs: Sequence[RunView], allow_mixed: bool) -> RunView:
    hashes = [run.run["identity"]["adapter"] for run in runs]
    if len(set(hashes)) < len(hashes):
        raise UsageError(f"--pool-seeds: {runs[0].folder} and another run hold the very same adapter")
    results: dict[str, Any] = {**runs[0].results, "forms": {}}
    for form in runs[0].results["forms"]:
        tasks = {t.task: t for t in paired_tasks(runs, form, allow_mixed=allow_mixed)}
        columns = {
            name: _estimate(tasks, own) for name, own in weights([t.place for t in tasks.values()]).items()
        }
        average = columns.pop(AVERAGE)
        results["forms"][form] = {"average": average, "domains": columns, "datasets": {}}
    adapter = runs[0].run["adapter"]
    times = [run.run["adapter"].get("training_seconds") for run in runs]
    named = adapter | {
        "name": f"{adapter['method']}-{adapter['rank']}, {len(runs)} seeds",
        "training_seconds": sum(times) / len(times) if all(times) else None,
    }
    return replace(runs[0], run=runs[0].run | {"adapter": named}, results=results, members=tuple(runs))


def _estimate(tasks: dict[str, TaskScores], own: dict[str, float]) -> dict[str, Any]:
    found = seeds_mean([tasks[task].scores.T for task in own], list(own.values())).estimate
    return {"value": found.value, "stderr": None if math.isnan(found.stderr) else found.stderr, "n": found.n}
