"""Models that are made on this machine from packages of the Python registry, asked for by a name of ours."""

from __future__ import annotations

from pathlib import Path

from cme_bench.util.notes import Note, unheard

BUNDLED = ("smollm2", "smollava", "gemma3-270m")
NAMES = "'smollm2', 'smollava' or 'gemma3-270m'"
"""For messages."""


def bundled_folder(name: str) -> Path:
    """Return where the bundled model ``name`` is, made or not."""
    from cme_bench.models import gemma3, smollava, smollm2

    folders = {"smollm2": smollm2.model_folder, "smollava": smollava.model_folder}
    return (folders | {"gemma3-270m": gemma3.model_folder})[name]()


def ensure_bundled(name: str, *, offline: bool = False, note: Note = unheard) -> Path:
    """Make the bundled model ``name`` on first use, and return its folder.

    Raises UsageError if it is absent and ``offline``, CmeError if it cannot be made.
    """
    from cme_bench.models import gemma3, smollava, smollm2

    makers = {"smollm2": smollm2.ensure, "smollava": smollava.ensure, "gemma3-270m": gemma3.ensure}
    return makers[name](offline=offline, note=note)
