"""Packages that are imported when something of them is asked for, not before."""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from types import ModuleType
from typing import Any

_WAITING: dict[str, ModuleType] = {}


def defer(name: str) -> None:
    """Let ``import NAME`` cost nothing until an attribute or a submodule of the package is asked for.

    ``import peft`` imports bitsandbytes where it is installed, and with it torch's compiler: seconds, in
    programs that quantise nothing. lm-eval imports requests, which most runs never use. A package that is
    imported already, or not installed, stays as it is.
    """
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = ModuleType(name)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    lock = threading.RLock()

    def ask(attribute: str) -> Any:
        """Return an attribute of the package, which is executed now (PEP 562)."""
        if attribute.startswith("__") and attribute not in ("__path__", "__version__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        with lock:
            if _WAITING.pop(name, None) is not None:
                del module.__getattr__
                _execute(module)
        return getattr(module, attribute)

    module.__getattr__ = ask  # type: ignore[method-assign]
    sys.modules[name] = _WAITING[name] = module


def waits(name: str) -> bool:
    """Return whether a package was deferred, and nothing of it was asked for yet."""
    return name in _WAITING and sys.modules.get(name) is _WAITING[name]


def _execute(module: ModuleType) -> None:
    """Execute a package; what it says while it looks for faster kernels is of no use to a user."""
    spec = module.__spec__
    assert spec is not None and spec.loader is not None
    logger = logging.getLogger(module.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    module.__path__ = list(spec.submodule_search_locations or ())
    module.__package__ = module.__name__
    try:
        spec.loader.exec_module(module)
    finally:
        logger.setLevel(before)
