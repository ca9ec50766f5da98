"""Run folders made by hand, with per-item records, for tests of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from cme_bench.reports.runs import RunView, open_run
from cme_bench.runs.folder import read_run
from cme_bench.runs.results import results_json
from cme_bench.scoring.aggregate import TaskResult, summarize
from cme_bench.scoring.scales import USUAL, Measure
from cme_bench.stats.estimates import Estimate, mean
from cme_bench.util.files import write_json

ADAPTER = {
    "name": "t32",
    "path": "/nowhere/t32",
    "method": "teamlora",
    "rank": 32,
    "experts": 4,
    "parameters": 3_651_840,
    "percent": 2.714,
    "training_seconds": 5400.0,
    "tokens_trained": 1_000_000,
}


@dataclass
class MadeTask:
    """One task: a score for each item; ``texts`` are its responses, ``docs`` its rows, ``images`` the digests
    of theirs, ``value`` its score where that is no mean, ``form`` its form."""

    scores: Sequence[float]
    domain: str = "nli"
    dataset: str = "snli"
    metric: str = "acc"
    ids: Sequence[int] | None = None
    texts: Sequence[str] | None = None
    targets: Sequence[str] | None = None
    docs: Sequence[dict[str, Any]] | None = None
    images: Sequence[Sequence[str]] | None = None
    planned: dict[str, Any] = field(default_factory=dict)
    measure: Measure = USUAL
    value: float | None = None
    form: str = ""

    def formed(self) -> str:
        """Its form: of generated answers of CME unless it says another."""
        return self.form or (f"other generated, {self.measure.kind}" if self.measure.kind else "generated")


def _estimate(task: MadeTask) -> Estimate:
    found = mean(task.scores)
    return found if task.value is None else Estimate(task.value, found.stderr, found.n)


def make_run(
    folder: Path,
    tasks: Mapping[str, MadeTask],
    *,
    records: bool = True,
    name: str = "smollm2",
    adapter: dict[str, Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RunView:
    """A run folder of generated answers; ``identity`` and ``changes`` override parts of run.json."""
    (folder / "samples").mkdir(parents=True)
    planned = {}
    results = []
    for task_name, task in tasks.items():
        n = len(task.scores)
        ids = range(n) if task.ids is None else task.ids
        planned[task_name] = {
            "domain": task.domain,
            "dataset": task.dataset,
            "primary": task.metric,
            "output_type": "generate_until",
            "hash": "f" * 64,
            "n": n,
            "rows": n,
            "limit": None,
            "shots": 0,
            "prompt_format": "plain",
            "policy": "joint",
        } | task.planned
        empty = [task.texts is not None and not task.texts[k] for k in range(n)]
        results.append(
            TaskResult(
                task=task_name,
                form=task.formed(),
                domain=task.domain,
                dataset=task.dataset,
                primary=task.metric,
                metrics={task.metric: _estimate(task)},
                measures={task.metric: task.measure},
                quality={"truncated": 0.0, "empty": float(np.mean(empty)), "hit_length": 0.0},
            )
        )
        if records:
            lines = [_record(task_name, task, k, i, planned[task_name]["hash"]) for k, i in enumerate(ids)]
            (folder / "samples" / f"{task_name}.jsonl").write_bytes(b"".join(lines))
    content = {
        "identity": {
            "model": "a" * 64,
            "adapter": "b" * 64 if adapter else "none",
            "dtype": "float32",
            "engine": "hf",
            "data": "./data",
        }
        | dict(identity or {}),
        "model": {"name": name, "path": "/models/smollm2", "parameters": 134_515_008},
        "adapter": adapter,
        "arguments": {"command": ["cme-bench", "run", "smollm2"]},
        "seed": 0,
        "versions": {"cme-bench": "0.1.0", "torch": "2.13.0"},
        "commit": "0123456789ab",
        "machine": {"platform": "Linux", "cores": 2},
        "tasks": planned,
        "sessions": [{"seconds": 60.0, "items": 100, "engine": {"model_seconds": 40.0}}],
        "finished": True,
    } | changes
    write_json(folder / "run.json", content)
    write_json(folder / "results.json", results_json(read_run(folder), results, summarize(results)))
    return open_run(folder)


def _record(name: str, task: MadeTask, k: int, number: int, hash_: str) -> bytes:
    text = f"answer {number}" if task.texts is None else task.texts[k]
    record = {
        "id": number,
        "key": f"{number:064x}",
        "task": hash_,
        "scores": {task.metric: float(task.scores[k])},
        "answer": {"text": text, "rule": "exact" if text else "none"},
        "response": {"text": text, "n_tokens": 3, "finish": "stop"},
        "target": f"gold {number}" if task.targets is None else task.targets[k],
        "truncated": 0,
        "prompt": f"Question {number} of {name}?",
        "choices": [],
        "doc": {"question": number} if task.docs is None else task.docs[k],
    }
    if task.images is not None:
        record["images"] = list(task.images[k])
    return orjson.dumps(record) + b"\n"
