"""Throughput of two workers of engine ray over that of one, likelihoods and generation.

Both workers are started and warmed up first, and stay; a measurement asks the same questions of one of them
and of both, in turn. Without two GPUs each worker has one core of its own, to which it is bound; the driver
and ray share those cores with them. ``two_workers_ratio`` is the smallest of the ratios below it; a ratio is
the median of the rounds. Answers of one and of two must be equal.

``--table results/bench/scaling-HARDWARE.json docs/scaling.md`` writes stored results into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import measurements
import torch

from cme_bench.analysis.parity import task_items
from cme_bench.engines.base import Engine, GenerateRequest, GenerateResponse
from cme_bench.engines.ray.pool import Pool
from cme_bench.runs.engines import Job, RaySource
from cme_bench.runs.options import RunOptions
from cme_bench.runs.responder import BaseModel, Responder, first_prompt

CASES = {"likelihood": "cme_arc_easy_ll", "generation": "cme_arc_easy"}
TOLERANCE = 1e-3


class Crew:
    """Two workers of one kind, of which one or both are asked."""

    def __init__(self, options: RunOptions, requests: dict[str, list[Any]]) -> None:
        self.base = BaseModel(options)
        self.requests = requests
        source = self.base.engines
        assert isinstance(source, RaySource)
        self.source: RaySource = source
        self.pool: Pool = source._pool
        self.places = self.pool.places
        longest = max(request.n_tokens for asked in requests.values() for request in asked)
        self.job = Job(longest + 1, longest, first_prompt(requests["likelihood"][0]))
        self.engine: Engine = source.open(None, self.job)

    def start(self) -> None:
        """Load both, bind each to its core, and let each answer a few questions."""
        while not all(place.ready for place in self.places):
            self.ask(self.requests["likelihood"][:4])
        if not self.pool.crew.gpus:
            for core, place in zip(sorted(os.sched_getaffinity(0)), self.places, strict=False):
                bind(int(place.where.split()[-1]), core)
        for asked in self.requests.values():
            self.ask(asked[:8])

    def ask(self, requests: list[Any]) -> dict[int, Any]:
        if isinstance(requests[0], GenerateRequest):
            return dict(self.engine.generate(requests))
        return dict(self.engine.loglikelihood(requests))

    def measure(self, requests: list[Any], workers: int) -> tuple[float, dict[int, Any]]:
        """Seconds, and the answers."""
        self.pool.places = self.places[:workers]
        started = time.perf_counter()
        answers = self.ask(requests)
        seconds = time.perf_counter() - started
        self.pool.places = self.places
        return seconds, answers

    def close(self) -> None:
        self.base.close()


def bind(process: int, core: int) -> None:
    """All threads of a process to one core."""
    for thread in Path(f"/proc/{process}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def difference(one: dict[int, Any], two: dict[int, Any]) -> float:
    """Largest of log-likelihoods; 1 where a text differs."""
    if isinstance(one[0], GenerateResponse):
        return float(max(one[i].text != two[i].text for i in one))
    return float(max(abs(a - b) for i in one for a, b in zip(one[i].logprobs, two[i].logprobs, strict=True)))


def questions_of(options: RunOptions) -> dict[str, list[Any]]:
    """The requests of each case, as a run asks them."""
    from dataclasses import replace

    found = {}
    for case, task in CASES.items():
        one = replace(options, engine="hf", tasks=task)
        found[case] = [item.request for item in task_items(one, Responder(one, BaseModel(one)))]
    return found


def measure(kind: str, options: RunOptions, requests: dict[str, list[Any]], rounds: int) -> dict[str, Any]:
    crew = Crew(options, requests)
    results: dict[str, Any] = {}
    try:
        crew.start()
        for case, questions in requests.items():
            seconds: dict[int, list[float]] = {1: [], 2: []}
            for turn in range(rounds):
                found = {}
                for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                    took, found[workers] = crew.measure(questions, workers)
                    seconds[workers].append(took)
            ratio = statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True))
            gap = difference(found[1], found[2])
            results[f"{kind}_{case}"] = {"seconds": seconds, "ratio": ratio, "difference": gap}
            one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
            print(
                f"{kind} {case:10s} {len(questions)} questions   one {one:.1f} s   two {two:.1f} s   "
                f"{ratio:.2f}x   difference {gap:.1e}",
                flush=True,
            )
    finally:
        crew.close()
    return results


def table(stored: dict[str, Any]) -> str:
    """The Markdown table of stored results."""
    lines = ["| workers and work | one, s | two, s | throughput of two |", "|---|---:|---:|---:|"]
    for name, found in stored["results"].items():
        one, two = (statistics.median(found["seconds"][workers]) for workers in "12")
        lines.append(f"| {name.replace('_', ', ')} | {one:.1f} | {two:.1f} | {found['ratio']:.2f}x |")
    settings = stored["settings"]
    return "\n".join(
        [
            *lines,
            "",
            f"{measurements.source(stored)}: {settings['model']}, {settings['items']} questions, medians of "
            f"{settings['rounds']} rounds, the answers of one and of two are equal.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="a model folder, or smollm2")
    parser.add_argument("--workers", default="hf,vllm", help="kinds of workers: hf, vllm")
    parser.add_argument("--data", default=str(measurements.DATA), help="folder, or mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--items", type=int, default=48, help="questions of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="our own mini items, hf workers, one round")
    parser.add_argument("--table", nargs=2, type=Path, help="write stored results (a file) into a page")
    args = parser.parse_args()
    if args.table:
        file, page = args.table
        measurements.show(file, page, table)
        return
    if args.quick:
        args.data, args.items, args.rounds, args.workers = "mini", 12, 1, "hf"
    base = RunOptions(args.model, data=args.data, limit=args.items, dtype=args.dtype, offline=True)
    requests = questions_of(base)
    results: dict[str, Any] = {}
    for kind in args.workers.split(","):
        settings = {} if torch.cuda.is_available() else {"kv_gib": 1}
        options = RunOptions(
            args.model,
            engine="ray",
            worker=kind,
            workers=2,
            dtype=args.dtype,
            offline=True,
            settings=settings,
        )
        results |= measure(kind, options, requests, args.rounds)
    ratios = {name: round(found["ratio"], 3) for name, found in results.items()}
    metrics = {"two_workers_ratio": min(ratios.values())} | ratios
    line = measurements.line("scaling", metrics, cuda=torch.cuda.is_available())
    if not args.quick:
        measurements.save(
            line,
            settings={"model": Path(args.model).name, "items": args.items, "rounds": args.rounds},
            results=results,
        )
    print(json.dumps(line))
    sys.exit(any(found["difference"] > TOLERANCE for found in results.values()) and args.dtype != "bfloat16")


if __name__ == "__main__":
    main()
