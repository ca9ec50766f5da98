"""Engines that are fed while they compute, and the ray worker that feeds one, here without ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    Feed,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
)
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.ray.engine import RayEngine
from cme_bench.engines.ray.worker import BATCH_ITEMS, Answers, Worker

BAD = 666


class Batches(Engine):
    """Answers a batch back to front and remembers how large each was."""

    def __init__(self) -> None:
        self.max_length = 100
        self.stats = EngineStats()
        self.sizes: list[int] = []

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        self.sizes.append(len(requests))
        for index, request in reversed(list(enumerate(requests))):
            token = request.rows[0][0][0]
            if token == BAD:
                raise LogitsError.at(index, ", choice 1")
            self.stats.requests += 1
            yield index, LoglikelihoodResponse((float(token),), (True,))

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        self.sizes.append(len(requests))
        for index, request in enumerate(requests):
            yield index, GenerateResponse(str(request.prompt[0]), 1, "eos")

    def describe(self) -> dict[str, str]:
        return {"engine": "batches", "logits": "bfloat16" if self.sizes else "float32"}


class BatchesSource:
    def __init__(self) -> None:
        self.engine = Batches()

    def open(self) -> Engine:
        return self.engine

    def release(self) -> None: ...

    def close(self) -> None: ...


def question(token: int) -> LoglikelihoodRequest:
    return LoglikelihoodRequest((((token,), (1,)),))


def test_a_batch_is_what_is_there_and_indices_are_the_callers() -> None:
    feed: Feed = iter([(70, question(7)), (80, question(8)), None, (30, question(3))])
    engine = Batches()
    found = [(index, response.logprobs[0]) for index, response in engine.serve(feed)]
    assert found == [(80, 8.0), (70, 7.0), (30, 3.0)]
    assert engine.sizes == [2, 1]
    assert list(engine.serve(iter([]))) == []


def test_generation_is_served_too() -> None:
    feed: Feed = iter([(9, GenerateRequest((4,), 1)), None])
    assert list(Batches().serve(feed)) == [(9, GenerateResponse("4", 1, "eos"))]


def test_broken_logits_name_the_callers_index() -> None:
    feed: Feed = iter([(70, question(BAD)), (80, question(8))])
    with pytest.raises(LogitsError, match=r"^request 70, choice 1: ") as error:
        list(Batches().serve(feed))
    assert error.value.request == 70


@pytest.fixture
def worker() -> Worker:
    found = Worker({})
    found.open(BatchesSource, ())
    return found


def engine_of(worker: Worker) -> Batches:
    assert isinstance(worker._engine, Batches)
    return worker._engine


def test_a_worker_answers_what_is_put_while_it_computes(worker: Worker) -> None:
    worker.put([(i, question(i)) for i in range(10)])
    answers = worker.answer()
    first = next(answers)
    worker.put([(i, question(i)) for i in range(10, 14)])
    worker.put(None)
    rest = list(answers)
    found = [one for part in (first, *rest) for one in part.responses]
    assert sorted((index, response.logprobs[0]) for index, response in found) == [
        (i, float(i)) for i in range(14)
    ]
    assert engine_of(worker).sizes == [10, 4]
    last = Answers((), EngineStats(requests=14), {"engine": "batches", "logits": "bfloat16"})
    assert rest[-1] == last, "the last word has the final counters, and what is known by then"


def test_rounded_logits_of_workers_are_told_once() -> None:
    told: list[str] = []
    pool: Any = SimpleNamespace(places=[])
    engine = RayEngine(pool, (None,), max_length=8, kind="vllm", note=told.append)
    for logits in ("float32", "bfloat16", "bfloat16"):
        engine._describe({"logits": logits})
    [line] = told
    assert "round logits to bfloat16" in line


def test_a_worker_says_in_time_how_little_is_left(worker: Worker) -> None:
    """Full batches first; then three of four that are left, so that the next shard can be sent."""
    worker.put([(i, question(i)) for i in range(3 * BATCH_ITEMS)])
    worker.put(None)
    left, told = 3 * BATCH_ITEMS, []
    for answers in worker.answer():
        left -= len(answers.responses)
        told.append(left)
    assert told == [2 * BATCH_ITEMS, BATCH_ITEMS, 16, 4, 1, 0, 0]


def test_a_worker_is_asked_again_after_its_end(worker: Worker) -> None:
    for token in (1, 2):
        worker.put([(token, question(token))])
        worker.put(None)
        [answers, _] = worker.answer()
        assert answers.responses == ((token, LoglikelihoodResponse((float(token),), (True,))),)
