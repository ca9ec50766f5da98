"""The ray engine on a real local ray, with workers that compute sums instead of a model."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
    UnansweredError,
)
from cme_bench.engines.inbox import Batches, Inbox
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.ray.cluster import Cluster, WorkerPlan
from cme_bench.engines.ray.engine import RayEngine
from cme_bench.engines.ray.pool import Pool
from cme_bench.util.errors import CmeError, UsageError

pytestmark = [
    pytest.mark.slow,  # ray takes some seconds to start
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]

DEADLY, BROKEN, BAD, SLOW = 900, 901, 902, 903
"""Tokens that end the process, break the engine, are a user's mistake, and take a while."""


class Sums(Engine):
    """Log-likelihoods are sums of token ids plus ``offset``; texts spell the prompt."""

    def __init__(self, offset: float) -> None:
        self.max_length = 1000
        self.target_in_flight = 40
        self.stats = EngineStats()
        self.offset = offset

    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        while batch := inbox.take(wait=True):
            for number, request in batch:
                self._meet(number, request.prompt)
                yield number, self._response(request)

    def _response(self, request: Request) -> Response:
        if isinstance(request, GenerateRequest):
            return GenerateResponse(str(request.prompt), len(request.prompt), "eos")
        scores = tuple(self.offset + sum(context + choice) for context, choice in request.rows)
        return LoglikelihoodResponse(scores, (True,) * len(scores))

    def _meet(self, index: int, tokens: tuple[int, ...]) -> None:
        if DEADLY in tokens:
            os._exit(1)
        if BROKEN in tokens:
            raise RuntimeError("the device is lost")
        if BAD in tokens:
            raise LogitsError.at(index)
        if SLOW in tokens:
            time.sleep(0.02 * tokens.count(SLOW))
        self.stats.requests += 1
        self.stats.tokens_computed += len(tokens)

    def describe(self) -> dict[str, str]:
        return {"engine": "sums", "process": str(os.getpid())}


@dataclass
class SumsSource:
    """Opens engines whose offset is the adapter; counts how often it was asked."""

    opened: int = 0

    def open(self, offset: float) -> Engine:
        if offset < 0:
            os._exit(1)
        self.opened += 1
        return Sums(offset + 1000 * (self.opened - 1))

    def release(self) -> None: ...

    def close(self) -> None: ...


def questions(count: int, *extra: int) -> list[LoglikelihoodRequest]:
    return [
        LoglikelihoodRequest((((i % 7, i, *extra), (1,)), ((i % 7, i, *extra), (2, 3)))) for i in range(count)
    ]


@pytest.fixture(scope="module")
def plan() -> Iterator[WorkerPlan]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster("local", 2, 1)
    assert cluster.plan.gpus == 0
    yield cluster.plan
    cluster.close()


def test_children_of_the_driver_end_as_they_do(plan: WorkerPlan) -> None:
    child = subprocess.Popen(["sleep", "60"])
    child.kill()
    assert child.wait() == -signal.SIGKILL


class Bench:
    """A pool of two workers, and what it told."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.notes: list[str] = []
        self.pool = Pool(plan, SumsSource, {})

    def engine(self, offset: float = 0.0) -> RayEngine:
        return RayEngine(self.pool, (offset,), max_length=1000, kind="sums", note=self.notes.append)

    def processes(self) -> set[int]:
        return {int(slot.where.split()[-1]) for slot in self.pool.slots if slot.ready}

    def meet_both(self) -> int:
        """Ask until both workers are there: on a busy machine one starts long after the other.

        Returns how many questions it took."""
        asked = 0
        while len(self.processes()) < 2:
            asked += len(collect(self.engine().loglikelihood(questions(100, SLOW))))
        return asked


@pytest.fixture(scope="module")
def bench(plan: WorkerPlan) -> Iterator[Bench]:
    found = Bench(plan)
    yield found
    found.pool.close()


def collect(answers: Iterator[tuple[int, Any]]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for index, response in answers:
        assert index not in found, "each once"
        found[index] = response
    return found


def test_two_workers_answer_as_one_engine_does(bench: Bench) -> None:
    asked = bench.meet_both()
    requests = questions(300, SLOW)
    engine = bench.engine()
    assert collect(engine.loglikelihood(requests)) == dict(Sums(0.0).loglikelihood(requests))
    prompts = [GenerateRequest((i, 5), 3) for i in range(300)]
    assert collect(engine.generate(prompts)) == dict(Sums(0.0).generate(prompts))
    assert collect(engine.generate([])) == {}
    assert len(bench.processes()) == 2
    assert engine.stats.requests == asked + 600, "the counters of both workers"
    assert engine.describe()["engine"] == "sums"
    assert engine.describe()["workers"].startswith("2, ")


def test_the_next_task_begins_while_the_last_one_ends(bench: Bench) -> None:
    """One question is left of the first task; the other worker does not wait for it."""
    first, second = questions(33, SLOW), questions(100)
    first[7] = LoglikelihoodRequest((((SLOW,) * 50, (1,)),))
    bench.meet_both()
    engine = bench.engine()
    order = [index for index, _ in engine.serve(Batches([first, second]))]
    assert sorted(order) == list(range(133))
    assert order.index(7) > order.index(34), "the long one of the first task ends after the second began"


def test_few_questions_are_shared_too(bench: Bench) -> None:
    bench.meet_both()
    engine = bench.engine()
    collect(engine.loglikelihood(questions(40, SLOW)))
    assert len(engine._by_worker) == 2, "the first worker takes no more than its half"


def test_a_killed_worker_is_replaced_and_its_questions_asked_again(bench: Bench) -> None:
    requests = questions(300, SLOW)
    answers = bench.engine().loglikelihood(requests)
    first = dict([next(answers)])
    before = bench.processes()
    os.kill(next(iter(before)), signal.SIGKILL)
    found = first | collect(answers)
    assert found == dict(Sums(0.0).loglikelihood(requests))
    assert any("died" in note for note in bench.notes)


def test_a_question_that_kills_is_named_and_all_others_are_answered(bench: Bench) -> None:
    requests = questions(60)
    requests[17] = LoglikelihoodRequest((((DEADLY, 1), (1,)),))
    requests[41] = LoglikelihoodRequest((((BROKEN, 1), (1,)),))
    found: dict[int, Any] = {}
    with pytest.raises(UnansweredError) as error:
        for index, response in bench.engine().loglikelihood(requests):
            assert index not in found
            found[index] = response
    assert set(error.value.reasons) == {17, 41}
    assert error.value.reasons[41] == "RuntimeError: the device is lost"
    assert set(found) == set(range(60)) - {17, 41}


def test_an_error_of_ours_is_raised_and_names_the_request_of_the_whole(bench: Bench) -> None:
    with pytest.raises(LogitsError, match=r"^request 20: the model's logits are NaN or infinite;"):
        collect(bench.engine().loglikelihood([*questions(20), *questions(1, BAD)]))


def test_adapters_are_swapped_in_the_same_process(bench: Bench) -> None:
    bench.meet_both()
    collect(bench.engine(1.0).generate([GenerateRequest((i,), 1) for i in range(200)]))
    before = bench.processes()
    found = collect(bench.engine(2.0).loglikelihood(questions(200)))
    assert bench.processes() <= before, "no worker was started anew"
    offset = found[0].logprobs[0] - sum(questions(1)[0].rows[0][0]) - 1
    assert offset > 1000, "opened once more by a source that was kept"


def test_a_consumer_that_stops_reading_stops_the_work(bench: Bench) -> None:
    answers = bench.engine().loglikelihood(questions(400, SLOW))
    next(answers)
    answers.close()
    assert not any(slot.in_flight for slot in bench.pool.slots)
    assert len(collect(bench.engine().loglikelihood(questions(30)))) == 30


def test_a_run_that_is_asked_to_stop_does_not_wait_for_workers(plan: WorkerPlan) -> None:
    pool = Pool(plan, SumsSource, {})
    engine = RayEngine(
        pool, (0.0,), max_length=1000, kind="sums", note=lambda message: None, stopping=lambda: True
    )
    assert collect(engine.loglikelihood(questions(30))) == {}
    pool.close()


def test_too_long_a_request_is_refused_before_anything_is_sent(bench: Bench) -> None:
    with pytest.raises(ValueError, match=r"request 0, choice 0: 1002 \+ 1 tokens exceed max_length 1000"):
        bench.engine().loglikelihood([LoglikelihoodRequest((((1,) * 1002, (1,)),))])


def test_workers_that_never_start_end_the_run(bench: Bench) -> None:
    with pytest.raises(CmeError, match="no worker could be started"):
        collect(bench.engine(-1.0).loglikelihood(questions(30)))


def test_an_address_where_nobody_answers(plan: WorkerPlan) -> None:
    with pytest.raises(UsageError, match="takes HOST:PORT"):
        Cluster("ray://somewhere:10001", 1, 1)
