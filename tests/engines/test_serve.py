"""Engines that are fed while they compute, and the ray worker that feeds one, here without ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
)
from cme_bench.engines.inbox import Batches, Given, Inbox, Mailbox, batch_by_batch
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.ray.engine import RayEngine
from cme_bench.engines.ray.worker import BATCH_ITEMS, Answers, Worker

BAD = 666


class BackToFront(Engine):
    """Answers a batch back to front and remembers how large each was."""

    def __init__(self) -> None:
        self.max_length = 100
        self.stats = EngineStats()
        self.sizes: list[int] = []

    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        return batch_by_batch(inbox, self._answer)

    def _answer(self, requests: Sequence[Request]) -> Iterator[tuple[int, Response]]:
        self.sizes.append(len(requests))
        for place, request in reversed(list(enumerate(requests))):
            token = request.prompt[0]
            if token == BAD:
                raise LogitsError.at(place, ", choice 1")
            self.stats.requests += 1
            if isinstance(request, GenerateRequest):
                yield place, GenerateResponse(str(token), 1, "eos")
            else:
                yield place, LoglikelihoodResponse((float(token),), (True,))

    def describe(self) -> dict[str, str]:
        return {"engine": "batches", "logits": "bfloat16" if self.sizes else "float32"}


class BatchesSource:
    def __init__(self) -> None:
        self.engine = BackToFront()

    def open(self) -> Engine:
        return self.engine

    def release(self) -> None: ...

    def close(self) -> None: ...


def question(token: int) -> LoglikelihoodRequest:
    return LoglikelihoodRequest((((token,), (1,)),))


def test_lists_are_batches_numbered_throughout() -> None:
    engine = BackToFront()
    found: Any = list(engine.serve(Batches([[question(7), question(8)], [], [question(3)]])))
    assert [(number, response.logprobs[0]) for number, response in found] == [(1, 8.0), (0, 7.0), (2, 3.0)]
    assert engine.sizes == [2, 1]
    assert list(engine.serve(Batches([]))) == list(engine.serve(Batches([[]]))) == []
    assert engine.sizes == [2, 1]


def test_an_inbox_of_lists_never_waits_and_closes_with_its_last_batch() -> None:
    inbox = Batches([[question(1)], [question(2)]])
    assert inbox.take(wait=False) == [(0, question(1))]
    assert not inbox.closed
    assert inbox.take(wait=False) == [(1, question(2))]
    assert inbox.closed
    assert inbox.take(wait=True) == []
    assert Given([]).closed


def test_a_mailbox_gives_what_has_arrived_until_it_is_closed() -> None:
    mailbox = Mailbox()
    assert mailbox.take(wait=False) == [] and not mailbox.closed, "nothing now is not the end"
    mailbox.put([(70, question(7))])
    mailbox.put([(80, question(8))])
    assert mailbox.take(wait=True) == [(70, question(7)), (80, question(8))]
    mailbox.put([(30, question(3))])
    mailbox.close()
    mailbox.put([(50, question(5))])
    assert mailbox.take(wait=False) == [(30, question(3))], "what comes after the end is for the next call"
    assert mailbox.closed and mailbox.n_taken == 3
    assert mailbox.take(wait=True) == []
    mailbox.reopen()
    assert mailbox.take(wait=False) == [(50, question(5))]
    assert not mailbox.closed and mailbox.n_taken == 1


def test_a_mailbox_waits_for_what_another_thread_puts() -> None:
    mailbox = Mailbox()
    thread = threading.Timer(0.05, mailbox.put, ([(1, question(1))],))
    thread.start()
    assert mailbox.take(wait=True) == [(1, question(1))]
    threading.Timer(0.05, mailbox.close).start()
    assert mailbox.take(wait=True) == [] and mailbox.closed


def test_requests_are_checked_at_once_whatever_the_engine() -> None:
    engine = BackToFront()
    with pytest.raises(ValueError, match=r"request 1, choice 0: 60 \+ 41 tokens exceed max_length 100"):
        engine.loglikelihood([question(1), LoglikelihoodRequest((((1,) * 60, (1,) * 41),))])
    with pytest.raises(ValueError, match=r"request 0: 60 \+ 41 new tokens exceed max_length 100"):
        engine.generate([GenerateRequest((1,) * 60, 41)])
    assert engine.sizes == []


def test_lists_are_served_too() -> None:
    assert list(BackToFront().generate([GenerateRequest((4,), 1)])) == [(0, GenerateResponse("4", 1, "eos"))]
    [(index, response)] = BackToFront().loglikelihood([question(4)])
    assert (index, response.logprobs) == (0, (4.0,))


def test_broken_logits_name_the_callers_number() -> None:
    mailbox = Mailbox()
    mailbox.put([(70, question(BAD)), (80, question(8))])
    mailbox.close()
    with pytest.raises(LogitsError, match=r"^request 70, choice 1: ") as error:
        list(BackToFront().serve(mailbox))
    assert error.value.request == 70


@pytest.fixture
def worker() -> Worker:
    found = Worker({})
    found.open(BatchesSource, ())
    return found


def engine_of(worker: Worker) -> BackToFront:
    assert isinstance(worker._engine, BackToFront)
    return worker._engine


def test_a_worker_answers_what_is_put_while_it_computes(worker: Worker) -> None:
    worker.put([(i, question(i)) for i in range(10)])
    answers = worker.answer()
    first = next(answers)
    worker.put([(i, question(i)) for i in range(10, 14)])
    worker.put_no_more()
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
    pool: Any = SimpleNamespace(slots=[])
    engine = RayEngine(pool, (None,), max_length=8, kind="vllm", note=told.append)
    for logits in ("float32", "bfloat16", "bfloat16"):
        engine._describe({"logits": logits})
    [line] = told
    assert "round logits to bfloat16" in line


def test_a_worker_says_in_time_how_little_is_left(worker: Worker) -> None:
    """Full batches first; then three of four that are left, so that the next shard can be sent."""
    worker.put([(i, question(i)) for i in range(3 * BATCH_ITEMS)])
    worker.put_no_more()
    left, told = 3 * BATCH_ITEMS, []
    for answers in worker.answer():
        left -= len(answers.responses)
        told.append(left)
    assert told == [2 * BATCH_ITEMS, BATCH_ITEMS, 16, 4, 1, 0, 0]


def test_a_worker_is_asked_again_after_its_end(worker: Worker) -> None:
    for token in (1, 2):
        worker.put([(token, question(token))])
        worker.put_no_more()
        [answers, _] = worker.answer()
        assert answers.responses == ((token, LoglikelihoodResponse((float(token),), (True,))),)
