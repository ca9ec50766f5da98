"""Scoring of benchmarks that LLaVA-1.5 reports, as lmms-eval does it: GQA, ScienceQA, SEED-Bench and POPE.

A function of a row and its response gives the values of an item, one of all items' values the metric.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def gqa(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Compare a response with the answer, without case and punctuation."""
    given, right = (text.lower().translate(_NO_PUNCTUATION) for text in (results[0].strip(), doc["answer"]))
    return {"exact_match": float(given == right)}


def science_qa(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Score the letter of an option: alone, or with a period at the beginning, as LLaVA reads it."""
    right, given = "abcdefghijklmnopqrstuvwxyz"[doc["answer"]], results[0].strip()
    if given[1:2] == "." and given[0].isupper():
        return {"exact_match": float(given[0].lower() == right)}
    return {"exact_match": float(given.lower() == right)}


def seed_image(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Compare the first character of a response with the letter of the right option."""
    return {"seed_image": float(results[0].strip()[:1].lower() == str(doc["answer"]).lower().strip())}


def only_images(rows: Any) -> Any:
    """Keep the questions about one image; the others of SEED-Bench are about frames of a video."""
    return rows.filter(lambda kind: kind == "image", input_columns="data_type")


def pope(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Give each metric of POPE what it needs: right or not, or the pair of right answer and response.

    ``answered_yes`` is the ratio of yes among responses; lmms-eval's ``pope_yes_ratio`` is that of the right
    answers, which says nothing of a model.
    """
    right, given = doc["answer"].lower().strip(), results[0].lower().strip()
    pair = [right, given]
    return {
        "pope_accuracy": float(given == right),
        "pope_precision": pair,
        "pope_recall": pair,
        "pope_f1_score": pair,
        "answered_yes": float(given == "yes"),
    }


def pope_precision(pairs: Sequence[Sequence[str]]) -> float:
    """Return how many things that were said to be there are there; 0 if none was said to be."""
    said = [right for right, given in pairs if given == "yes"]
    return said.count("yes") / len(said) if said else 0.0


def pope_recall(pairs: Sequence[Sequence[str]]) -> float:
    """Return how many things that are there were said to be, of those that were answered yes or no."""
    found = [given for right, given in pairs if right == "yes" and given in ("yes", "no")]
    return found.count("yes") / len(found) if found else 0.0


def pope_f1(pairs: Sequence[Sequence[str]]) -> float:
    """Return the harmonic mean of POPE's precision and recall."""
    precision, recall = pope_precision(pairs), pope_recall(pairs)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
