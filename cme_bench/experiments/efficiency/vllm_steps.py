"""Where the time of a vLLM engine's steps goes: into its Python, or into waiting for the GPU.

``start_log`` and ``stop_log`` are called in a worker by ``collective_rpc``. Both of vLLM's model runners have
the two methods that are timed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Row = dict[str, float]
"""A step. ``at``: seconds since the first one began. ``tokens``, ``requests``. Milliseconds: ``execute`` and
``sample``, the runner's two calls, ``cpu`` of them in which their thread computed, and ``wait`` for the GPU's
answer. ``segments``: how often ``execute`` asked the driver for memory."""
_NAME = "bench_steps"


def start_log(worker: Any) -> None:
    """Note every step of a worker's model runner from now on."""
    runner = worker.model_runner
    rows: list[Row] = []
    setattr(runner, _NAME, rows)
    runner.execute_model = _executing(runner.execute_model, rows)
    runner.sample_tokens = _sampling(runner.sample_tokens, rows)


def stop_log(worker: Any) -> list[Row]:
    """Return all steps, and note no more."""
    runner = worker.model_runner
    rows: list[Row] = getattr(runner, _NAME)
    for name in ("execute_model", "sample_tokens"):
        delattr(runner, name)
    delattr(runner, _NAME)
    since = [row | {"at": row["at"] - rows[0]["at"]} for row in rows]
    return [{name: round(value, 5) for name, value in row.items()} for row in since]


def _executing(own: Callable[..., Any], rows: list[Row]) -> Callable[..., Any]:
    @functools.wraps(own)
    def execute_model(scheduled: Any, *args: Any, **named: Any) -> Any:
        if not scheduled.total_num_scheduled_tokens:
            return own(scheduled, *args, **named)
        row = {
            "at": time.perf_counter(),
            "tokens": scheduled.total_num_scheduled_tokens,
            "requests": len(scheduled.num_scheduled_tokens),
            "execute": 0.0,
            "sample": 0.0,
            "cpu": 0.0,
            "wait": 0.0,
            "segments": 0,
        }
        rows.append(row)
        before = _segments()
        with _Timed(row, "execute"):
            output = own(scheduled, *args, **named)
        row["segments"] = _segments() - before
        return output

    return execute_model


def _segments() -> int:
    """Return how often this process has asked the GPU's driver for memory."""
    asked = torch.cuda.memory_stats_as_nested_dict()  # empty without a GPU
    return int(asked["segment"]["all"]["allocated"]) if asked else 0


def _sampling(own: Callable[..., Any], rows: list[Row]) -> Callable[..., Any]:
    @functools.wraps(own)
    def sample_tokens(*args: Any, **named: Any) -> Any:
        if not rows:
            return own(*args, **named)
        row = rows[-1]
        with _Timed(row, "sample"):
            output = own(*args, **named)
        if hasattr(output, "get_output"):
            output.get_output = _waiting(output.get_output, row)
        return output

    return sample_tokens


def _waiting(own: Callable[[], Any], row: Row) -> Callable[[], Any]:
    def get_output() -> Any:
        started = time.perf_counter()
        output = own()
        row["wait"] += 1e3 * (time.perf_counter() - started)
        return output

    return get_output


class _Timed:
    """Add the milliseconds of a block to a row, by the clock and of its thread's computing."""

    def __init__(self, row: Row, name: str) -> None:
        self.row, self.name = row, name

    def __enter__(self) -> None:
        self.started = time.perf_counter(), time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.row[self.name] += 1e3 * (time.perf_counter() - self.started[0])
        self.row["cpu"] += 1e3 * (time.thread_time() - self.started[1])


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return means over the steps that only decode, and over all others: ``steps``, and what rows have.

    ``period``: milliseconds from a step's begin to the next one's.
    """
    kinds: dict[str, list[Row]] = {"decode": [], "prefill": []}
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        period = {} if after is None else {"period": 1e3 * (after["at"] - row["at"])}
        kinds["decode" if row["tokens"] == row["requests"] else "prefill"].append(row | period)
    return {kind: {"steps": len(found), **_means(found)} for kind, found in kinds.items() if found}


def _means(rows: Sequence[Row]) -> dict[str, float]:
    names = [name for name in (*rows[0], "period") if name != "at"]
    values = {name: [row[name] for row in rows if name in row] for name in dict.fromkeys(names)}
    return {name: round(sum(found) / len(found), 3) for name, found in values.items() if found}
