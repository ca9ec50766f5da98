"""What an item costs the one process that plans, deals and stores, and where that ends scaling.

Measured here, per item: planning (rows, prompts, tokens, keys; once for all adapters of a run), sharding,
dealing through a real ray whose workers compute nothing, scoring and storing; the table of many checkpoints
from their results.json. Then the ray engine's own books (shards, windows, thieves, a lost node) run on a
simulated clock with those costs and a given speed of a worker: how long a checkpoint takes suite ``cme`` on 1
to 800 workers, what part of it the driver is busy, and how long 1,000 checkpoints take 800 workers that are
divided into runs of so many. A worker's speed is a parameter, not a measurement: see docs/scaling.md.

``--table docs/scaling.md`` writes the tables of stored results into the page and runs nothing.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import measurements
from msgspec import structs

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodResponse,
    Request,
    Response,
)
from cme_bench.engines.inbox import Given, Inbox
from cme_bench.engines.ray.cluster import Cluster
from cme_bench.engines.ray.engine import RayEngine
from cme_bench.engines.ray.pool import Pool
from cme_bench.engines.ray.shards import plan_shards
from cme_bench.engines.ray.work import InFlight, Work
from cme_bench.engines.ray.worker import BATCH_ITEMS
from cme_bench.prompts.items import Item
from cme_bench.reports.runs import open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.identity import response_key
from cme_bench.runs.options import RunOptions
from cme_bench.runs.planner import Planner
from cme_bench.runs.responder import Responder
from cme_bench.runs.runner import run
from cme_bench.runs.session import WINDOW_ITEMS
from cme_bench.runs.store import RunWriter, read_records, samples_file
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import stored_response
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.suite import load_suite

TASKS = "cme_boolq,cme_rte_ll"
TARGET_IN_FLIGHT = 512
"""Requests that a worker on a GPU likes to have in work."""
CHECKPOINTS, WORKERS = 1000, 800
"""What is simulated: so many adapters of one base, on 100 nodes of 8 GPUs."""


class Nothing(Engine):
    """Answers at once."""

    max_length = 1 << 30

    def __init__(self) -> None:
        self.stats = EngineStats()

    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        while batch := inbox.take(wait=True):
            for number, request in batch:
                yield number, self._response(request)

    def _response(self, request: Request) -> Response:
        if isinstance(request, GenerateRequest):
            return GenerateResponse("a short answer", 5, "eos")
        n = len(request.rows)
        return LoglikelihoodResponse((-1.0,) * n, (False,) * n)

    def describe(self) -> dict[str, str]:
        return {"engine": "nothing"}


class NothingSource:
    def open(self) -> Engine:
        return Nothing()

    def release(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Planned:
    """A task and its items; ``seconds`` an item, by the clock: tokenizers use every core."""

    task: Task
    items: list[Item]
    seconds: float

    @property
    def requests(self) -> list[Any]:
        return [item.request for item in self.items]


def planning(options: RunOptions) -> list[Planned]:
    suite, source = load_suite(), open_source(options.data, offline=True)
    responder = Responder(open_engines(options))
    planner = Planner(options)
    found = []
    for spec in suite.select(options.tasks):
        started = time.perf_counter()
        task = build_task(spec, suite, source)
        _, items = planner.items(task, responder)
        for item in items:
            response_key(responder.identity, item.request)
        found.append(Planned(task, items, (time.perf_counter() - started) / len(items)))
    return found


def sharding(planned: Planned) -> float:
    """Seconds an item, for 100 workers."""
    started = time.process_time()
    plan_shards(planned.requests, 100)
    return (time.process_time() - started) / len(planned.items)


def scoring(planned: Planned) -> float:
    """Seconds an item."""
    answers = dict(Nothing().serve(Given(planned.requests)))
    started = time.process_time()
    for place, item in enumerate(planned.items):
        score_record(planned.task.lm_eval, item.doc, item.instances, stored_response(answers[place]))
    return (time.process_time() - started) / len(planned.items)


def dealing(cluster: Cluster, requests: Sequence[Any]) -> float:
    """Processor seconds an item of the driver, with workers that compute nothing."""
    pool = Pool(cluster.plan, NothingSource, {})
    engine = RayEngine(pool, (), max_length=1 << 30, kind="nothing", note=lambda message: None)
    try:
        while not all(slot.ready for slot in pool.slots):
            list(engine.serve(Given(requests[:2])))
        busy = time.process_time()
        count = len(list(engine.serve(Given(requests))))
        return (time.process_time() - busy) / count
    finally:
        pool.close()


def storing(folder: Path, count: int) -> dict[str, float]:
    """Seconds and bytes a record, in windows as a run stores them."""
    records = [r for task in TASKS.split(",") for r in read_records(samples_file(folder, task))]
    records = [structs.replace(records[i % len(records)], id=i) for i in range(count)]
    with RunWriter(folder.parent / "store") as writer:
        started = time.perf_counter()
        for start in range(0, count, WINDOW_ITEMS):
            writer.append("task", records[start : start + WINDOW_ITEMS])
        seconds = time.perf_counter() - started
    size = samples_file(folder.parent / "store", "task").stat().st_size
    return {"seconds": seconds / count, "bytes": size / count}


def tabulating(folder: Path, checkpoints: int) -> float:
    """Seconds of the table of so many run folders, from their results.json."""
    folders = []
    for number in range(checkpoints):
        copy = folder.parent / "runs" / f"run-{number}"
        copy.mkdir(parents=True)
        for name in ("run.json", "results.json"):
            shutil.copy(folder / name, copy / name)
        folders.append(copy)
    started = time.perf_counter()
    text = render(comparison_tables([open_run(f) for f in folders], tests=False), "md")
    assert text.count("run-") >= checkpoints
    return time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds: of the driver to plan an item, and to deal, score and store it; of a worker an item (its
    speed), and to start."""

    plan: float
    driver: float
    worker: float
    start: float


class Simulation:
    """Tasks of so many items on ``workers`` that start at the same time: the next one begins when nothing
    waits any more and a worker is below its target.

    A question costs its worker between a half and three halves of the mean. Batches reach the driver in the
    order in which they are computed, and it takes them one by one. ``kill_at``: when worker 0 dies, to be
    started anew.
    """

    def __init__(self, workers: int, costs: Costs, kill_at: float = math.inf) -> None:
        self.costs = costs
        self.kill_at = kill_at
        self.free = [costs.start] * workers  # when each has computed all that it has
        self.driver = self.busy = 0.0
        self.repeated = 0
        self._source = random.Random(0)

        self._speeds: list[float] = []
        self._work = Work(workers)
        self._in_flight = [InFlight(TARGET_IN_FLIGHT) for _ in range(workers)]
        self._events: list[tuple[float, int, int, int]] = []
        self._life = 0

    def run(self, sizes: Sequence[int]) -> None:
        self._tasks = iter(sizes)
        for worker in range(len(self.free)):
            self._supply(worker, self.driver)
        while self._events:
            if self._events[0][0] > self.kill_at:
                self._kill()
            at, worker, life, count = heapq.heappop(self._events)
            if worker == 0 and life != self._life:
                continue
            self.driver = max(self.driver, at) + count * self.costs.driver
            self.busy += count * self.costs.driver
            unanswered = self._in_flight[worker].unanswered
            for index in list(islice(unanswered, count)):
                del unanswered[index]
            self._supply(worker, self.driver)

    def _supply(self, worker: int, now: float) -> None:
        in_flight = self._in_flight[worker]
        if not self._work and in_flight.below_target():
            self._begin(next(self._tasks, 0))
        while in_flight.wants_more() and (shard := self._work.take(worker, self._in_flight)):
            in_flight.give(shard)
            at = max(self.free[worker], now)
            for start in range(0, len(shard), BATCH_ITEMS):
                batch = shard.requests[start : start + BATCH_ITEMS]
                at += sum(self._speeds[i] for i in batch)
                life = self._life if worker == 0 else 0
                heapq.heappush(self._events, (at, worker, life, len(batch)))
            self.free[worker] = at

    def _begin(self, items: int) -> None:
        """Another task."""
        first = len(self._speeds)
        self._speeds += (self.costs.worker * self._source.uniform(0.5, 1.5) for _ in range(items))
        numbers = range(first, first + items)
        self._work.add({i: GenerateRequest((self._source.randrange(1 << 15), i), 16) for i in numbers})

    def _kill(self) -> None:
        """What worker 0 had not sent goes back; of its batch in work, half is computed twice on average."""
        self._life += 1
        self.free[0] = self.kill_at + self.costs.start
        lost, self._in_flight[0] = self._in_flight[0], InFlight(TARGET_IN_FLIGHT)
        self._work.bisect(0, lost, "killed")
        self.repeated = min(BATCH_ITEMS, len(lost.unanswered)) // 2
        now, self.kill_at = self.kill_at, math.inf
        self._supply(0, now)


def simulate(sizes: Sequence[int], costs: Costs, counts: Sequence[int]) -> list[dict[str, float]]:
    """Suite cme on so many workers; the same with a worker lost in its middle; and many checkpoints."""
    rows = []
    planning_s = costs.plan * sum(sizes)
    for workers in counts:
        ideal = sum(sizes) * costs.worker / workers
        loaded = replace(costs, start=0)
        whole, hurt = Simulation(workers, loaded), Simulation(workers, costs, kill_at=costs.start + ideal / 2)
        for simulation in (whole, hurt):
            simulation.run(sizes)
        in_turn = math.ceil(CHECKPOINTS * workers / WORKERS)
        rows.append(
            {
                "workers": workers,
                "before_first_item_s": planning_s + costs.start,
                "checkpoint_s": whole.driver,
                "efficiency": ideal / whole.driver,
                "driver_busy": whole.busy / whole.driver,
                "a_lost_worker_costs_s": hurt.driver - costs.start - whole.driver,
                "items_repeated": hurt.repeated,
                "checkpoints_in_turn": in_turn,
                "all_checkpoints_h": (planning_s + costs.start + in_turn * whole.driver) / 3600,
            }
        )
        print("  ".join(f"{name} {value:.3g}" for name, value in rows[-1].items()), flush=True)
    return rows


def table(stored: dict[str, Any]) -> str:
    """The Markdown tables of stored results: what an item costs, and what is simulated with that."""
    metrics, settings = stored["metrics"], stored["settings"]
    rounded = {name: f"{value:,.0f}" for name, value in metrics.items()}
    checkpoints = next(name for name in metrics if name.startswith("table_"))
    costs = [
        ("plan: read the row, render, tokenise, key (once for all adapters of a run)", "plan_us"),
        ("shard: sort by tokens and cut, for 100 workers", "shard_us"),
        ("deal: send to a worker, take its answer", "deal_us"),
        ("score", "score_us"),
        ("store: append to the samples file, in windows", "store_us"),
    ]
    lines = ["| the driver's work | µs an item |", "|---|---:|"]
    lines += [f"| {what} | {rounded[name]} |" for what, name in costs]
    columns = (
        "workers a run",
        "before the first item, s",
        "a checkpoint, s",
        "efficiency",
        "driver busy",
        "a lost worker costs, s",
        "items repeated",
        f"{settings['checkpoints']:,} checkpoints on {settings['gpus']} GPUs, h",
    )
    lines += [
        "",
        f"A stored record has {rounded['record_bytes']} bytes. Deal, score and store allow "
        f"{rounded['driver_items_per_s']} items/s. The table of {checkpoints.split('_')[1]} checkpoints "
        f"takes {metrics[checkpoints]:.1f} s.",
        "",
        f"| {' | '.join(columns)} |",
        "|---:" * len(columns) + "|",
    ]
    for row in stored["simulated"]:
        cells = (
            row["workers"],
            f"{row['before_first_item_s']:,.0f}",
            f"{row['checkpoint_s']:,.0f}",
            f"{row['efficiency']:.2f}",
            f"{row['driver_busy']:.0%}",
            f"{row['a_lost_worker_costs_s']:.0f}",
            row["items_repeated"],
            f"{row['all_checkpoints_h']:.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"{measurements.source(stored)}: suite `cme` with all its {settings['items']:,} items, a worker that "
        f"answers {settings['worker_items_per_second']:g} items/s and starts in {settings['start_s']:g} s.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(measurements.DATA), help="folder, or mini")
    parser.add_argument("--limit", type=int, help="items of each task that is planned; all without it")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--checkpoints", type=int, default=CHECKPOINTS, help="of the table")
    parser.add_argument("--worker-items-per-second", type=float, default=60.0)
    parser.add_argument("--start", type=float, default=90.0, help="seconds until a worker is ready")
    parser.add_argument("--quick", action="store_true", help="mini items, everything small")
    parser.add_argument("--table", type=Path, help="write the stored results into this page")
    args = parser.parse_args()
    if args.table:
        [results] = measurements.RESULTS.glob("scaling_limits-*.json")
        measurements.show(results, args.table, table)
        return
    if args.quick:
        args.data, args.limit, args.records, args.checkpoints = "mini", 12, 500, 20
    options = RunOptions("smollm2", data=args.data, limit=args.limit, tasks=TASKS, offline=True)
    planned = planning(options)
    cluster = Cluster("local", 2, 1)
    try:
        deal_s = statistics.mean(dealing(cluster, one.requests) for one in planned)
    finally:
        cluster.close()
    with tempfile.TemporaryDirectory() as scratch:
        [folder] = run(replace(options, data="mini", limit=6, out=Path(scratch) / "run"))
        stored = storing(folder, args.records)
        table_s = tabulating(folder, args.checkpoints)
    score_s = statistics.mean(map(scoring, planned))
    driver_s = deal_s + score_s + stored["seconds"]
    plan_s = sum(one.seconds * len(one.items) for one in planned) / sum(len(one.items) for one in planned)
    costs = Costs(plan_s, driver_s, 1 / args.worker_items_per_second, args.start)
    sizes = [spec.items or 0 for spec in load_suite().select("cme")]
    rows = simulate(sizes if not args.quick else [500], costs, (1, 8, 100, 800) if not args.quick else (1, 8))
    metrics = {
        "plan_us": plan_s * 1e6,
        "shard_us": statistics.mean(map(sharding, planned)) * 1e6,
        "deal_us": deal_s * 1e6,
        "score_us": score_s * 1e6,
        "store_us": stored["seconds"] * 1e6,
        "record_bytes": stored["bytes"],
        "driver_items_per_s": 1 / driver_s,
        f"table_{args.checkpoints}_s": table_s,
    }
    line = measurements.line("scaling_limits", {name: round(value, 2) for name, value in metrics.items()})
    if not args.quick:
        settings = {
            "items": sum(sizes),
            "worker_items_per_second": args.worker_items_per_second,
            "start_s": args.start,
            "checkpoints": CHECKPOINTS,
            "gpus": WORKERS,
        }
        measurements.save(line, settings=settings, simulated=rows)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
