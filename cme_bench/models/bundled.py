"""Models that are made on this machine from packages of the Python registry, asked for by a name of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cme_bench.util.notes import Note, unheard

BUNDLED = ("smollm2", "smollava", "gemma3-270m")
NAMES = "'smollm2', 'smollava' or 'gemma3-270m'"
"""For messages."""


class _Maker(Protocol):
    """A module that makes a model."""

    def model_folder(self) -> Path: ...

    def ensure(self, *, offline: bool = False, note: Note = unheard) -> Path: ...


def bundled_folder(name: str) -> Path:
    """Return where the bundled model ``name`` is, made or not."""
    return _maker(name).model_folder()


def ensure_bundled(name: str, *, offline: bool = False, note: Note = unheard) -> Path:
    """Make the bundled model ``name`` on first use, and return its folder.

    Raises UsageError if it is absent and ``offline``, CmeError if it cannot be made.
    """
    return _maker(name).ensure(offline=offline, note=note)


def _maker(name: str) -> _Maker:
    from cme_bench.models import gemma3, smollava, smollm2

    makers: tuple[_Maker, ...] = (smollm2, smollava, gemma3)
    return dict(zip(BUNDLED, makers, strict=True))[name]
