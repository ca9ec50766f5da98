"""How the ray engine cuts questions into shards, who gets them, and how a deadly question is found."""

from __future__ import annotations

import random
from collections import deque

import pytest

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.ray.cluster import Machine, WorkerPlan, plan_workers
from cme_bench.engines.ray.shards import LEAST, MOST, Shard, plan_shards
from cme_bench.engines.ray.work import InFlight, Work
from cme_bench.util.errors import UsageError


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


def work_of(requests: list[GenerateRequest], workers: int) -> Work:
    work = Work(workers)
    work.add(dict(enumerate(requests)))
    return work


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
    work = work_of(prompts(600), 3)
    own = []
    while work.waits_for(0):
        own.append(taken(work, 0, InFlight()))
    assert take(work, 0, held(own[0])) is None, "it still computes, and another may have nothing else"
    stolen = taken(work, 0, InFlight())
    assert len(stolen) <= len(own[0])
    assert not set(stolen.requests) & {i for shard in own for i in shard.requests}
    rest = 0
    while (shard := take(work, 0, InFlight())) is not None:
        rest += len(shard)
    assert sum(map(len, own)) + len(stolen) + rest == 600
    assert not work


def taken(work: Work, worker: int, load: InFlight) -> Shard:
    shard = take(work, worker, load)
    assert shard is not None
    return shard


def take(work: Work, worker: int, load: InFlight) -> Shard | None:
    """The others have nothing in flight."""
    in_flight = [InFlight() for _ in work._queues]
    in_flight[worker] = load
    return work.take(worker, in_flight)


def held(shard: Shard, *answered: int) -> InFlight:
    load = InFlight()
    load.give(shard)
    for request in answered:
        del load.unanswered[request]
    return load


def test_a_worker_gets_its_next_shard_before_it_has_nothing_to_do() -> None:
    load = InFlight()
    assert load.wants_more()
    load.give(Shard(tuple(range(100)), 1000))
    assert not load.wants_more(), "an idle worker may still take what is next"
    for request in range(75):
        del load.unanswered[request]
    assert load.wants_more()
    load.give(Shard(tuple(range(100, 150)), 500))
    assert not load.wants_more()
    assert list(load.unanswered) == list(range(75, 150))


def fill(work: Work, worker: int, in_flight: list[InFlight]) -> None:
    while in_flight[worker].wants_more() and (shard := work.take(worker, in_flight)):
        in_flight[worker].give(shard)


def test_an_engine_with_a_large_target_has_so_many_in_work_while_there_are() -> None:
    work = work_of(prompts(6000), 2)
    in_flight = [InFlight(target_in_flight=512), InFlight(target_in_flight=512)]
    left = 6000
    while left:
        for worker, load in enumerate(in_flight):
            fill(work, worker, in_flight)
            assert len(load.unanswered) >= 512 or not work
            for request in list(load.unanswered)[:20]:
                del load.unanswered[request]
                left -= 1


def test_who_is_ready_first_leaves_the_others_their_part() -> None:
    """Two workers want all 800 at once; one of them is still loading its model."""
    work = work_of(prompts(800), 2)
    in_flight = [InFlight(target_in_flight=512), InFlight()]
    fill(work, 0, in_flight)
    assert len(in_flight[0].unanswered) == pytest.approx(400, abs=20)
    for request in list(in_flight[0].unanswered)[:320]:
        del in_flight[0].unanswered[request]
    fill(work, 0, in_flight)
    assert len(in_flight[0].unanswered) < 100, "the other is to keep no less than it would have itself"
    in_flight[0].unanswered.clear()
    fill(work, 0, in_flight)
    assert len(in_flight[0].unanswered) == pytest.approx(200, abs=20), "half of what was meant for the other"


@pytest.mark.parametrize("speeds", [(1.0, 1.1), (1.0, 1.5), (1.0, 1.0, 0.9, 1.3)])
def test_workers_of_unlike_speed_finish_together(speeds: tuple[float, ...]) -> None:
    """Each has its whole target in work at a time, as a busy engine does."""
    count, target = 10_000, 512
    work = work_of(prompts(count), len(speeds))
    in_flight = [InFlight(target) for _ in speeds]
    clocks = [0.0 for _ in speeds]
    while True:
        for worker in range(len(speeds)):
            fill(work, worker, in_flight)
        busy = [worker for worker in range(len(speeds)) if in_flight[worker]]
        if not busy:
            break
        worker = min(busy, key=lambda worker: clocks[worker])
        answered = list(in_flight[worker].unanswered)[:40]
        clocks[worker] += len(answered) / speeds[worker]
        for request in answered:
            del in_flight[worker].unanswered[request]
    assert max(clocks) < 1.05 * count / sum(speeds)


def makespan(requests: list[GenerateRequest], seconds: list[float], workers: int) -> float:
    """When the last of ``workers`` is done, each taking ``seconds`` for a request, one after the other."""
    work = work_of(requests, workers)
    in_flight = [InFlight() for _ in range(workers)]
    clocks = [0.0] * workers
    while True:
        for worker in range(workers):
            fill(work, worker, in_flight)
        busy = [worker for worker in range(workers) if in_flight[worker]]
        if not busy:
            return max(clocks)
        next_worker = min(busy, key=lambda worker: clocks[worker])
        done = next(iter(in_flight[next_worker].unanswered))
        del in_flight[next_worker].unanswered[done]
        clocks[next_worker] += seconds[done]


@pytest.mark.parametrize("workers", [2, 3, 8])
def test_workers_finish_together_though_tokens_foretell_the_time_badly(workers: int) -> None:
    """A third of the questions are four times as long, and take no longer; or the short ones take longer."""
    lengths = [160 if i % 3 == 0 else 40 for i in range(2400)]
    requests = [GenerateRequest((length, i, *(7,) * length), 20) for i, length in enumerate(lengths)]
    for seconds in ([1.0] * len(lengths), [1.0 if length > 100 else 1.2 for length in lengths]):
        assert makespan(requests, seconds, workers) < 1.08 * sum(seconds) / workers


def play(work: Work, workers: int, deadly: set[int]) -> tuple[list[int], int]:
    """Workers in turn, each of which answers one question after the other until a deadly one kills it.

    Answered requests, and how many workers died.
    """
    answered: list[int] = []
    in_flight = [InFlight() for _ in range(workers)]
    deaths = turn = 0
    while work or any(in_flight):
        worker = turn % workers
        load = in_flight[worker]
        turn += 1
        fill(work, worker, in_flight)
        if not load:
            continue
        request = next(iter(load.unanswered))
        if request in deadly:
            deaths += 1
            in_flight[worker] = InFlight()
            work.bisect(worker, load, "died")
        else:
            answered.append(request)
            del load.unanswered[request]
    return answered, deaths


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("deadly", [{0}, {500}, {0, 1, 999}, {3, 400, 401}])
def test_deadly_questions_are_found_and_all_others_answered(workers: int, deadly: set[int]) -> None:
    work = work_of(prompts(1000), workers)
    answered, deaths = play(work, workers, deadly)
    assert set(work.lost) == deadly
    assert sorted(answered) == sorted(set(range(1000)) - deadly), "each once"
    assert deaths <= 6 * len(deadly), "three levels of eight parts, then twice alone"


def test_one_death_condemns_nobody() -> None:
    work = work_of(prompts(1), 2)
    shard = taken(work, 0, InFlight())
    work.bisect(0, held(shard), "the node was taken away")
    assert not work.lost
    assert work.waits_for(1), "another worker tries"
    assert take(work, 1, InFlight()) == Shard((0,), shard.cost, suspected=True, deaths=1)


def test_suspects_are_joined_by_nobody() -> None:
    """Else one deadly question would make suspects of all that happens to be in work beside it."""
    work = work_of(prompts(600), 2)
    first = taken(work, 0, InFlight())
    load = held(first, *first.requests[:-4])
    second = taken(work, 0, load)
    load.give(second)
    work.bisect(0, load, "died")
    part = taken(work, 0, InFlight())
    assert part.suspected and set(part.requests) < {*first.requests[-4:], *second.requests}
    assert not held(part, *part.requests[1:]).wants_more()
    innocent = taken(work, 1, InFlight())
    assert not innocent.suspected
    assert take(work, 0, held(innocent)) is None, "the next suspects wait until it has nothing in flight"
    assert taken(work, 0, InFlight()).suspected


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "plan"),
    [
        ([Machine(2, 0)], None, 0, WorkerPlan(1, 2, 0)),
        ([Machine(2, 0)], 2, 0, WorkerPlan(2, 1, 0)),
        ([Machine(6, 0), Machine(2, 0)], 2, 0, WorkerPlan(2, 3, 0)),
        ([Machine(4, 0), Machine(4, 0)], 3, 0, WorkerPlan(3, 2, 0)),
        ([Machine(4, 0), Machine(0, 0)], None, 0, WorkerPlan(1, 4, 0)),
        ([Machine(64, 8), Machine(64, 8)], None, 1, WorkerPlan(16, 1, 1)),
        ([Machine(64, 8), Machine(64, 4)], None, 8, WorkerPlan(1, 1, 8)),
        ([Machine(64, 8)], 3, 2, WorkerPlan(3, 1, 2)),
    ],
)
def test_room_for_workers(nodes: list[Machine], workers: int | None, gpus: int, plan: WorkerPlan) -> None:
    assert plan_workers(nodes, workers, gpus) == plan


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "message"),
    [
        ([Machine(2, 0)], 3, 0, "room for 2 workers of one core, not for 3"),
        ([], None, 0, "room for 0 workers"),
        ([Machine(64, 4)], None, 8, "room for 0 workers of 8 GPUs, not for 1"),
        ([Machine(64, 8)], 5, 2, r"room for 4 workers of 2 GPUs, not for 5 \(8 GPUs on 1 nodes\)"),
    ],
)
def test_no_room_for_workers(nodes: list[Machine], workers: int | None, gpus: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_workers(nodes, workers, gpus)
