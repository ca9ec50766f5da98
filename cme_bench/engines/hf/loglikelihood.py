"""Scoring: rows of all requests, each distinct row computed once.

``plan_rows`` decides what to compute and in which order, ``score_rows`` computes one batch,
``collect_responses`` puts rows back together into requests; none knows how the others work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cme_bench.engines.base import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.contexts import Contexts
from cme_bench.engines.hf.batching import by_length
from cme_bench.engines.hf.copies import to_host
from cme_bench.engines.hf.forward import CausalForward, left_pad
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.virtual import VIRTUAL

_LOGITS_AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Most logits held in float32 at a time: 16 MiB, which a CPU's cache can hold, or 256 MiB."""


@dataclass(slots=True)
class ScoringRow:
    """Hold one distinct (context, continuation), the continuation not empty.

    ``owners`` are its uses, as (request, choice).
    """

    context: TokenIds
    continuation: TokenIds
    owners: list[tuple[int, int]] = field(default_factory=list)

    @property
    def n_input(self) -> int:
        """The last token is scored but never fed."""
        return len(self.context) + len(self.continuation) - 1

    @property
    def n_new(self) -> int:
        return 0

    @property
    def has_images(self) -> bool:
        return max(self.context) >= VIRTUAL


@dataclass(frozen=True, slots=True)
class RowScore:
    """Hold the natural log of P(continuation | context), and whether argmax would have chosen all of it."""

    logprob: float
    greedy: bool


def plan_rows(requests: Sequence[LoglikelihoodRequest]) -> list[ScoringRow]:
    """Return distinct rows, requests with the longest row first, the rows of a request adjacent."""

    def longest(index: int) -> int:
        return max((len(c) + len(t) for c, t in requests[index].rows), default=0)

    contexts = Contexts()
    rows: dict[tuple[int, TokenIds], ScoringRow] = {}
    for index in sorted(range(len(requests)), key=longest, reverse=True):
        pairs = list(enumerate(requests[index].rows))
        for choice, (context, continuation) in sorted(pairs, key=lambda pair: -sum(map(len, pair[1]))):
            if continuation:
                key = contexts.number(context), continuation
                if (row := rows.get(key)) is None:
                    row = rows[key] = ScoringRow(context, continuation)
                row.owners.append((index, choice))
    return list(rows.values())


@torch.inference_mode()
def score_rows(forward: CausalForward, rows: Sequence[ScoringRow], *, alone: bool = False) -> list[RowScore]:
    """Score ``rows`` in one forward, with one copy back from the device; ``alone``: one row, by PEFT's own.

    Raises LogitsError when logits are NaN or plus infinity.
    """
    ids, mask = left_pad([row.context + row.continuation[:-1] for row in rows])
    keep = max(len(row.continuation) for row in rows)
    with forward.seeing(ids):
        if alone:
            logits, _ = forward.alone(ids.to(forward.device), keep=keep)
        else:
            logits, _ = forward(ids.to(forward.device), mask.to(forward.device), keep=keep)
    return _read_rows(rows, logits, keep)


@torch.inference_mode()
def score_seen(forward: CausalForward, row: ScoringRow) -> RowScore:
    """Score a row with images by the model's own forward, from pixels. Raises as ``score_rows`` does."""
    keep = len(row.continuation)
    logits = forward.own(torch.tensor([row.context + row.continuation[:-1]]), keep=keep)
    return _read_rows([row], logits, keep)[0]


def _read_rows(rows: Sequence[ScoringRow], logits: Tensor, keep: int) -> list[RowScore]:
    """Return the scores of ``rows`` from logits [rows, keep, vocab]."""
    logits = logits.reshape(len(rows) * keep, -1)  # [rows * keep, vocab]: continuations end at the right

    scored_at = [
        (index + 1) * keep - len(row.continuation) + offset
        for index, row in enumerate(rows)
        for offset in range(len(row.continuation))
    ]
    logprobs, hits = read_logits(
        logits,
        torch.arange(len(scored_at)),
        torch.tensor([t for row in rows for t in row.continuation]),
        torch.tensor(scored_at),
    )
    scores = []
    start = 0
    for row in rows:
        end = start + len(row.continuation)
        scores.append(RowScore(math.fsum(logprobs[start:end]), all(hits[start:end])))
        check_not_nan(row, scores[-1])
        start = end
    return scores


def score_by_length(forward: CausalForward, rows: Sequence[ScoringRow]) -> list[RowScore]:
    """Score ``rows`` without padding, those of one length at a time; return scores in their order."""
    scores: dict[int, RowScore] = {}
    for indices in by_length(rows):
        scores |= dict(zip(indices, score_rows(forward, [rows[i] for i in indices]), strict=True))
    return [scores[i] for i in range(len(rows))]


def read_logits(
    logits: Tensor, index: Tensor, target: Tensor, scored_at: Tensor | None = None
) -> tuple[list[float], list[bool]]:
    """Return what :func:`read_later` does, at once."""
    return read_later(logits, index, target, scored_at)()


def read_later(
    logits: Tensor, index: Tensor, target: Tensor, scored_at: Tensor | None = None
) -> Callable[[], tuple[list[float], list[bool]]]:
    """Start reading the log-probability of every ``target`` [reads], and whether it is the argmax.

    It is read at row ``index`` [reads] of ``logits`` [n, vocab], or of ``logits[scored_at]`` if given. It is
    NaN where a logit of the row is NaN or plus infinity. Return what waits for the one copy back from the
    device.
    """
    index, target = index.to(logits.device), target.to(logits.device)
    n = logits.shape[0]
    if scored_at is not None:
        scored_at = scored_at.to(logits.device)
        n = len(scored_at)
    total = torch.empty(n, device=logits.device)
    best = torch.empty(n, dtype=torch.int64, device=logits.device)
    at_once = _LOGITS_AT_ONCE["cuda" if logits.device.type == "cuda" else "cpu"]
    step = max(1, at_once // logits.shape[-1])
    for start in range(0, n, step):
        some = slice(start, start + step)
        scored = (logits[some] if scored_at is None else logits[scored_at[some]]).float()
        total[some] = scored.logsumexp(-1)
        best[some] = scored.argmax(-1)
    total.masked_fill_(total == math.inf, math.nan)  # a logit of +inf: no probability is known
    wanted = logits[index if scored_at is None else scored_at[index], target].float()
    found = to_host(torch.stack((wanted - total[index], (best[index] == target).float())))

    def wait() -> tuple[list[float], list[bool]]:
        logprobs, hits = found().tolist()
        return logprobs, [bool(hit) for hit in hits]

    return wait


def check_not_nan(row: ScoringRow, score: RowScore) -> None:
    """Raise LogitsError if the score of ``row`` is NaN."""
    if math.isnan(score.logprob):
        index, choice = row.owners[0]
        raise LogitsError.at(index, f", choice {choice}")


def collect_responses(
    requests: Sequence[LoglikelihoodRequest], scored: Iterable[tuple[ScoringRow, RowScore]]
) -> Iterator[tuple[int, LoglikelihoodResponse]]:
    """Yield each request's response when its last row is there; empty continuations score 0.0, True."""
    results = [[RowScore(0.0, True)] * len(request.rows) for request in requests]
    missing = [sum(1 for _, continuation in request.rows if continuation) for request in requests]
    for index, count in enumerate(missing):
        if count == 0:
            yield index, _response(results[index])
    for row, score in scored:
        for index, choice in row.owners:
            results[index][choice] = score
            missing[index] -= 1
            if missing[index] == 0:
                yield index, _response(results[index])


def _response(scores: Sequence[RowScore]) -> LoglikelihoodResponse:
    return LoglikelihoodResponse(tuple(s.logprob for s in scores), tuple(s.greedy for s in scores))
