"""The error of this package: a usage error for the command line, a ValueError for callers of PEFT."""

from __future__ import annotations

from peft import NoMatchingPeftModuleError

from cme_bench.util.errors import UsageError


class AdapterError(UsageError, ValueError):
    """A bad adapter setting or file: one sentence, exit code 2."""


class NoTargetError(AdapterError, NoMatchingPeftModuleError):  # type: ignore[misc]  # peft carries no types
    """No layer is adapted; the class that PEFT's own methods raise, too."""
