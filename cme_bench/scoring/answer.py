"""The answer that was read out of a response."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer that was read out of a response.

    ``text``: the answer as text, empty if none was found. ``choice``: its index among the choices, None for
    free text or if none was found. ``rule``: which rule decided, "none" if no rule did.
    """

    text: str
    rule: str
    choice: int | None = None


NOTHING = Extraction(text="", rule="none")
