"""torch's shared objects: half a second to load and link, which need not wait for Python."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
import threading
from contextlib import suppress
from pathlib import Path

LOADED = ("libtorch_global_deps.so", "libtorch.so")
"""Objects that hold no Python, in the order in which ``import torch`` opens them."""
FIRST = ("_ssl", "_asyncio", "pyexpat", "PIL._imaging", "_brotli")
"""Extensions that other libraries import before torch. One object is linked at a time: they would wait."""
_NOW = 2  # RTLD_NOW of glibc


def load_early() -> threading.Thread | None:
    """Begin to load what ``import torch`` will load, while other modules are imported.

    Python would hold its lock meanwhile. Returns the thread that does it; None if there is nothing to load,
    as on other systems than Linux. What cannot be loaded is left to torch, which says why. A process does not
    end before: it would tear down what is still being set up.
    """
    if sys.platform != "linux" or "torch" in sys.modules:
        return None
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    files = [Path(spec.origin).parent / "lib" / name for name in LOADED]
    if not all(file.is_file() for file in files):
        return None
    for name in FIRST:
        with suppress(ImportError):
            importlib.import_module(name)
    thread = threading.Thread(target=_load, args=(files,), name="cme-bench-load")
    thread.start()
    return thread


def _load(files: list[Path]) -> None:
    own = ctypes.CDLL(None)
    own.dlopen.argtypes, own.dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    modes = (_NOW | ctypes.RTLD_GLOBAL, _NOW | ctypes.RTLD_LOCAL)
    for file, mode in zip(files, modes, strict=True):
        if own.dlopen(bytes(file), mode) is None:
            return
