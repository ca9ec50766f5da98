"""Likelihoods on vLLM's model by packs: the plan of the transformers engine, one call of the worker a pack.

A question without exemplars shares nothing that vLLM's cache of whole blocks could hold, so that each of its
choices is a request there. A pack holds all choices of many questions.
"""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from cme_bench.engines.base import EngineStats, LoglikelihoodRequest, LoglikelihoodResponse
from cme_bench.engines.hf.batching import plan_limits
from cme_bench.engines.hf.loglikelihood import collect_responses, plan_rows
from cme_bench.engines.hf.pack_forward import Pending, Reads, finished_rows, run_packs
from cme_bench.engines.packs import PackSequence
from cme_bench.engines.plan import PlanLimits, pack_sequences, plan_packs
from cme_bench.engines.vllm.host import Host
from cme_bench.engines.vllm.settings import on_cpu
from cme_bench.util import memory

TRIAL_LENGTH = 24


def by_packs(
    host: Host, requests: Sequence[LoglikelihoodRequest], stats: EngineStats
) -> Iterator[tuple[int, LoglikelihoodResponse]]:
    """Yield ``(index, response)`` of every request, as they finish; count the tokens in ``stats``."""

    def compute(pack: PackSequence) -> Pending:
        with _timed(stats):
            host.start_pack(pickle.dumps(pack), first=next(number) == 0)
        stats.tokens_computed += pack.n_tokens
        return reads

    def reads() -> Reads:
        with _timed(stats):
            return host.pack_reads()

    number = itertools.count()
    limits = host.pack_limits = host.pack_limits or _limits(host)
    rows = plan_rows(requests)
    packs = pack_sequences(plan_packs([(row.context, row.continuation) for row in rows], limits), limits)
    yield from collect_responses(requests, finished_rows(rows, run_packs(packs, limits, compute, ahead=1)))


@contextmanager
def _timed(stats: EngineStats) -> Iterator[None]:
    """Count what a part of a pack takes."""
    started = time.perf_counter()
    yield
    stats.model_seconds += time.perf_counter() - started
    stats.peak_memory_bytes = max(stats.peak_memory_bytes, memory.peak())


def _limits(host: Host) -> PlanLimits:
    device = torch.device("cpu" if on_cpu() else "cuda")
    limits = plan_limits(host.config, device, host.step_tokens, host.parameters())
    limits.kept_tokens = host.max_length
    return limits


def trial_requests() -> list[LoglikelihoodRequest]:
    """Return questions of rows of up to ``TRIAL_LENGTH`` tokens, to be answered by packs and without."""
    ids = tuple(3 + 7 * i % 89 for i in range(40))
    choices = (ids[20:21], ids[21:24], ids[24:29], ids[21:23] + ids[30:31])
    return [LoglikelihoodRequest(tuple((ids[:n], choice) for choice in choices)) for n in (12, 18)] + [
        LoglikelihoodRequest(((ids[5:9], ids[9:11]),))
    ]


def agree(one: LoglikelihoodResponse, other: LoglikelihoodResponse, dtype: str) -> bool:
    """Tell whether two answers to a trial question are the same but for rounding."""
    most = 1e-3 if dtype == "float32" else 0.5
    pairs = zip(one.logprobs, other.logprobs, strict=True)
    return all(abs(a - b) <= most * len(one.logprobs) for a, b in pairs)
