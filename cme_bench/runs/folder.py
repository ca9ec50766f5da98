"""Reading a run folder's ``run.json`` and ``results.json``, whoever wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cme_bench.errors import UsageError
from cme_bench.runs.shape import Count, Each, ListOf, Maybe, OrNull, check_shape
from cme_bench.util.files import read_json

MOST_ROWS = 10_000_000
"""No split is larger; a damaged number must not become work without end."""

_ESTIMATE = {"value": float, "stderr": OrNull(float), "n": Count(100 * MOST_ROWS)}
_MEASURE = {"scale": Maybe(str), "better": Maybe(str), "aggregation": Maybe(str)}
_TASK = {
    "domain": str,
    "dataset": str,
    "primary": str,
    "hash": str,
    "n": Count(MOST_ROWS),
    "rows": Count(MOST_ROWS),
    "limit": OrNull(Count(MOST_ROWS)),
    "shots": Count(MOST_ROWS),
    "prompt_format": str,
    "policy": str,
    "output_type": str,
}
_ADAPTER = {
    "name": str,
    "method": str,
    "path": Maybe(str),
    "rank": Maybe(int),
    "experts": Maybe(int),
    "parameters": Maybe(float),
    "percent": Maybe(float),
    "training_seconds": Maybe(float),
    "tokens_trained": Maybe(float),
    "settings": Maybe(dict),
    "config": Maybe(dict),
    "training": Maybe(dict),
}
_ENGINE_STATS = ("computed", "padding", "rowwise", "generated")
_SESSION = {
    "seconds": float,
    "items": Maybe(float),
    "engine": Maybe(
        {f"tokens_{name}": Maybe(float) for name in _ENGINE_STATS}
        | {"model_seconds": Maybe(float), "peak_memory_bytes": Maybe(float)}
    ),
}
_ARGUMENTS = {"command": Maybe(ListOf(str)), "include": Maybe(ListOf(str)), "offline": Maybe(bool)}
RUN = {
    "identity": {"model": str, "adapter": str, "dtype": str, "engine": str, "data": str},
    "model": {"name": str, "path": Maybe(str), "hash": Maybe(str), "parameters": Maybe(int)},
    "adapter": Maybe(_ADAPTER),
    "arguments": Maybe(_ARGUMENTS),
    "seed": Maybe(int),
    "bos": Maybe({"prefix": ListOf(int), "own": ListOf(int)}),
    "notes": Maybe(ListOf(str)),
    "versions": Each(str),
    "commit": Maybe(str),
    "machine": Maybe(dict),
    "engine": Maybe({"prefixes": Maybe(str), "logits": Maybe(str)}),
    "tasks": Each(_TASK),
    "finished": Maybe(bool),
    "sessions": Maybe(ListOf(_SESSION)),
}
RESULTS = {
    "near_tie_nats": Maybe(float),
    "forms": Each({"average": OrNull(_ESTIMATE), "domains": Each(_ESTIMATE), "measure": Maybe(_MEASURE)}),
    "tasks": Each(
        {
            "form": str,
            "domain": str,
            "dataset": str,
            "primary": str,
            "metrics": Each(_ESTIMATE | {"value": OrNull(float)} | _MEASURE),
            "quality": Each(float),
            "hash": str,
        }
    ),
}


def read_run(folder: Path) -> dict[str, Any]:
    """``run.json``. UsageError if it is absent, broken, or not what a run writes."""
    file = folder / "run.json"
    run = read_json(file)
    check_shape(run, RUN, str(file))
    return run


def read_results(folder: Path) -> dict[str, Any]:
    """Our part of ``results.json``. UsageError as for :func:`read_run`, or if its parts contradict each
    other."""
    file = folder / "results.json"
    content = read_json(file)
    check_shape(content, {"cme": RESULTS}, str(file))
    results: dict[str, Any] = content["cme"]
    for name, task in results["tasks"].items():
        if Path(name).name != name:
            raise UsageError(f"{file}: {name!r} is no task's name")
        if task["metrics"].get(task["primary"], {}).get("value") is None:
            raise UsageError(f"{file}: task {name} has no score {task['primary']!r}")
        domains = results["forms"].get(task["form"], {}).get("domains", {})
        if task["domain"] not in domains and name not in domains:
            raise UsageError(f"{file}: task {name} has no domain {task['domain']!r} in form {task['form']!r}")
    return results


def read_both(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """``run.json`` and our part of ``results.json``, whose tasks the first one knows."""
    run, results = read_run(folder), read_results(folder)
    if unknown := results["tasks"].keys() - run["tasks"].keys():
        raise UsageError(f"{folder}: results.json has task {min(unknown)}, of which run.json does not know")
    return run, results
