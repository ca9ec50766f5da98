"""``cme-bench doctor``."""

from __future__ import annotations

from cme_bench.cli import app


@app.command()
def doctor() -> None:
    """Check this machine: packages, devices, the embedded model, caches, task files."""
