"""lm-eval's scores of a multiple choice, without its arrays: the same numbers, several times sooner."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

METRICS = frozenset({"acc", "acc_norm", "acc_bytes"})
"""The metrics of lm-eval that are computed here."""


def choice_scores(
    metrics: Collection[str], logprobs: Sequence[float], choices: Sequence[str], gold: Any
) -> dict[str, float] | None:
    """Return what lm-eval's ``process_results`` does for those of METRICS that are among ``metrics``.

    None is returned for what is left to it: several right answers, a label that is none, a choice without a
    letter, numbers that are not finite. Of choices that are equal the first is taken.
    """
    if type(gold) is not int or gold >= len(choices) or len(logprobs) != len(choices):
        return None
    if not all(choices) or not all(map(math.isfinite, logprobs)):
        return None
    found = {"acc": _best(logprobs)} if "acc" in metrics else {}
    if "acc_norm" in metrics:
        found["acc_norm"] = _best([p / len(c) for p, c in zip(logprobs, choices, strict=True)])
    if "acc_bytes" in metrics:
        lengths = [len(choice.encode("utf-8")) for choice in choices]
        found["acc_bytes"] = _best([p / n for p, n in zip(logprobs, lengths, strict=True)])
    return {name: float(best == gold) for name, best in found.items()}


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
