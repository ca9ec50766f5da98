"""MME's scores: each image has two questions, and both right counts once more (arXiv 2306.13394)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

PERCEPTION = frozenset("existence count position color posters celebrity scene landmark artwork OCR".split())
"""The categories of perception; the others are cognition's."""


def mme(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Give the score of perception or of cognition what it needs: category, image, and right (1) or not."""
    right = doc["answer"].lower().strip().replace(".", "")
    metric = "mme_perception_score" if doc["category"] in PERCEPTION else "mme_cognition_score"
    return {metric: [str(doc["category"]), str(doc["question_id"]), float(read_yes_no(results[0]) == right)]}


def read_yes_no(response: str) -> str:
    """Read yes or no as Otter's evaluation does: alone, as y or n, or among the first four characters."""
    text = response.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    start = text if text in ("yes", "no") else text[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def mme_score(values: Sequence[Sequence[Any]]) -> float:
    """Return the sum over categories of accuracy and of accuracy of pairs, in percent: up to 200 for each.

    NaN if an image has not exactly two answers, as where ``--limit`` cuts a pair: the metric is of pairs.
    """
    pairs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for category, image, score in values:
        pairs[category][image].append(score)
    if not pairs or any(len(scores) != 2 for images in pairs.values() for scores in images.values()):
        return math.nan
    points = [
        [100 * (sum(pair) / 2 + (sum(pair) == 2)) for pair in images.values()] for images in pairs.values()
    ]
    return sum(sum(category) / len(category) for category in points)
