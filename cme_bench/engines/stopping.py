"""Where generated text ends: the rule that every engine follows."""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_stop(text: str, stop: Sequence[str]) -> str | None:
    """``text`` before the first stop string in it, None when there is none; an empty string never stops."""
    found = [text.find(s) for s in stop if s]
    found = [place for place in found if place >= 0]
    return text[: min(found)] if found else None
