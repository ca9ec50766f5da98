"""``results.json`` (lm-eval's shape, so that its tools read it) and ``summary.csv`` (tidy) of a run."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cme_bench.runs.store import write_json, write_text
from cme_bench.scoring.aggregate import Summary, TaskResult, summarize
from cme_bench.scoring.metrics import LM_EVAL_ALIASES
from cme_bench.scoring.ties import NOISE
from cme_bench.stats.estimates import Estimate

AVERAGE = "macro: a dataset over its tasks, a domain over its datasets, the average over the domains"
_TO_LM_EVAL = {ours: theirs for theirs, ours in LM_EVAL_ALIASES.items()}


def write_results(folder: Path, content: Mapping[str, Any], results: Sequence[TaskResult]) -> None:
    """Write both files for the tasks finished so far; ``content`` is that of ``run.json``."""
    summaries = summarize(results)
    write_json(folder / "results.json", results_json(content, results, summaries))
    write_text(folder / "summary.csv", summary_csv(results, summaries))


def results_json(
    content: Mapping[str, Any], results: Sequence[TaskResult], summaries: dict[str, Summary]
) -> dict[str, Any]:
    """lm-eval's keys at the top; ours, with formula names and the macro means, under ``cme``."""
    planned = content["tasks"]
    return {
        "results": {
            r.task: {"alias": r.task} | {k: v for n, e in r.metrics.items() for k, v in _lm_eval_pair(n, e)}
            for r in results
        },
        "configs": {r.task: {"task": r.task, "metadata": planned[r.task]} for r in results},
        "versions": {r.task: planned[r.task]["hash"][:8] for r in results},
        "n-shot": {r.task: planned[r.task]["shots"] for r in results},
        "n-samples": {
            r.task: {"original": planned[r.task]["rows"], "effective": planned[r.task]["n"]} for r in results
        },
        "config": {"model": content["identity"]["engine"], "model_args": content["model"]["path"]},
        "model_name": content["model"]["name"],
        "task_hashes": {r.task: planned[r.task]["hash"] for r in results},
        "cme": {
            "average_is": AVERAGE,
            "near_tie_nats": NOISE.get(content["identity"]["dtype"]),
            "forms": {
                form: {
                    "average": _plain(summary.average),
                    "domains": {name: _plain(e) for name, e in summary.domains.items()},
                    "datasets": {name: _plain(e) for name, e in summary.datasets.items()},
                }
                for form, summary in summaries.items()
            },
            "tasks": {
                r.task: {
                    "form": r.form,
                    "domain": r.domain,
                    "dataset": r.dataset,
                    "primary": r.primary,
                    "metrics": {name: _plain(e) for name, e in r.metrics.items()},
                    "quality": r.quality,
                    "hash": planned[r.task]["hash"],
                }
                for r in results
            },
        },
    }


def _lm_eval_pair(name: str, estimate: Estimate) -> list[tuple[str, Any]]:
    bare, _, pipeline = name.partition("@")
    original, pipeline = _TO_LM_EVAL.get(bare, bare), pipeline or "none"
    stderr = "N/A" if math.isnan(estimate.stderr) else estimate.stderr
    return [(f"{original},{pipeline}", estimate.value), (f"{original}_stderr,{pipeline}", stderr)]


def _plain(estimate: Estimate) -> dict[str, Any]:
    stderr = None if math.isnan(estimate.stderr) else estimate.stderr
    return {"value": estimate.value, "stderr": stderr, "n": estimate.n}


def summary_csv(results: Sequence[TaskResult], summaries: dict[str, Summary]) -> str:
    """Columns task, domain, metric, value, stderr, n; the domains and the average of each form follow the
    tasks, with the form in the place of the task's name."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["task", "domain", "metric", "value", "stderr", "n"])

    def row(task: str, domain: str, metric: str, e: Estimate) -> None:
        stderr = "" if math.isnan(e.stderr) else repr(e.stderr)
        table.writerow([task, domain, metric, repr(e.value), stderr, e.n])

    for result in results:
        for metric, estimate in result.metrics.items():
            row(result.task, result.domain, metric, estimate)
    for form, summary in summaries.items():
        for domain, estimate in summary.domains.items():
            row(f"({form})", domain, "macro", estimate)
        row(f"({form})", "average", "macro", summary.average)
    return out.getvalue()
