"""How the ray engine cuts questions into shards, who gets them, and how a deadly question is found."""

from __future__ import annotations

import random
from collections import deque

import pytest

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.ray.cluster import Crew, Node, plan_crew
from cme_bench.engines.ray.pool import Flight, wants_more
from cme_bench.engines.ray.shards import LEAST, MOST, Shard, plan_shards
from cme_bench.engines.ray.work import Work
from cme_bench.errors import UsageError


def questions(headers: int, each: int, header_tokens: int = 200) -> list[LoglikelihoodRequest]:
    """``headers`` groups of questions that share a header, shuffled."""
    source = random.Random(0)
    found = []
    for header in range(headers):
        shared = (header, *(source.randrange(200) for _ in range(header_tokens - 1)))
        for _ in range(each):
            own = tuple(source.randrange(200) for _ in range(source.randrange(20, 60)))
            found.append(LoglikelihoodRequest(((shared + own, (1, 2)), (shared + own, (3,)))))
    source.shuffle(found)
    return found


def prompts(count: int) -> list[GenerateRequest]:
    source = random.Random(1)
    return [GenerateRequest(tuple(source.randrange(200) for _ in range(50)), 20) for _ in range(count)]


def group(request: LoglikelihoodRequest) -> int:
    return request.rows[0][0][0]


def all_shards(queues: list[deque[Shard]]) -> list[Shard]:
    return [shard for queue in queues for shard in queue]


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 100, 3000])
@pytest.mark.parametrize("workers", [1, 2, 3, 100])
def test_every_request_is_in_one_shard(count: int, workers: int) -> None:
    queues = plan_shards(prompts(count), workers)
    assert len(queues) == workers
    assert sorted(i for shard in all_shards(queues) for i in shard.requests) == list(range(count))
    assert all(0 < len(shard) <= MOST for shard in all_shards(queues))


def test_workers_get_like_shares_in_shards_that_grow_smaller() -> None:
    requests = [GenerateRequest((*r.prompt, *(7,) * (i % 400)), 20) for i, r in enumerate(prompts(2000))]
    queues = plan_shards(requests, 4)
    costs = [sum(shard.cost for shard in queue) for queue in queues]
    assert max(costs) / min(costs) < 1.1
    for queue in queues:
        shares = [shard.cost for shard in queue]
        assert len(shares) > 2
        assert shares == sorted(shares, reverse=True)
        assert len(queue[-1]) >= LEAST


def test_questions_of_one_header_stay_together() -> None:
    """30 headers, 2 workers: as few shards as possible share a header with another."""
    requests = questions(30, 20)
    shards = all_shards(plan_shards(requests, 2))
    places: dict[int, int] = {}
    for shard in shards:
        for header in {group(requests[i]) for i in shard.requests}:
            places[header] = places.get(header, 0) + 1
    assert len(shards) > 3
    assert sum(places.values()) == 30, "no header is computed twice"


def test_a_long_common_header_makes_large_shards() -> None:
    """1,000 tokens are computed again for every shard of questions of 40."""
    few = plan_shards(questions(1, 400, header_tokens=1000), 2)
    many = plan_shards(questions(1, 400, header_tokens=1), 2)
    assert len(all_shards(few)) < len(all_shards(many))


def test_the_plan_does_not_depend_on_the_order_of_requests() -> None:
    requests = questions(5, 50)
    shuffled = random.Random(3).sample(requests, len(requests))
    plans = [
        [[tuple(given[i] for i in shard.requests) for shard in queue] for queue in plan_shards(given, 3)]
        for given in (requests, shuffled)
    ]
    assert plans[0] == plans[1]


def test_a_worker_without_work_takes_a_shard_of_whoever_has_most() -> None:
    work = Work(prompts(600), 3)
    own = []
    while work.has_own(0):
        own.append(work.take(0, idle=False))
    assert work.take(0, idle=False) is None, "it still computes, and another may have nothing else"
    stolen = work.take(0, idle=True)
    assert stolen is not None
    assert len(stolen) <= len(own[0])
    assert not set(stolen.requests) & {i for shard in own for i in shard.requests}
    rest = 0
    while (shard := work.take(0, idle=True)) is not None:
        rest += len(shard)
    assert sum(map(len, own)) + len(stolen) + rest == 600
    assert not work


def makespan(requests: list[GenerateRequest], seconds: list[float], workers: int) -> float:
    """When the last of ``workers`` is done, each taking ``seconds`` for a request, one after the other."""
    work = Work(requests, workers)
    flights: list[list[Flight]] = [[] for _ in range(workers)]
    clocks = [0.0] * workers
    while True:
        for worker, own in enumerate(flights):
            while wants_more(own) and (shard := work.take(worker, idle=not own)):
                own.append(Flight(shard, None, dict.fromkeys(shard.requests)))
        busy = [worker for worker in range(workers) if flights[worker]]
        if not busy:
            return max(clocks)
        next_worker = min(busy, key=lambda worker: clocks[worker])
        unanswered = flights[next_worker][0].unanswered
        done = next(iter(unanswered))
        del unanswered[done]
        clocks[next_worker] += seconds[done]
        if not unanswered:
            flights[next_worker].pop(0)


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_finish_together_though_tokens_foretell_the_time_badly(workers: int) -> None:
    """A third of the questions are four times as long, and take no longer; or the short ones take longer."""
    lengths = [160 if i % 3 == 0 else 40 for i in range(2400)]
    requests = [GenerateRequest((length, i, *(7,) * length), 20) for i, length in enumerate(lengths)]
    for seconds in ([1.0] * len(lengths), [1.0 if length > 100 else 1.2 for length in lengths]):
        assert makespan(requests, seconds, workers) < 1.08 * sum(seconds) / workers


def play(work: Work, workers: int, deadly: set[int]) -> tuple[list[int], int]:
    """Workers in turn, each of which answers its shard in order until a deadly question kills it.

    Answered requests, and how many workers died.
    """
    answered: list[int] = []
    deaths = turn = 0
    while work:
        worker = turn % workers
        turn += 1
        shard = work.take(worker, idle=True)
        assert shard is not None
        killer = next((i for i, request in enumerate(shard.requests) if request in deadly), None)
        answered += shard.requests[:killer]
        if killer is not None:
            deaths += 1
            work.suspect(worker, shard, shard.requests[killer:], "died")
    return answered, deaths


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("deadly", [{0}, {500}, {0, 1, 999}, {3, 400, 401}])
def test_deadly_questions_are_found_and_all_others_answered(workers: int, deadly: set[int]) -> None:
    work = Work(prompts(1000), workers)
    answered, deaths = play(work, workers, deadly)
    assert set(work.lost) == deadly
    assert sorted(answered) == sorted(set(range(1000)) - deadly), "each once"
    assert deaths <= 6 * len(deadly), "three levels of eight parts, then twice alone"


def test_one_death_condemns_nobody() -> None:
    work = Work(prompts(1), 2)
    shard = work.take(0, idle=True)
    assert shard is not None
    work.suspect(0, shard, shard.requests, "the node was taken away")
    assert not work.lost
    assert work.has_own(1), "another worker tries"
    assert work.take(1, idle=True) == Shard((0,), shard.cost, deaths=1)


def test_what_a_dead_worker_had_waiting_is_not_suspected() -> None:
    work = Work(prompts(40), 2)
    shard = work.take(0, idle=True)
    assert shard is not None
    work.give_back(0, shard, shard.requests)
    assert work.take(0, idle=True) == shard


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "crew"),
    [
        ([Node(2, 0)], None, 0, Crew(1, 2, 0)),
        ([Node(2, 0)], 2, 0, Crew(2, 1, 0)),
        ([Node(6, 0), Node(2, 0)], 2, 0, Crew(2, 3, 0)),
        ([Node(4, 0), Node(4, 0)], 3, 0, Crew(3, 2, 0)),
        ([Node(4, 0), Node(0, 0)], None, 0, Crew(1, 4, 0)),
        ([Node(64, 8), Node(64, 8)], None, 1, Crew(16, 1, 1)),
        ([Node(64, 8), Node(64, 4)], None, 8, Crew(1, 1, 8)),
        ([Node(64, 8)], 3, 2, Crew(3, 1, 2)),
    ],
)
def test_room_for_workers(nodes: list[Node], workers: int | None, gpus: int, crew: Crew) -> None:
    assert plan_crew(nodes, workers, gpus) == crew


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "message"),
    [
        ([Node(2, 0)], 3, 0, "room for 2 workers of one core, not for 3"),
        ([], None, 0, "room for 0 workers"),
        ([Node(64, 4)], None, 8, "room for 0 workers of 8 GPUs, not for 1"),
        ([Node(64, 8)], 5, 2, r"room for 4 workers of 2 GPUs, not for 5 \(8 GPUs on 1 nodes\)"),
    ],
)
def test_no_room_for_workers(nodes: list[Node], workers: int | None, gpus: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_crew(nodes, workers, gpus)
