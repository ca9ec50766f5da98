"""Scoring: rows of all requests, each distinct row computed once.

``plan_rows`` decides what to compute and in which order, ``score_rows`` computes one batch,
``collect_responses`` puts rows back together into requests; none knows how the others work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from cme_bench.engines.base import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.hf.forward import CausalForward, left_pad
from cme_bench.errors import CmeError

_LOGITS_AT_ONCE = 1 << 26
"""Most logits held in float32 at a time: 256 MiB."""


@dataclass(slots=True)
class ScoringRow:
    """One distinct (context, continuation), the continuation not empty; ``owners`` are its uses, as
    (request, choice)."""

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


@dataclass(frozen=True, slots=True)
class RowScore:
    """Natural log of P(continuation | context), and whether argmax would have chosen every token of it."""

    logprob: float
    greedy: bool


def check_requests(requests: Sequence[LoglikelihoodRequest], max_length: int) -> None:
    """ValueError for the first row that cannot be scored, named by its index."""
    for index, request in enumerate(requests):
        for choice, (context, continuation) in enumerate(request.rows):
            if not context:
                raise ValueError(f"request {index}, choice {choice}: the context is empty")
            if len(context) + len(continuation) > max_length:
                raise ValueError(
                    f"request {index}, choice {choice}: {len(context)} + {len(continuation)} tokens exceed "
                    f"max_length {max_length}"
                )


def plan_rows(requests: Sequence[LoglikelihoodRequest]) -> list[ScoringRow]:
    """Distinct rows, requests with the longest row first, the rows of a request adjacent."""

    def longest(index: int) -> int:
        return max((len(c) + len(t) for c, t in requests[index].rows), default=0)

    rows: dict[tuple[TokenIds, TokenIds], ScoringRow] = {}
    for index in sorted(range(len(requests)), key=longest, reverse=True):
        pairs = list(enumerate(requests[index].rows))
        for choice, (context, continuation) in sorted(pairs, key=lambda pair: -sum(map(len, pair[1]))):
            if continuation:
                row = rows.setdefault((context, continuation), ScoringRow(context, continuation))
                row.owners.append((index, choice))
    return list(rows.values())


@torch.inference_mode()
def score_rows(forward: CausalForward, rows: Sequence[ScoringRow]) -> list[RowScore]:
    """One forward of ``rows`` and one copy back from the device.

    Raises CmeError when logits are NaN.
    """
    ids, mask = left_pad([row.context + row.continuation[:-1] for row in rows])
    keep = max(len(row.continuation) for row in rows)
    logits, _ = forward(ids.to(forward.device), mask.to(forward.device), keep=keep)
    logits = logits.reshape(len(rows) * keep, -1)  # [rows * keep, vocab]: continuations end at the right

    places = [
        (index + 1) * keep - len(row.continuation) + offset
        for index, row in enumerate(rows)
        for offset in range(len(row.continuation))
    ]
    place = torch.tensor(places, device=logits.device)  # [scored]
    target = torch.tensor([t for row in rows for t in row.continuation], device=logits.device)  # [scored]
    parts = []
    step = max(1, _LOGITS_AT_ONCE // logits.shape[-1])
    for start in range(0, len(places), step):
        scored = logits[place[start : start + step]].float()
        wanted = target[start : start + step]
        logprob = scored.gather(-1, wanted[:, None])[:, 0] - scored.logsumexp(-1)
        parts.append(torch.stack((logprob, (scored.argmax(-1) == wanted).float())))
    logprobs, hits = torch.cat(parts, dim=1).tolist()

    scores = []
    start = 0
    for row in rows:
        end = start + len(row.continuation)
        total = math.fsum(logprobs[start:end])
        if math.isnan(total):
            index, choice = row.owners[0]
            raise CmeError(
                f"request {index}, choice {choice}: the model's logits are NaN; check the weights, or use "
                "float32 or bfloat16 in place of float16"
            )
        scores.append(RowScore(total, all(hits[start:end])))
        start = end
    return scores


def collect_responses(
    requests: Sequence[LoglikelihoodRequest], scored: Iterable[tuple[ScoringRow, RowScore]]
) -> Iterator[tuple[int, LoglikelihoodResponse]]:
    """Each request's response as soon as its last row is there; empty continuations score 0.0, True."""
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
