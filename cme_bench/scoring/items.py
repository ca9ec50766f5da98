"""From a response to a stored record: lm-eval's filters and metrics, or our extraction, for one item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cme_bench.engines.base import GenerateResponse, LoglikelihoodResponse
from cme_bench.scoring.metrics import LM_EVAL_ALIASES

Response = LoglikelihoodResponse | GenerateResponse


def response_record(response: Response) -> dict[str, Any]:
    """What is stored of a response. ``margin``: log-likelihood of the best choice less the second best."""
    if isinstance(response, GenerateResponse):
        return {"text": response.text, "n_tokens": response.n_tokens, "finish": response.finish}
    ordered = sorted(response.logprobs, reverse=True)
    return {
        "logprobs": list(response.logprobs),
        "greedy": list(response.greedy),
        "margin": ordered[0] - ordered[1] if len(ordered) > 1 else None,
    }


def score_record(
    lm_task: Any, doc: dict[str, Any], instances: Sequence[Any], response: dict[str, Any]
) -> dict[str, Any]:
    """Metrics of a stored response: ``{"scores": {metric: value}}``, and ``answer`` with the extraction and
    its rule where the task reads generated text with our rules.

    Metrics carry formula names; those of a filter other than the default get ``@filter``.
    """
    if getattr(lm_task, "answer", None) is not None and "text" in response:
        scored = lm_task.score_text(doc, response["text"])
        answer = {"text": scored.answer.text, "rule": scored.answer.rule}
        return {"scores": scored.scores, "answer": answer}
    raw = (
        [response["text"]]
        if "text" in response
        else list(zip(response["logprobs"], response["greedy"], strict=True))
    )
    for instance, value in zip(instances, raw, strict=True):
        instance.resps = [value]
        instance.filtered_resps = {}
    scores: dict[str, Any] = {}
    for pipeline in lm_task._filters:
        pipeline.apply(list(instances))
        filtered = [instance.filtered_resps[pipeline.name] for instance in instances]
        for name, value in lm_task.process_results(doc, filtered).items():
            scores[metric_name(name, pipeline.name)] = _plain(value)
    for instance in instances:
        instance.resps, instance.filtered_resps = [], {}  # items outlive their scores
    return {"scores": scores}


def metric_name(name: str, pipeline: str = "none") -> str:
    """Our name of lm-eval's metric ``name`` under filter ``pipeline``."""
    formula = LM_EVAL_ALIASES.get(name, name)
    return formula if pipeline == "none" else f"{formula}@{pipeline}"


def _plain(value: Any) -> Any:
    """Numbers as Python floats (NaN as None, which JSON can hold); anything else as it is."""
    if isinstance(value, bool | int | float) or hasattr(value, "item"):
        number = float(value)
        return None if math.isnan(number) else number
    return value
