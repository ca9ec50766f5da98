"""The engine's counters of a run in words: the lines of ``cme-bench run --engine-stats``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cme_bench.runs.folder import read_run


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
