"""The engine's counters of a run in words: the lines of ``cme-bench run --engine-stats``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cme_bench.runs.folder import read_run
from cme_bench.util.float32_pieces import BY_PIECES, multiply, split, thrice


def stats_lines(folder: Path) -> Iterator[str]:
    """Yield tokens computed against row by row, tokens/s, padding share and peak memory, over all sessions of
    a run folder; one line if everything came from the store."""
    run = read_run(folder)
    total = run.stats
    computed, seconds = total.tokens_computed, total.model_seconds
    if computed <= 0 or seconds <= 0:
        yield "engine: nothing was computed, all responses were stored"
        return
    share = run.engine.get("prefixes")
    yield (
        f"engine: {computed:,.0f} tokens computed, {total.tokens_rowwise:,.0f} row by row "
        f"({total.tokens_rowwise / computed:.1f}x)" + (f", prefixes {share}" if share else "")
    )
    yield (
        f"engine: {computed / seconds:,.0f} tokens/s in {seconds:,.1f} s of model time, "
        f"{100 * total.tokens_padding / (computed + total.tokens_padding):.1f} % padding, "
        f"{total.tokens_generated:,.0f} tokens generated, "
        f"peak memory {total.peak_memory_bytes / 2**30:.2f} GiB"
    )
    if waited := [session.first_answer for session in run.sessions if session.first_answer is not None]:
        yield f"engine: the first answer came after {waited[-1]:,.1f} s, planning included"
    yield from _limits(total.extra, run.engine)


def phases_line(mine: Mapping[str, float], beside: Mapping[str, float]) -> str:
    """Return where the seconds of a command went, by phase, those of a tenth and more; and what other threads
    did meanwhile."""
    line = f"time: {sum(mine.values()):,.1f} s: {_listed(mine)}"
    return f"{line}; beside: {_listed(beside)}" if _listed(beside) else line


def _listed(spent: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:,.1f}" for name, seconds in spent.items() if seconds >= 0.05)


def _limits(counted: Mapping[str, float], engine: Mapping[str, Any]) -> Iterator[str]:
    """Yield what share of the time the device waited for its host, and how near the work came to the least
    time that its products take on the machine this is."""
    serving, device, flops = (
        counted.get(name, 0.0) for name in ("serving_seconds", "device_seconds", "flops")
    )
    if device <= 0 or serving < device:
        return
    waited = f"engine: the device waited {100 * (1 - device / serving):.1f} % of {serving:,.1f} s"
    if flops <= 0:
        yield waited
        return
    rate = products_per_second(str(engine.get("dtype")), pieces=engine.get("products") == BY_PIECES)
    least = flops / rate
    yield f"{waited}; products alone take {least:,.2g} s here, {100 * least / serving:.1f} % of it"


def products_per_second(dtype: str, *, pieces: bool = False) -> float:
    """Return the floating-point operations a second of large products in ``dtype`` on this machine.

    ``pieces``: of float32's by bfloat16 pieces, three products and the splitting counted as one.
    """
    import torch

    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 1024
    device = "cuda" if cuda else "cpu"
    # Drawn: a GPU multiplies constants faster than any model's numbers, as they take less power.
    matrix = torch.randn(size, size, device=device).to(getattr(torch, dtype, torch.float32))
    repeated = thrice(matrix) if pieces else None
    best = math.inf
    for _ in range(4):  # the first one also prepares
        started = time.perf_counter()
        matrix @ matrix if repeated is None else multiply(split(matrix), repeated)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 / best)
