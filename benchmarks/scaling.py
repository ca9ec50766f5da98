"""Throughput of two workers of engine ray over that of one, likelihoods and generation.

Both workers are started and warmed up first, and stay; a measurement asks the same questions of one of them
and of both, in turn, fed task by task as by a run, and with empty prefix caches. Without two GPUs each worker
has one core of its own, to which it is bound; the driver and ray share those cores with them.
``two_workers_ratio`` is the smallest of the ratios below it; a ratio is the median of the rounds. Answers of
one and of two must be equal, in bfloat16 as far as its rounding lets them be: ``difference`` is the largest
of log-likelihoods, and the part of texts that differ.

``--table results/bench/scaling-HARDWARE.json docs/results.md`` writes stored results into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import measurements
import torch

from cme_bench.engines.base import Engine, GenerateResponse
from cme_bench.engines.inbox import Batches
from cme_bench.engines.ray.pool import Pool
from cme_bench.engines.ray.worker import Worker
from cme_bench.experiments.parity import task_items
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.engine_source import EngineJob
from cme_bench.runs.options import RunOptions
from cme_bench.runs.ray_source import RaySource
from cme_bench.runs.responder import Responder

TOLERANCE = 1e-3
Questions = dict[str, list[Any]]
"""Requests of each task."""


class TwoWorkers:
    """Two workers of one kind, of which one or both are asked."""

    def __init__(self, options: RunOptions, cases: dict[str, Questions]) -> None:
        self.tasks = [asked for questions in cases.values() for asked in questions.values()]
        source = open_engines(options)
        assert isinstance(source, RaySource)
        self.source: RaySource = source
        self.pool: Pool = source._pool
        self.slots = self.pool.slots
        longest = max(request.n_tokens for asked in self.tasks for request in asked)
        self.job = EngineJob(longest + 1, longest, self.tasks[0][0].prompt)
        self.engine: Engine = source.open(None, self.job)

    def start(self) -> None:
        """Load both, bind each to its core, and let each answer a few questions."""
        while not all(slot.ready for slot in self.slots):
            self.ask([self.tasks[0][:4]])
        if not self.pool.plan.gpus:
            for core, slot in zip(sorted(os.sched_getaffinity(0)), self.slots, strict=False):
                bind(int(slot.where.split()[-1]), core)
        for asked in self.tasks:
            self.ask([asked[:8]])

    def ask(self, tasks: list[list[Any]]) -> dict[int, Any]:
        return dict(self.engine.serve(Batches(tasks)))

    def measure(self, questions: Questions, workers: int) -> tuple[float, dict[int, Any]]:
        """Seconds, and the answers."""
        import ray

        ray.get([slot.actor.__ray_call__.remote(forget) for slot in self.slots])
        self.pool.slots = self.slots[:workers]
        started = time.perf_counter()
        answers = self.ask(list(questions.values()))
        seconds = time.perf_counter() - started
        self.pool.slots = self.slots
        return seconds, answers

    def close(self) -> None:
        self.source.close()


def bind(process: int, core: int) -> None:
    """All threads of a process to one core."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def forget(worker: Worker) -> None:
    """In a worker: what it computed is of no use to the next measurement."""
    host = getattr(worker._engine, "host", None)
    if host is not None:
        host._llm.reset_prefix_cache()


def difference(one: dict[int, Any], two: dict[int, Any]) -> float:
    """Largest of log-likelihoods; the part of texts that differ."""
    pairs = [(one[i], two[i]) for i in one]
    if isinstance(pairs[0][0], GenerateResponse):
        return statistics.fmean([float(a.text != b.text) for a, b in pairs])
    return float(max(abs(x - y) for a, b in pairs for x, y in zip(a.logprobs, b.logprobs, strict=True)))


def questions_of(options: RunOptions) -> Questions:
    """The requests of each task, as a run asks them."""
    found: Questions = {}
    for item in task_items(options, Responder(open_engines(options))):
        found.setdefault(item.task, []).append(item.request)
    return found


def measure(
    kind: str, options: RunOptions, cases: dict[str, Questions], rounds: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and result of each case."""
    pair = TwoWorkers(options, cases)
    try:
        pair.start()
        for case, questions in cases.items():
            n = sum(map(len, questions.values()))
            seconds: dict[int, list[float]] = {1: [], 2: []}
            for turn in range(rounds):
                found = {}
                for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                    took, found[workers] = pair.measure(questions, workers)
                    seconds[workers].append(took)
            ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True))
            gap = difference(found[1], found[2])
            one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
            print(
                f"{kind} {case:10s} {n} questions   one {one:.1f} s   two {two:.1f} s   "
                f"{ratio:.2f}x   difference {gap:.1e}",
                flush=True,
            )
            yield (
                f"{kind}_{case}",
                {"questions": n, "seconds": seconds, "ratio": ratio, "difference": gap},
            )
    finally:
        pair.close()


def keep(results: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The line of what is measured so far, with all of it in the file."""
    ratios = {name: round(found["ratio"], 3) for name, found in results.items()}
    metrics = {"two_workers_ratio": min(ratios.values())} | ratios
    line = measurements.line("scaling", metrics, cuda=torch.cuda.is_available())
    if not args.quick:
        settings = {
            "model": Path(args.model).name,
            "dtype": args.dtype,
            "tasks": [args.likelihood, args.generation],
            "items": args.items,
            "rounds": args.rounds,
        }
        measurements.save(line, file=args.out, settings=settings, results=results)
    return line


def table(stored: dict[str, Any]) -> str:
    """The Markdown table of stored results."""
    lines = [
        "| workers and work | questions | rounds | one, s | two, s | throughput of two |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in stored["results"].items():
        one, two = (statistics.median(found["seconds"][workers]) for workers in "12")
        counts = f"{found['questions']:,} | {len(found['seconds']['1'])}"
        shown = f"{counts} | {one:.1f} | {two:.1f} | {found['ratio']:.2f}x"
        lines.append(f"| {name.replace('_', ', ')} | {shown} |")
    settings = stored["settings"]
    asked = f"{', '.join(settings['tasks'])}, at most {settings['items']:,} items a task"
    return "\n".join(
        [
            *lines,
            "",
            f"{measurements.source(stored)}: {settings['model']}, {settings['dtype']}, {asked}, "
            f"medians of the rounds; {agreement(stored)}.",
        ]
    )


def agreement(stored: dict[str, Any]) -> str:
    """In words, how far one worker's answers are those of two."""
    gaps = {name: found["difference"] for name, found in stored["results"].items()}
    gaps = {name: gap for name, gap in gaps.items() if gap is not None}  # None: not compared
    if all(gap <= TOLERANCE for gap in gaps.values()):
        return "the answers of one and of two are equal"
    said = [
        f"{gap:.1%} of the texts differ"
        if "generation" in name
        else f"a log-likelihood differs by {gap:.2f} at most"
        for name, gap in gaps.items()
    ]
    return f"between one and two {', '.join(said)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a model folder, or smollm2")
    parser.add_argument("--workers", default="hf,vllm", help="kinds of workers: hf, vllm")
    parser.add_argument("--data", default=str(measurements.DATA), help="folder, or mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--likelihood", default="cme_arc_easy_ll", help="tasks or suites")
    parser.add_argument("--generation", default="cme_arc_easy", help="tasks or suites")
    parser.add_argument("--items", type=int, default=48, help="questions of each task, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="our own mini items, hf workers, one round")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--table", nargs=2, type=Path, help="write stored results (a file) into a page")
    args = parser.parse_args()
    if args.table:
        file, page = args.table
        measurements.show(file, page, table)
        return
    if args.quick:
        args.data, args.items, args.rounds, args.workers = "mini", 12, 1, "hf"
    base = RunOptions(args.model, data=args.data, limit=args.items, dtype=args.dtype, offline=True)
    cases = {
        case: questions_of(replace(base, engine="hf", tasks=tasks))
        for case, tasks in (("likelihood", args.likelihood), ("generation", args.generation))
    }
    results: dict[str, Any] = {}
    for kind in args.workers.split(","):
        settings = {"kv_gib": 16 if torch.cuda.is_available() else 1}  # others may share the machine
        options = RunOptions(
            args.model,
            engine="ray",
            worker=kind,
            workers=2,
            dtype=args.dtype,
            offline=True,
            settings=settings,
        )
        for name, found in measure(kind, options, cases, args.rounds):
            results[name] = found
            line = keep(results, args)
    print(json.dumps(line))
    sys.exit(any(found["difference"] > TOLERANCE for found in results.values()) and args.dtype != "bfloat16")


if __name__ == "__main__":
    main()
