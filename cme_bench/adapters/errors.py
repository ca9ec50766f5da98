"""The error of this package: a usage error for the command line, a ValueError for callers of PEFT."""

from __future__ import annotations

from cme_bench.errors import UsageError


class AdapterError(UsageError, ValueError):
    """A bad adapter setting or file: one sentence, exit code 2."""
