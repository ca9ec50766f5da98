"""Many adapters on one base: ``cme-bench sweep`` against processes that share the card, and one by one.

Each way is the commands as a user runs them, from start to the last adapter folder, in turn, on the same rows
and steps: 8 methods (those of the paper's Table 1), ``--seeds`` seeds each. ``over_processes`` and
``over_one_by_one`` are ratios of tokens a second of whole commands; ``aggregate_tokens_per_second`` is the
sweep's after its first logged step, for all adapters together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measurements
import torch

from cme_bench.training.curve import read_curve

ROWS: dict[str, dict[str, Any]] = {
    "lora-32": {"method": "lora", "rank": 32},
    "lora-128": {"method": "lora", "rank": 128},
    "adalora-128": {"method": "adalora", "rank": 128},
    "moslora-128": {"method": "moslora", "rank": 128},
    "moelora-32": {"method": "moelora", "rank": 32},
    "hydralora-32": {"method": "hydralora", "rank": 32},
    "teamlora-16": {"method": "teamlora", "rank": 16},
    "teamlora-32": {"method": "teamlora", "rank": 32},
}
"""Adapters of the scale ``hour`` of experiments/smollm2.yaml."""
HOUR = {"batch_size": 48, "max_length": 256, "warmup": 0.05, "weighting": "temperature", "holdout": 16}
QUICK = {"batch_size": 2, "max_length": 64, "warmup": 0.05, "holdout": 1}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="our own rows, one method, a few steps")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default=str(measurements.DATA))
    parser.add_argument("--methods", help=f"comma-separated; default: {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every adapter; default 40; 4 with --quick")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=5, help="that share the card; 0: do not measure")
    parser.add_argument("--one-by-one", action="store_true", help="measure one process after another too")
    return parser.parse_args()


def adapters(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The options of every adapter, by name."""
    rows = args.methods.split(",") if args.methods else list(ROWS)[7:] if args.quick else list(ROWS)
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    common = (QUICK if args.quick else HOUR) | {
        "max_steps": args.steps or (4 if args.quick else 40),
        "dtype": dtype,
        "save_every": 10_000,
        "log_every": 1 if args.quick else 5,
    }
    return {
        f"{row}-seed{seed}": common | ROWS[row] | {"seed": seed} for row in rows for seed in range(args.seeds)
    }


def swept(args: argparse.Namespace, asked: dict[str, dict[str, Any]], out: Path) -> list[list[str]]:
    """The one command of a sweep."""
    file = out / "sweep.yaml"
    file.write_text(json.dumps({"model": args.model, "adapters": asked}))
    return [["sweep", str(file), "--data", args.data, "--offline", "-o", str(out)]]


def trained(args: argparse.Namespace, asked: dict[str, dict[str, Any]], out: Path) -> list[list[str]]:
    """A command for every adapter."""
    commands = []
    for name, options in asked.items():
        given = [
            part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))
        ]
        commands.append(
            ["train", args.model, "--data", args.data, "--offline", "--out", str(out / name), *given]
        )
    return commands


def seconds(commands: Sequence[Sequence[str]], *, at_once: int, log: Path) -> float:
    """Wall seconds of all commands, ``at_once`` of them at a time."""
    waiting, running = list(commands), list[subprocess.Popen[bytes]]()
    started = time.perf_counter()
    with log.open("ab") as stream:
        while waiting or running:
            while waiting and len(running) < at_once:
                command = [sys.executable, "-m", "cme_bench", *waiting.pop(0)]
                running.append(
                    subprocess.Popen(command, cwd=measurements.ROOT, stdout=stream, stderr=subprocess.STDOUT)
                )
            for process in [p for p in running if p.poll() is not None]:
                running.remove(process)
                if process.returncode:
                    raise SystemExit(f"a command failed: {log.read_text()[-2000:]}")
            time.sleep(0.05)
    return time.perf_counter() - started


def tokens(out: Path, names: Sequence[str]) -> int:
    """Tokens that were trained on in all."""
    records = [json.loads((out / name / "cme_training.json").read_bytes()) for name in names]
    return sum(record["tokens_trained"] for record in records)


def steady(out: Path, names: Sequence[str]) -> float:
    """Tokens a second of all adapters of a sweep behind the first steps that were logged.

    Adapters that went together have the same seconds; those that went after them have others.
    """
    curves = [read_curve(out / name / "loss.csv") for name in names]
    firsts = [[point for point in curve if point.seconds == curve[0].seconds][-1] for curve in curves]
    made = sum(curve[-1].tokens - first.tokens for curve, first in zip(curves, firsts, strict=True))
    crews = {tuple(point.seconds for point in curve) for curve in curves}
    return made / sum(seconds[-1] - seconds[0] for seconds in crews)


def measure(
    args: argparse.Namespace, asked: dict[str, dict[str, Any]], way: str, folder: Path
) -> dict[str, Any]:
    """Run one way in an empty folder."""
    out = folder / way
    out.mkdir(parents=True)
    at_once = args.processes if way == "processes" else 1
    commands = (swept if way == "sweep" else trained)(args, asked, out)
    log = out / "log"
    spent = seconds(commands, at_once=at_once, log=log)
    found: dict[str, Any] = {"seconds": spent, "tokens": tokens(out, list(asked))}
    found["tokens_per_second"] = found["tokens"] / spent
    if way == "sweep":
        found["out_of_memory"] = log.read_text().count("out of memory with")
        if not found["out_of_memory"]:  # else the adapters' seconds are of several passes
            found["steady_tokens_per_second"] = steady(out, list(asked))
    print(json.dumps({"way": way} | found), flush=True)
    return found


def main() -> None:
    args = arguments()
    if args.quick:
        args.data, args.seeds, args.processes, args.one_by_one = "mini", 2, 2, True
    asked = adapters(args)
    ways = ["sweep", *["processes"] * (args.processes > 0), *["one_by_one"] * args.one_by_one]
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append({way: measure(args, asked, way, Path(folder)) for way in ways})
    metrics = {"adapters": len(asked), "trainings_seconds": median(rounds, "sweep", "seconds")}
    if all("steady_tokens_per_second" in found["sweep"] for found in rounds):
        metrics["aggregate_tokens_per_second"] = median(rounds, "sweep", "steady_tokens_per_second")
    for way in ways[1:]:
        ratios = [r["sweep"]["tokens_per_second"] / r[way]["tokens_per_second"] for r in rounds]
        metrics[f"over_{way}"] = round(statistics.median(ratios), 3)
    cuda = torch.cuda.is_available()
    line = measurements.line("sweep", metrics, cuda=cuda)
    quick = "-quick" if args.quick else ""
    file = measurements.RESULTS / f"sweep-{line['hardware'].lower().replace(' ', '-')}{quick}.json"
    settings = {k: v for k, v in vars(args).items() if k != "quick"} | {"adapters": asked}
    measurements.save(line, file=file, settings=settings, rounds=rounds)
    print(json.dumps(line))


def median(rounds: Sequence[dict[str, Any]], way: str, key: str) -> float:
    """The median over rounds."""
    return round(float(statistics.median(found[way][key] for found in rounds)), 1)


if __name__ == "__main__":
    main()
