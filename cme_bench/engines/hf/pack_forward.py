"""Scoring by the plan: one forward a pack, every shared prefix computed once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from cme_bench.engines.hf.attention_hook import attention_of
from cme_bench.engines.hf.batching import NoRoomError, try_compute
from cme_bench.engines.hf.copies import to_device
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.loglikelihood import RowScore, ScoringRow, check_not_nan, read_later
from cme_bench.engines.hf.tree_attention import KeptPrefix, PackAttention, SequenceAttention
from cme_bench.engines.packs import Pack, PackSequence
from cme_bench.engines.plan import PlanLimits

Reads: TypeAlias = list[tuple[int, float, bool]]
"""(row, natural log of the probability of one of its tokens, whether argmax would have chosen it)."""

Pending: TypeAlias = Callable[[], Reads]
"""A pack that is being computed: waits for its reads."""


PackT = TypeVar("PackT", Pack, PackSequence)


class PackForward:
    """Run packs in their order; keep the keys and values of the prefix in work."""

    def __init__(self, forward: CausalForward) -> None:
        self._forward = forward
        self.kept = KeptPrefix()
        self.windows: list[int | None] = []

    @torch.inference_mode()
    def __call__(self, pack: Pack | PackSequence) -> Pending:
        """Start computing ``pack``; return what waits for its reads, with one copy back from the device.

        If a sequence fails, nothing but what was kept before is kept.
        """
        device = self._forward.device
        places = pack.reads[0]
        kernel, kept = self._forward.tree_kernel, self.kept
        attention = SequenceAttention([PackAttention(p, kept, device, kernel=kernel) for p in pack.packs])
        with (
            kept.all_or_nothing(pack.packs),
            self._forward.seeing(pack.tokens),
            attention_of(self._forward, attention),
        ):
            [logits] = self._forward.uncached(
                to_device(pack.tokens, device)[None],
                to_device(pack.positions, device)[None],
                to_device(places, device),
            )
        self.windows = attention.windows
        return reads_later(logits, pack)


def reads_later(logits: Tensor, pack: Pack | PackSequence) -> Pending:
    """Start reading a pack's ``logits`` [scored, vocab]; return what waits for the one copy back."""
    _, index, target, row = pack.reads
    found = read_later(logits, to_device(index, logits.device), to_device(target, logits.device))

    def wait() -> Reads:
        logprobs, hits = found()
        return list(zip(row.tolist(), logprobs, hits, strict=True))

    return wait


def run_packs(
    packs: Iterable[PackT], limits: PlanLimits, compute: Callable[[PackT], Pending], ahead: int = 0
) -> Iterator[Reads]:
    """Yield the reads of every pack, in order.

    So many packs as ``ahead`` says are started before the reads of the one before them are waited for: a
    device computes while its host works on what was read. If one fails, those before it come out first.

    A pack that runs out of memory is split, and ``limits`` shrink for all that follow. Raises NoRoomError
    when one that cannot be split does.
    """
    started: deque[Pending] = deque()
    try:
        for pending in _started(packs, limits, compute):
            started.append(pending)
            if len(started) > ahead:
                yield started.popleft()()
    except Exception:
        while started:
            yield started.popleft()()
        raise
    while started:
        yield started.popleft()()


def _started(
    packs: Iterable[PackT], limits: PlanLimits, compute: Callable[[PackT], Pending]
) -> Iterator[Pending]:
    """Yield every pack, started; those that do not fit in memory in parts."""
    for planned in packs:
        todo = [planned]
        while todo:
            pack = todo.pop()
            if pack.n_tokens <= limits.pack_tokens or len(pack.units) == 1:
                pending = try_compute(compute, pack)
                if pending is not None:
                    yield pending
                    continue
            halves = pack.split()
            if halves is None:
                raise NoRoomError(
                    f"out of memory on {pack.n_tokens} tokens after a shared prefix of {pack.cached}: use "
                    "fewer shots or a smaller max_length, a smaller dtype or model, or free memory on the "
                    "device"
                )
            limits.pack_tokens = min(limits.pack_tokens, max(part.n_tokens for part in halves))
            todo += reversed(halves)


def finished_rows(
    rows: Sequence[ScoringRow], packs: Iterable[Reads]
) -> Iterator[tuple[ScoringRow, RowScore]]:
    """Yield ``(row, score)`` as soon as a row's last token was read.

    Raises LogitsError for logits that are NaN.
    """
    logprobs: list[list[float]] = [[] for _ in rows]
    greedy = [True] * len(rows)
    for reads in packs:
        for index, logprob, hit in reads:
            logprobs[index].append(logprob)
            greedy[index] &= hit
            if len(logprobs[index]) == len(rows[index].continuation):
                score = RowScore(math.fsum(logprobs[index]), greedy[index])
                logprobs[index].clear()
                check_not_nan(rows[index], score)
                yield rows[index], score
