"""What a benchmark measured: the line that it prints, its file in results/bench, its table in a page."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cme_bench.util import provenance

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
"""Real items, where they lie beside the checkout."""
RESULTS = ROOT / "results" / "bench"


def line(bench: str, metrics: Any, *, cuda: bool = False, hardware: str | None = None) -> dict[str, Any]:
    """The line of a benchmark: what was measured, on which machine, of which commit."""
    return {
        "bench": bench,
        "hardware": hardware or provenance.hardware(cuda=cuda),
        "commit": provenance.commit() or "unknown",
        "metrics": metrics,
    }


def save(measured: dict[str, Any], *, file: Path | None = None, **more: Any) -> None:
    """Write a line and ``more`` to ``file``, or to results/bench; ``settings`` get the machine's load, and
    how fast its Python is."""
    load, loop = round(os.getloadavg()[0], 2), round(loop_seconds(), 3)
    more["settings"] = more.get("settings", {}) | {"load": load, "loop_s": loop}
    hardware = measured["hardware"].lower().replace(" ", "-")
    file = file or RESULTS / f"{measured['bench']}-{hardware}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(measured | more, indent=1) + "\n")


def loop_seconds() -> float:
    """Seconds of ten million additions in Python: machines with one GPU differ by more than twice."""
    started, total = time.perf_counter(), 0
    for number in range(10_000_000):
        total += number
    return time.perf_counter() - started


def source(stored: dict[str, Any]) -> str:
    """Where stored results come from, in words."""
    load = stored["settings"]["load"]
    return (
        f"`benchmarks/{stored['bench']}.py` on {stored['hardware']}, commit {stored['commit']}, load average "
        f"{load:.0f}"
    )


def show(file: Path, page: Path, table: Callable[[dict[str, Any]], str]) -> None:
    """Put the ``table`` of the results in ``file`` into ``page``, between the marks that name the file."""
    stored = json.loads(file.read_text())
    name = file.stem
    begin, end = f"<!-- {name}: written by benchmarks/{stored['bench']}.py -->", f"<!-- end of {name} -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    _, after = rest.split(end)
    page.write_text(f"{before}{begin}\n\n{table(stored)}\n\n{end}{after}", encoding="utf-8")
