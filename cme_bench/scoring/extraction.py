"""Finding the answer in a generated text, without punishing its phrasing and without guessing.

Every rule is tried in a fixed order and the first that decides wins; its name is stored with the item, so
that a reader can see how each answer was found. A text that names two different answers decides nothing.
"""

from __future__ import annotations

from cme_bench.scoring.answer import NOTHING, Extraction
from cme_bench.scoring.labels import extract_label
from cme_bench.scoring.letters import extract_letter
from cme_bench.scoring.short import extract_short_answer, extract_text

__all__ = [
    "NOTHING",
    "Extraction",
    "extract_label",
    "extract_letter",
    "extract_short_answer",
    "extract_text",
]
