"""The results of a task, and their means: of datasets, of domains, and the CME average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cme_bench.scoring.generation import GENERATE_UNTIL
from cme_bench.scoring.scales import Measure
from cme_bench.scoring.thoughts import ThinkingSummary
from cme_bench.stats.estimates import Estimate, macro_mean

FORMS = {GENERATE_UNTIL: "generated"}
"""Form of a task by its output type; every other output type is a likelihood."""
OUTSIDE = "other "
"""Begins the form of a task that is not one of CME's: CME's averages are over CME's tasks alone."""
BLIND = "blind "
"""Then follows, for a task that is asked without its images: no mean is over both."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """One finished task. Its form is ``generated`` or ``likelihood``, with ``other`` before it outside CME,
    and the main metric's kind behind it where that is no share.

    ``metrics[name]`` are estimates over its items, ``measures[name]`` say how to read them, ``origins[name]``
    are lm-eval's names of metric and filter, ``primary`` names the one that stands for it. ``quality``
    holds shares in [0, 1]: ``empty`` (no answer found), ``hit_length`` (generation cut by its limit),
    ``truncated`` (prompt cut to fit), ``unanswered`` where items have no response and are not scored, and of
    the answers ``thought_cut`` (a thought ended by its budget) and ``unclosed`` (it never ended), and of
    the questions with choices ``ties`` (the two best are equal) and ``near_ties`` (they differ by less than
    the model's type is exact to, ties included).
    """

    task: str
    form: str
    domain: str
    dataset: str
    primary: str
    metrics: dict[str, Estimate]
    quality: dict[str, float]
    measures: dict[str, Measure] = field(default_factory=dict)
    origins: dict[str, tuple[str, str]] = field(default_factory=dict)
    thinking: ThinkingSummary | None = None

    @property
    def score(self) -> Estimate:
        return self.metrics[self.primary]

    @property
    def measure(self) -> Measure:
        return self.measures.get(self.primary, Measure())


@dataclass(frozen=True, slots=True)
class Summary:
    """Macro means: a dataset over its tasks, a domain over its datasets, the average over the domains.

    Tasks whose metrics have no common mean (perplexities) stand by themselves: ``domains`` and ``datasets``
    are the tasks then, and there is no average.
    """

    datasets: dict[str, Estimate]
    domains: dict[str, Estimate]
    average: Estimate | None
    measure: Measure


def summarize(results: Sequence[TaskResult]) -> dict[str, Summary]:
    """Return a summary for each form that occurs. Generated answers and likelihoods are never averaged
    together, nor CME's tasks with others."""
    forms = dict.fromkeys(r.form for r in results)
    return {form: _summarize([r for r in results if r.form == form]) for form in forms}


def _summarize(results: Sequence[TaskResult]) -> Summary:
    measure = results[0].measure
    if not measure.scale.averaged:
        tasks = {result.task: result.score for result in results}
        return Summary(datasets=tasks, domains=dict(tasks), average=None, measure=measure)
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
        measure=measure,
    )
