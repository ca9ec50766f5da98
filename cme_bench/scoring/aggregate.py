"""From item scores to a task's results, and from tasks to datasets, domains and the CME average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cme_bench.scoring.macro_f1 import f1_macro, f1_macro_stderr
from cme_bench.stats.estimates import Estimate, macro_mean, mean

FORMS = {"generate_until": "generated"}
"""Form of a task by its output type; every other output type is a likelihood."""
OUTSIDE = "other "
"""Begins the form of a task that is not one of CME's: CME's averages are over CME's tasks alone."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One finished task, in one of two forms: ``generated`` or ``likelihood``; ``other generated`` and
    ``other likelihood`` outside CME.

    ``metrics[name]`` are estimates over its items, ``primary`` names the one that stands for it. ``quality``
    holds shares in [0, 1]: ``empty`` (no answer found), ``hit_length`` (generation cut by its limit),
    ``truncated`` (prompt cut to fit).
    """

    task: str
    form: str
    domain: str
    dataset: str
    primary: str
    metrics: dict[str, Estimate]
    quality: dict[str, float]

    @property
    def score(self) -> Estimate:
        return self.metrics[self.primary]


@dataclass(frozen=True, slots=True)
class Summary:
    """Macro means: a dataset over its tasks, a domain over its datasets, the average over the domains."""

    datasets: dict[str, Estimate]
    domains: dict[str, Estimate]
    average: Estimate


def task_result(spec: Any, lm_task: Any, records: Sequence[Mapping[str, Any]]) -> TaskResult:
    """Aggregate the records of one task. Means are ours; other aggregations are lm-eval's, their standard
    errors its bootstrap (100 resamples)."""
    metrics = {name: _estimate(lm_task, name, records) for name in records[0]["scores"]}
    finishes = [r["response"]["finish"] for r in records if "finish" in r["response"]]
    answers = [r["answer"]["rule"] for r in records if "answer" in r]
    quality = {"truncated": sum(r["truncated"] > 0 for r in records) / len(records)}
    if finishes:
        quality["hit_length"] = finishes.count("length") / len(finishes)
    if answers:
        quality["empty"] = answers.count("none") / len(answers)
    primary = spec.primary if spec.primary in metrics else next(iter(metrics))
    form = ("" if spec.in_cme else OUTSIDE) + FORMS.get(spec.output_type, "likelihood")
    return TaskResult(spec.name, form, spec.domain, spec.dataset, primary, metrics, quality)


def _estimate(lm_task: Any, name: str, records: Sequence[Mapping[str, Any]]) -> Estimate:
    values = [r["scores"][name] for r in records]
    if name == "f1_macro":
        return Estimate(f1_macro(values), f1_macro_stderr(values), len(values))
    if all(isinstance(v, float | int) for v in values):
        return mean(values)
    from lm_eval.api.metrics import stderr_for_metric

    from cme_bench.scoring.metrics import LM_EVAL_ALIASES

    original = {v: k for k, v in LM_EVAL_ALIASES.items()}
    bare = name.split("@", maxsplit=1)[0]
    aggregate = lm_task.aggregation()[original.get(bare, bare)]
    stderr = stderr_for_metric(aggregate, bootstrap_iters=100)
    return Estimate(
        value=float(aggregate(values)),
        stderr=float(stderr(values)) if stderr is not None else float("nan"),
        n=len(values),
    )


def summarize(results: Sequence[TaskResult]) -> dict[str, Summary]:
    """A summary for each form that occurs: generated answers and likelihoods are never averaged together,
    nor CME's tasks with others."""
    forms = dict.fromkeys(r.form for r in results)
    return {form: _summarize([r for r in results if r.form == form]) for form in forms}


def _summarize(results: Sequence[TaskResult]) -> Summary:
    by_dataset: dict[tuple[str, str], list[Estimate]] = {}
    for result in results:
        by_dataset.setdefault((result.domain, result.dataset), []).append(result.score)
    datasets = {key: macro_mean(parts) for key, parts in by_dataset.items()}
    by_domain: dict[str, list[Estimate]] = {}
    for (domain, _), estimate in datasets.items():
        by_domain.setdefault(domain, []).append(estimate)
    domains = {domain: macro_mean(parts) for domain, parts in by_domain.items()}
    return Summary(
        datasets={dataset: estimate for (_, dataset), estimate in datasets.items()},
        domains=domains,
        average=macro_mean(list(domains.values())),
    )
