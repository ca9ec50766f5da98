"""Runs of one method trained with several seeds, as one run whose errors generalise over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from msgspec import structs

from cme_bench.reports.columns import by_dataset, column_weights
from cme_bench.reports.runs import RunView, check_alike, some
from cme_bench.reports.scores import AVERAGE, TaskScores, paired_tasks, weights
from cme_bench.runs.records import AdapterRecord, EstimateRecord, FormRecord
from cme_bench.stats.seeds import seeds_mean
from cme_bench.util.errors import UsageError
from cme_bench.util.found_fields import FOUND

_SAME = ("method", "rank", "experts", "targets", "settings")
"""Runs that differ here are rows of their own."""
_COMPARED = {"config": "adapters' configs", "training": "training arguments"}
"""Runs that differ here, and not above, were no seeds of one training."""


def pool_seeds(runs: Sequence[RunView], *, allow_mixed: bool = False) -> list[RunView]:
    """Pool runs of one base, method and settings but other weights into one, in the order of their first.

    Its scores are means over seeds and items with :func:`~cme_bench.stats.seeds.seeds_mean`'s standard
    errors. Needs per-item records. Raises UsageError if no two runs belong together, and if runs that look
    alike differ in a field of the adapter's config or an argument of the training other than the seed. Runs
    that record neither are pooled with a note.
    """
    groups: dict[str, list[RunView]] = {}
    for number, run in enumerate(runs):
        adapter = run.run.adapter
        base = run.run.identity.model, run.run.identity.quantised
        key = (*base, *(getattr(adapter, k) for k in _SAME)) if adapter else (number,)
        groups.setdefault(repr(key), []).append(run)
    if len(groups) == len(runs):
        raise UsageError("--pool-seeds: no two runs share base, method, rank, experts and settings")
    return [group[0] if len(group) == 1 else _pool(group, allow_mixed) for group in groups.values()]


def _check_one_training(runs: Sequence[RunView]) -> tuple[str, ...]:
    """Return notes of what could not be compared. UsageError with the first field that differs, and both
    values."""
    notes = []
    for part, name in _COMPARED.items():
        recorded = [(run, _fields(run.run.adapter, part)) for run in runs]
        known = [(run, fields) for run, fields in recorded if fields is not None]
        for run, fields in known[1:]:
            if (found := _first_difference(known[0][1], fields)) is not None:
                key, one, other = found
                raise UsageError(
                    f"--pool-seeds: {known[0][0].folder} and {run.folder} are no seeds of one training: "
                    f"{key} is {one} there and {other} here; give them to tables of their own"
                )
        if unknown := [run.folder.name for run, fields in recorded if fields is None]:
            notes.append(f"Pooled without comparing the {name}, which are not recorded: {some(unknown)}.")
    return tuple(notes)


def _fields(adapter: AdapterRecord | None, part: str) -> dict[str, Any] | None:
    """Return what is recorded of an adapter but what its training found; None if nothing is."""
    recorded = getattr(adapter, part)
    if adapter is None or recorded is None:
        return None
    found = FOUND.get(adapter.method, frozenset())
    return {key: value for key, value in recorded.items() if key not in found}


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return the first field, in the order of ``one``, whose values differ; fields of one alone say
    nothing."""
    for key, value in one.items():
        if key in other and other[key] != value:
            if isinstance(value, Mapping) and isinstance(other[key], Mapping):
                return _difference_within(key, value, other[key])
            return key, _shown(value), _shown(other[key])
    return None


def _difference_within(key: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the first difference of two mappings; an entry that is absent counts as None."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return f"{key}.{names[0]}", _shown(one.get(names[0])), _shown(other.get(names[0]))


def _shown(value: Any) -> str:
    text = str(value)
    return text[:8] if len(text) == 64 else text


def _pool(runs: Sequence[RunView], allow_mixed: bool) -> RunView:
    hashes = [run.run.identity.adapter for run in runs]
    if len(set(hashes)) < len(hashes):
        raise UsageError(f"--pool-seeds: {runs[0].folder} and another run hold the very same adapter")
    notes = _check_one_training(runs)
    check_alike(runs, allow_mixed=allow_mixed)
    first, pooled = runs[0], {}
    for form, own in first.results.forms.items():
        tasks = {t.task: t for t in paired_tasks(runs, form, allow_mixed=allow_mixed)}
        if not tasks:
            continue  # allowed: some run has none of them
        averaged = first.measure(form).scale.averaged
        places = weights([t.place for t in tasks.values()], averaged=averaged)
        columns = {name: _estimate(tasks, shares) for name, shares in places.items()}
        average = columns.pop(AVERAGE, None)
        datasets = {}
        if averaged and by_dataset(columns):
            every = column_weights([t.place for t in tasks.values()])
            datasets = {name: _estimate(tasks, shares) for name, shares in every.items() if name != AVERAGE}
        pooled[form] = FormRecord(measure=own.measure, average=average, domains=columns, datasets=datasets)
    return replace(
        first,
        run=structs.replace(first.run, adapter=_pooled_adapter(runs)),
        results=structs.replace(first.results, forms=pooled),
        members=tuple(runs),
        notes=notes,
    )


def _pooled_adapter(runs: Sequence[RunView]) -> AdapterRecord:
    """Return the adapter that stands for all: its training time is their mean."""
    adapters = [run.run.adapter for run in runs if run.run.adapter is not None]
    times = [adapter.training_seconds for adapter in adapters if adapter.training_seconds]
    return structs.replace(
        adapters[0],
        name=f"{adapters[0].method}-{adapters[0].rank}, {len(runs)} seeds",
        training_seconds=sum(times) / len(times) if len(times) == len(runs) else None,
    )


def _estimate(tasks: dict[str, TaskScores], own: dict[str, float]) -> EstimateRecord:
    found = seeds_mean([tasks[task].scores.T for task in own], list(own.values()))
    return EstimateRecord.of(found.estimate)
