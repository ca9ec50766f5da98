"""The columns of a table: a domain each, or a dataset each where a form is of one domain of image tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from cme_bench.reports.runs import RunView
from cme_bench.reports.scores import AVERAGE, weights
from cme_bench.runs.records import EstimateRecord, FormRecord
from cme_bench.tasks.blind import ENDING
from cme_bench.tasks.suite import DOMAINS

BY_DATASET = frozenset({"multimodal", "llava15"})
"""Domains that are a whole evaluation by themselves, so that their datasets are what is compared."""


def blind_column(name: str) -> str:
    """Return the name of a column without what says that no images were shown."""
    return name.removesuffix(ENDING)


def by_dataset(domains: Iterable[str]) -> bool:
    """Return whether a form of these domains has a column for each dataset."""
    names = {blind_column(name) for name in domains}
    return len(names) == 1 and names <= BY_DATASET


def columns_of(summary: FormRecord) -> Mapping[str, EstimateRecord]:
    """Return the scores of one form by column, without the average."""
    return summary.datasets if by_dataset(summary.domains) and summary.datasets else summary.domains


def score_of(summary: FormRecord, column: str) -> EstimateRecord | None:
    """Return the score of one column; None where there is none."""
    if column == AVERAGE:
        return summary.average
    return columns_of(summary).get(column)


def shown_columns(runs: Sequence[RunView], form: str) -> list[str]:
    """Return the columns of a form in the order of CME's domains, the others in that of their names."""
    present = dict.fromkeys(column for run in runs for column in columns_of(run.results.forms[form]))
    return sorted(present, key=lambda d: (DOMAINS.index(d) if d in DOMAINS else len(DOMAINS), d))


def column_weights(
    tasks: Sequence[tuple[str, str, str]], *, averaged: bool = True
) -> dict[str, dict[str, float]]:
    """Return, for every column and for the average, the weight of each of its tasks (task, domain,
    dataset)."""
    found = weights(tasks, averaged=averaged)
    if not averaged or not by_dataset(domain for _, domain, _ in tasks):
        return found
    sizes = Counter(dataset for _, _, dataset in tasks)
    columns: dict[str, dict[str, float]] = {dataset: {} for dataset in sizes}
    for task, _, dataset in tasks:
        columns[dataset][task] = 1 / sizes[dataset]
    return columns | {AVERAGE: found[AVERAGE]}
