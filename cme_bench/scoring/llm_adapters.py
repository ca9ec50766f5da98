"""LLM-Adapters' reading of an answer, as its scripts publish it; the scores of its papers rest on it.

``commonsense_evaluate.py`` and ``evaluate.py`` at commit 8166572 (Hu et al. 2023, arXiv 2304.01933). The
rules give false credit: "not true" answers true, and in "Answer: C" the first of A to E is the A of "Answer".
So the tasks show the score of our own rules beside them (``acc_stated``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cme_bench.scoring.answer import NOTHING, Extraction
from cme_bench.scoring.labels import extract_label
from cme_bench.scoring.letters import extract_letter

TOLERANCE = 0.001
"""Numbers as near as this are equal."""
_NUMBER = re.compile(r"-?\d+\.?\d*")


def first_choice(response: str, choices: Sequence[str]) -> Extraction:
    """Return the choice that occurs first, anywhere in the response and in its own case."""
    found = re.search("|".join(map(re.escape, choices)), response.strip())
    if found is None:
        return NOTHING
    return Extraction(found.group(), "first", choices.index(found.group()))


def stated_choice(response: str, choices: Sequence[str]) -> Extraction:
    """Return the choice that the response states by the rules of our own tasks."""
    letters = all(len(choice) == 1 for choice in choices)
    return extract_letter(response, choices, ()) if letters else extract_label(response, choices)


def last_number(response: str) -> tuple[float | None, Extraction]:
    """Return the last number of the response, commas taken out, and how it stands there."""
    found = _NUMBER.findall(response.replace(",", ""))
    if not found:
        return None, NOTHING
    return float(found[-1]), Extraction(found[-1], "last")


def near(found: float | None, expected: float) -> bool:
    """Return whether a number counts as the expected one."""
    return found is not None and abs(expected - found) <= TOLERANCE
