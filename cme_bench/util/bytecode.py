"""Whether the libraries' bytecode is kept: without it every start compiles thousands of files anew."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = ("torch", "transformers", "peft", "datasets")


def bytecode(libraries: Sequence[str] = LIBRARIES) -> str:
    """Return a sentence on the installed libraries' bytecode, and what to do if it is not kept.

    None of them is imported.
    """
    files = [
        Path(spec.origin) for name in libraries if (spec := importlib.util.find_spec(name)) and spec.origin
    ]
    without = [file for file in files if not Path(importlib.util.cache_from_source(str(file))).exists()]
    if not without:
        return "kept"
    names = ", ".join(file.parent.name for file in without)
    if sys.dont_write_bytecode:
        why = "PYTHONDONTWRITEBYTECODE is set"
    elif not os.access(without[0].parent, os.W_OK):
        why = f"{without[0].parent} cannot be written"
    else:
        return "written when a library is first imported"
    once = f"python -m compileall -q -j 0 {without[0].parent.parent}"
    return f"not kept ({why}), so each command compiles {names} for seconds; once, run: {once}"
