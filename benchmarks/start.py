"""How long the terminal waits for ``--help`` and ``tasks ls``, beside a Python that does nothing, in turn.

``processor_s`` is processor time, ``wall_s`` what a user sees; medians of the rounds.

``--vllm MODEL`` measures instead how long ``cme-bench run MODEL --engine vllm`` takes to its first answer,
from its process's start on, to a second. ``first_answer_seconds_cold``: with empty caches of compiled code;
``_warm``: with those that the first run left. Both as the run decides; ``compiled_`` before them: compiled.

``--run MODEL --adapter A --adapter B --data FOLDER`` measures a whole run of 20 tasks, 200 questions each,
cold and warm alike, and prints where its seconds went.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import measurements

COMMANDS = {
    "python": ["-c", ""],
    "help": ["-m", "cme_bench", "--help"],
    "tasks_ls": ["-m", "cme_bench", "tasks", "ls"],
}


def seconds(arguments: list[str]) -> dict[str, float]:
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    wall, after = time.perf_counter() - started, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return {"wall_s": wall, "processor_s": used}


CACHES = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def first_answer(model: str, folder: Path, out: str, settings: list[str]) -> float:
    """The seconds from the start of a run's process to its first answer."""
    asked = ["--tasks", "cme_arc_easy_ll", "--data", "mini", "--limit", "8", "--out", str(folder / out)]
    command = [sys.executable, "-m", "cme_bench", "run", model, "--engine", "vllm", *asked, *settings]
    caches = {name: str(folder / name.lower()) for name in CACHES}
    started = time.time()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=os.environ | caches)
    run = json.loads((folder / out / "run.json").read_text())
    session = run["sessions"][-1]
    begun = datetime.fromisoformat(session["started"]).timestamp()
    return begun - started + float(session["first_answer"])


def vllm_start(model: str, *, quick: bool) -> dict[str, float]:
    """Cold and warm, without and with compilation; each pair has caches of its own."""
    found = {}
    for prefix, settings in (("", []), ("compiled_", ["--set", "compile=1"])):
        if prefix and quick:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for state in ("cold", "warm"):
                seconds = first_answer(model, Path(folder), state, settings)
                found[f"{prefix}first_answer_seconds_{state}"] = round(seconds, 1)
    return found


def whole_run(model: str, adapters: list[str], data: str) -> dict[str, float]:
    """Seconds of a run of all scored tasks with each adapter, by empty caches and by those that it left."""
    found = {}
    named = [part for adapter in adapters for part in ("--adapter", adapter)]
    asked = ["--tasks", "cme_ll", "--limit", "200", "--data", data, "--engine-stats", *named]
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: str(Path(folder) / name.lower()) for name in CACHES}
        for state in ("cold", "warm"):
            command = [sys.executable, "-m", "cme_bench", "run", model, *asked, "--out", f"{folder}/{state}"]
            started = time.perf_counter()
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | caches
            )
            found[f"run_seconds_{state}"] = round(time.perf_counter() - started, 1)
            print(f"{state}: {done.stdout.splitlines()[-1]}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="three rounds, no file")
    parser.add_argument("--vllm", metavar="MODEL", help="measure vLLM's start with it, and nothing else")
    parser.add_argument("--run", metavar="MODEL", help="measure a whole run with it, and nothing else")
    parser.add_argument("--adapter", action="append", default=[], help="of the whole run; may be repeated")
    parser.add_argument("--data", default="hub", help="of the whole run")
    args = parser.parse_args()
    if args.vllm or args.run:
        import torch

        name, settings = "start_vllm", {"model": args.vllm or args.run}
        if args.run:
            name, settings = "start_run", settings | {"adapters": len(args.adapter)}
            metrics = whole_run(args.run, args.adapter, args.data)
        else:
            metrics = vllm_start(args.vllm, quick=args.quick)
        line = measurements.line("start", metrics, cuda=torch.cuda.is_available())
        if not args.quick:
            file = measurements.RESULTS / f"{name}-{line['hardware'].lower().replace(' ', '-')}.json"
            measurements.save(line, file=file, settings=settings)
        print(json.dumps(line))
        return
    rounds = [
        {name: seconds(arguments) for name, arguments in COMMANDS.items()}
        for _ in range(3 if args.quick else args.rounds)
    ]
    metrics = {
        f"{name}_{what}": round(statistics.median(found[name][what] for found in rounds), 3)
        for name in COMMANDS
        for what in ("wall_s", "processor_s")
    }
    line = measurements.line("start", metrics)
    if not args.quick:
        measurements.save(line, settings={"rounds": args.rounds})
    print(json.dumps(line))


if __name__ == "__main__":
    main()
