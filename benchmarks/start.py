"""How long the terminal waits for ``--help`` and ``tasks ls``, beside a Python that does nothing, in turn.

``processor_s`` is processor time, ``wall_s`` what a user sees; medians of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="three rounds, no file")
    args = parser.parse_args()
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
