"""From a response to a stored record: lm-eval's filters and metrics, or our extraction, for one item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cme_bench.scoring.metrics import LM_EVAL_ALIASES
from cme_bench.scoring.record import Scored, StoredAnswer, StoredResponse
from cme_bench.util.errors import UsageError

_THEIRS = {ours: theirs for theirs, ours in LM_EVAL_ALIASES.items()}


def score_record(
    lm_task: Any, doc: dict[str, Any], instances: Sequence[Any], response: StoredResponse
) -> Scored:
    """Return the metrics of a stored response, with the answer where the task reads text with our rules.

    Metrics carry formula names; those of a filter other than the default get ``@filter``.
    """
    if getattr(lm_task, "answer", None) is not None and response.text is not None:
        scored = lm_task.score_text(doc, response.text)
        return Scored(scores=scored.scores, answer=StoredAnswer(scored.answer.text, scored.answer.rule))
    for instance, value in zip(instances, response.values, strict=True):
        instance.resps = [value] * repeats(lm_task)  # each answer alone, as if all were like it
        instance.filtered_resps = {}
    return _filtered(lm_task, doc, instances)


def combined_scores(
    lm_task: Any, doc: dict[str, Any], instances: Sequence[Any], responses: Sequence[StoredResponse]
) -> dict[str, Any]:
    """Return the metrics that a task's filters make of several answers to one item, as lm-eval does."""
    [instance] = instances
    instance.resps = [response.text for response in responses]
    instance.filtered_resps = {}
    return _filtered(lm_task, doc, instances).scores


def _filtered(lm_task: Any, doc: dict[str, Any], instances: Sequence[Any]) -> Scored:
    """Return the metrics of instances that hold their responses, by every pipeline of filters."""
    scores: dict[str, Any] = {}
    texts: dict[str, str] = {}
    generated = instances[0].request_type == "generate_until"
    for pipeline in lm_task._filters:
        pipeline.apply(list(instances))
        filtered = [instance.filtered_resps[pipeline.name] for instance in instances]
        if generated:
            texts[pipeline.name] = _voted(filtered[0])
        for name, value in lm_task.process_results(doc, filtered).items():
            if value is None:  # the store could not tell it from NaN
                raise UsageError(
                    f"metric {name!r} is None for an item: give a number (or NaN), or leave it out there"
                )
            scores[metric_name(name, pipeline.name, lm_task)] = _plain(value)
    for instance in instances:
        instance.resps, instance.filtered_resps = [], {}  # items outlive their scores
    return Scored(scores=scores, filtered=texts or None)


def _voted(filtered: Any) -> str:
    """Return what one pipeline made of one answer, as text; a list of equals stands for its first."""
    while isinstance(filtered, list) and filtered:
        filtered = filtered[0]
    return str(filtered)


def repeats(lm_task: Any) -> int:
    """Return how many answers to each item the filters of a task expect."""
    return int(getattr(lm_task.config, "repeats", 1) or 1)


def metric_name(name: str, pipeline: str = "none", lm_task: Any = None) -> str:
    """Return our name of lm-eval's metric ``name`` under filter ``pipeline``.

    That is the formula's name, unless another metric of ``lm_task`` has it.
    """
    taken = () if lm_task is None else lm_task.aggregation()
    formula = LM_EVAL_ALIASES.get(name, name)
    bare = name if formula in taken else formula
    return bare if pipeline == "none" else f"{bare}@{pipeline}"


def origin(lm_task: Any, name: str) -> tuple[str, str]:
    """Return lm-eval's names of the metric and the filter that ``name`` stands for."""
    pipelines = [] if lm_task is None else [p.name for p in getattr(lm_task, "_filters", ())]
    pipeline = next((p for p in pipelines if p != "none" and name.endswith(f"@{p}")), "none")
    bare = name if pipeline == "none" else name.removesuffix(f"@{pipeline}")
    known = {} if lm_task is None else lm_task.aggregation()
    return (bare if bare in known else _THEIRS.get(bare, bare)), pipeline


def _plain(value: Any) -> Any:
    """Return numbers as Python floats (NaN as None, which JSON can hold); anything else as it is."""
    if isinstance(value, bool | int | float) or hasattr(value, "item"):
        number = float(value)
        return None if math.isnan(number) else number
    return value
