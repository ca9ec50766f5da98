"""Questions whose two best choices lie so close together that the model's type may decide between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from cme_bench.scoring.record import Record

NOISE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.15}
"""Nats within which two choices are a near tie: what the lead of one choice moves by when a model is computed
by another engine in this type (docs/engines.md). bfloat16: the 90th percentile of what was measured against
float32; float16 has three bits more; float32: ten tokens of 1e-4, by which engines may differ.
"""


def rounds_as(dtype: str, states: str | None) -> str:
    """Return the type of ``NOISE`` that a model in ``dtype`` moves by, whose hidden states are ``states``.

    Where a 16-bit model has wide ones, products and attention hold 11 bits, as float16 does.
    """
    return "float16" if states in ("float32", "float16") and dtype != "float32" else dtype


class Decision(IntEnum):
    """How a question was decided: ``NONE`` where no choice was made."""

    NONE, CLEAR, NEAR, TIE = range(4)


def decision(lm_task: Any, record: Record, metric: str, noise: float | None) -> Decision:
    """Return how clearly the choice that ``metric`` counts comes first; lm-eval takes the first of a tie.

    ``noise`` in nats; None: nothing is near. A choice's lead is what its log-likelihood could lose and still
    be chosen, also where ``metric`` divides by lengths.
    """
    margin = _margin(lm_task, record, metric)
    if margin is None:
        return Decision.NONE
    if margin == 0:
        return Decision.TIE
    return Decision.NEAR if noise is not None and margin < noise else Decision.CLEAR


def _margin(lm_task: Any, record: Record, metric: str) -> float | None:
    logprobs = record.response.logprobs
    if logprobs is None or getattr(lm_task, "OUTPUT_TYPE", None) != "multiple_choice":
        return None
    if "acc_mutual_info" in record.scores:
        logprobs = logprobs[: len(logprobs) // 2]  # the rest are the choices alone
    if len(logprobs) < 2:
        return None
    lengths = _lengths(lm_task, record.doc, metric) if metric in _LENGTHS else [1.0] * len(logprobs)
    if all(map(math.isfinite, logprobs)) and all(lengths):
        return _finite_margin(logprobs, lengths)
    return _any_margin(logprobs, lengths)


def _finite_margin(logprobs: Sequence[float], lengths: Sequence[float]) -> float:
    """Return what ``_any_margin`` does, of finite numbers and choices that are not empty, several times
    sooner."""
    compared = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
    second, best = sorted(range(len(compared)), key=compared.__getitem__)[-2:]
    return (compared[best] - compared[second]) * lengths[best]


def _any_margin(logprobs: Sequence[float], lengths: Sequence[float]) -> float:
    """Return the lead of the best choice, in nats."""
    values = np.asarray(logprobs, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):  # an empty choice
        compared = values / np.array(lengths)
        second, best = np.argsort(compared, kind="stable")[-2:]
        tied = compared[second] == compared[best]  # both may be minus infinity
        return 0.0 if tied else float((compared[best] - compared[second]) * lengths[best])


_LENGTHS = ("acc_char", "acc_byte")


def _lengths(lm_task: Any, doc: Any, metric: str) -> list[float]:
    """Return the choices' lengths as lm-eval measures them: in characters or bytes, without what stands
    before them."""
    texts = lm_task.doc_to_choice(doc)
    return [float(len(text.encode() if metric == "acc_byte" else text)) for text in texts]
