"""The file that computes a method, where it is not this package's: its contents decide answers."""

from __future__ import annotations

import hashlib
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path

_OURS = ("cme_bench", "peft")


@dataclass(frozen=True, slots=True)
class Code:
    """``file``: where a method's classes are written; ``hash``: sha256 of it, and of its whole package where
    it has one."""

    file: str
    hash: str


def code_of(*classes: type) -> Code | None:
    """Return the code of ``classes`` or functions; None for those of this package or of PEFT."""
    outside = [cls for cls in classes if cls.__module__.partition(".")[0] not in _OURS]
    if not outside:
        return None
    digest = hashlib.sha256()
    shown = "unknown"
    for cls in sorted(outside, key=lambda cls: cls.__module__):
        files = _files(cls)
        if not files:  # typed into a session: its text is all there is
            digest.update(_text(cls).encode())
        for file in files:
            shown = str(file) if shown == "unknown" else shown
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return Code(shown, digest.hexdigest())


def _files(cls: type) -> list[Path]:
    """Return the class's own file first; then the other modules of the package that it is in."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None or not Path(file).is_file():
        return []
    top = sys.modules.get(cls.__module__.partition(".")[0])
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    others = sorted(other for folder in folders for other in folder.rglob("*.py") if other != Path(file))
    return [Path(file), *others]


def _text(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return cls.__qualname__
