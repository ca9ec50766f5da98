"""cme-bench: evaluate multi-task adapters on CME, a comprehensive multi-task evaluation.

import cme_bench

base, team = cme_bench.evaluate("smollm2", adapters=[None, "./teamlora"], data="mini")
team.compare(base)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cme_bench.util import quick_imports
from cme_bench.util.deferred import defer
from cme_bench.version import __version__

if TYPE_CHECKING:
    from cme_bench.api import compare, dry_run, evaluate, list_runs, load_runs, open_run, table
    from cme_bench.run import Run

defer("bitsandbytes")
defer("requests")
defer("sacrebleu")
quick_imports.install()
defer("datasets")

__all__ = [
    "Run",
    "__version__",
    "compare",
    "dry_run",
    "evaluate",
    "list_runs",
    "load_runs",
    "open_run",
    "table",
]
_PLACES = {name: "run" if name == "Run" else "api" for name in __all__ if name != "__version__"}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for, so that ``import cme_bench`` is instant."""
    if name not in _PLACES:
        raise AttributeError(f"module 'cme_bench' has no attribute {name!r}")
    return getattr(import_module(f"cme_bench.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
