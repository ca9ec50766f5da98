"""``.eval_results/*.yaml``: a run's scores in the hub's own format, by huggingface_hub's own classes."""

from __future__ import annotations

from collections.abc import Iterator

import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

from cme_bench.reports.card import rounded
from cme_bench.reports.runs import RunView
from cme_bench.runs.records import ResultRecord, TaskRecord

FILE = ".eval_results/cme-bench.yaml"
MINI = "cme-bench/mini"
"""Stands for a data set where the items are those that ship with this package: none of the hub's."""


def eval_results_yaml(run: RunView) -> str:
    """Return the entries of all tasks that have a finite score, as YAML."""
    return str(yaml.safe_dump(eval_result_entries_to_yaml(list(entries(run))), sort_keys=False))


def entries(run: RunView) -> Iterator[EvalResultEntry]:
    """Yield an entry for each task: its data set and name, the score in its unit, and how it was made.

    The data set's commit stands there only where the rows are the hub's; other rows are named in the notes.
    """
    for name, result in run.results.tasks.items():
        planned, score = run.run.tasks[name], result.score
        if score.value is None:
            continue
        hub = planned.source == "hub"
        yield EvalResultEntry(
            dataset_id=_dataset(run, planned),
            task_id=name,
            value=rounded(score.value, score.measure),
            dataset_revision=planned.revision if hub else None,
            date=run.run.sessions[0].started if run.run.sessions else None,
            notes=_notes(run, planned, result),
        )


def _dataset(run: RunView, planned: TaskRecord) -> str:
    """Return the hub's id of the rows; where they are not the hub's, a name that claims none of its sets."""
    if planned.source == "hub" and planned.origin and "@" in planned.origin:
        return planned.origin.partition("@")[0]
    return MINI if run.run.identity.data == "mini" else f"local/{planned.dataset}"


def _notes(run: RunView, planned: TaskRecord, result: ResultRecord) -> str:
    score, measure = result.score, result.score.measure
    parts = [f"{result.primary}{f' ({measure.scale.unit})' if measure.scale.unit else ''}"]
    if score.stderr is not None:
        parts.append(f"standard error {measure.shown(score.stderr)}")
    part = f"{planned.n} of {planned.rows} items" if planned.n < planned.rows else f"{planned.n} items"
    parts += [part, f"{planned.shots}-shot", result.form, f"prompt format {planned.prompt_format}"]
    if run.run.identity.data == "mini":
        parts.append(f"cme-bench's own smoke-test items, not {planned.dataset}: no measurement")
    elif planned.source != "hub":
        parts.append(f"rows of {planned.dataset} from a local folder")
    identity = run.run.identity
    parts.append(f"engine {identity.engine}, {identity.dtype}")
    parts.append(f"cme-bench {run.run.versions.get('cme-bench', '?')}, task hash {planned.hash[:8]}")
    return "; ".join(parts)
