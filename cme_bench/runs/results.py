"""``results.json`` (lm-eval's shape, so that its tools read it) and ``summary.csv`` (tidy) of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cme_bench.runs.records import (
    EstimateRecord,
    FormRecord,
    MeasureRecord,
    MetricRecord,
    ResultRecord,
    Results,
    RunRecord,
)
from cme_bench.scoring.aggregate import Summary, TaskResult, summarize
from cme_bench.scoring.metrics import LM_EVAL_ALIASES
from cme_bench.scoring.scales import Measure
from cme_bench.scoring.ties import NOISE, rounds_as
from cme_bench.stats.estimates import Estimate
from cme_bench.util.csv_text import csv_text
from cme_bench.util.files import write_json, write_text

AVERAGE = "macro: a dataset over its tasks, a domain over its datasets, the average over the domains"
_TO_LM_EVAL = {ours: theirs for theirs, ours in LM_EVAL_ALIASES.items()}


def write_results(folder: Path, run: RunRecord, results: Sequence[TaskResult], *, more: bool = False) -> None:
    """Write both files for the tasks finished so far. ``more``: they will be written again for others."""
    summaries = summarize(results)
    write_json(folder / "results.json", results_json(run, results, summaries), to_disk=not more)
    write_text(folder / "summary.csv", summary_csv(results, summaries), to_disk=not more)


def results_json(
    run: RunRecord, results: Sequence[TaskResult], summaries: Mapping[str, Summary]
) -> dict[str, Any]:
    """Return lm-eval's keys at the top; ours, with formula names and the macro means, under ``cme``."""
    planned = {r.task: run.tasks[r.task] for r in results}
    return {
        "results": {
            r.task: {"alias": r.task} | {k: v for n in r.metrics for k, v in _lm_eval_pair(r, n)}
            for r in results
        },
        "configs": {name: {"task": name, "metadata": task} for name, task in planned.items()},
        "versions": {name: task.hash[:8] for name, task in planned.items()},
        "n-shot": {name: task.shots for name, task in planned.items()},
        "n-samples": {name: {"original": task.rows, "effective": task.n} for name, task in planned.items()},
        "config": {"model": run.identity.engine, "model_args": run.model.path},
        "model_name": run.model.name,
        "task_hashes": {name: task.hash for name, task in planned.items()},
        "cme": Results(
            average_is=AVERAGE,
            near_tie_nats=NOISE.get(rounds_as(run.identity.dtype, run.identity.states)),
            forms={form: _form(summary) for form, summary in summaries.items()},
            tasks={r.task: _result(r, planned[r.task].hash) for r in results},
        ),
    }


def _form(summary: Summary) -> FormRecord:
    return FormRecord(
        measure=MeasureRecord.of(summary.measure),
        average=None if summary.average is None else EstimateRecord.of(summary.average),
        domains={name: EstimateRecord.of(e) for name, e in summary.domains.items()},
        datasets={name: EstimateRecord.of(e) for name, e in summary.datasets.items()},
    )


def _result(result: TaskResult, task_hash: str) -> ResultRecord:
    return ResultRecord(
        form=result.form,
        domain=result.domain,
        dataset=result.dataset,
        primary=result.primary,
        metrics={
            name: MetricRecord.of(e, result.measures.get(name, Measure()))
            for name, e in result.metrics.items()
        },
        quality=result.quality,
        thinking=result.thinking,
        hash=task_hash,
    )


def _lm_eval_pair(result: TaskResult, name: str) -> list[tuple[str, Any]]:
    estimate = result.metrics[name]
    original, pipeline = result.origins.get(name) or (_TO_LM_EVAL.get(name, name), "none")
    stderr = "N/A" if math.isnan(estimate.stderr) else estimate.stderr
    return [(f"{original},{pipeline}", estimate.value), (f"{original}_stderr,{pipeline}", stderr)]


def summary_csv(results: Sequence[TaskResult], summaries: dict[str, Summary]) -> str:
    """Return the columns task, domain, metric, value, stderr, n, scale, better; values are not in percent.

    The domains and the average of each form follow the tasks, with the form in the place of the task's name.
    """
    columns = ["task", "domain", "metric", "value", "stderr", "n", "scale", "better"]
    rows: list[list[object]] = []

    def row(task: str, domain: str, metric: str, e: Estimate, measure: Measure) -> None:
        stderr = "" if math.isnan(e.stderr) else repr(e.stderr)
        rows.append([task, domain, metric, repr(e.value), stderr, e.n, measure.scale.name, measure.better])

    for result in results:
        for metric, estimate in result.metrics.items():
            row(result.task, result.domain, metric, estimate, result.measures.get(metric, Measure()))
    for form, summary in summaries.items():
        for domain, estimate in summary.domains.items() if summary.average is not None else ():
            row(f"({form})", domain, "macro", estimate, summary.measure)
        if summary.average is not None:
            row(f"({form})", "average", "macro", summary.average, summary.measure)
    return csv_text(columns, rows) + "\n"
