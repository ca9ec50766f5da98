"""The table of answers in ``tests/scoring/answers``: its rows, what is read out of them, how well rules do.

``python -m tests.support.answer_table docs/answers.md`` writes the measured table into that page.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from cme_bench.scoring.extraction import Extraction
from cme_bench.scoring.generation import AnswerType, GoldAnswer, score_text

FOLDER = Path(__file__).parents[1] / "scoring" / "answers"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True)
class Row:
    """One response: what it answers with (``reading``, None for no answer), the rule that is to read it, and
    the right answer to score it by (of choices the ``reading`` itself, else ``references``, ``scores``)."""

    type: AnswerType
    group: str
    response: str
    reading: str | None
    rule: str
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

    def gold(self, choice: str = "") -> GoldAnswer:
        if self.choices:
            gold = self.choices.index(choice or self.reading or self.choices[0])
            return GoldAnswer(self.type, self.choices, gold, self.options)
        return GoldAnswer(self.type, references=self.references)

    def read(self) -> Extraction:
        return score_text(self.response, self.gold()).answer

    def is_read_right(self, found: Extraction) -> bool:
        """Whether the reading is the right one, by whichever rule."""
        if self.type == "number" and self.reading is not None and found.text:
            return Fraction(found.text) == Fraction(self.reading)
        if self.type in ("math", "summary"):
            return (found.rule == "none") == (self.rule == "none") and self.scored() == self.scores
        return found.text == (self.reading or "")

    def scored(self) -> tuple[float, ...]:
        scores = score_text(self.response, self.gold()).scores
        names = {"math": ("acc",), "number": ("acc",), "short": ("em",)}
        shown = names.get(self.type, ("rouge_1", "rouge_2", "rouge_l"))
        return tuple(round(float(scores[name]), 9) for name in shown)  # type: ignore[arg-type]  # no pairs here


@functools.cache
def _tables() -> tuple[dict[str, Any], ...]:
    """Return the content of every file, each read once."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return tuple(yaml.load(file.read_bytes(), loader) for file in sorted(FOLDER.glob("*.yaml")))


@functools.cache
def rows() -> tuple[Row, ...]:
    """Rows with a reading, of all files."""
    return tuple(row for table in _tables() for row in _rows(table))


def _rows(table: dict[str, Any]) -> Iterator[Row]:
    kind = table["type"]
    for group, content in table["groups"].items():
        own = content if isinstance(content, dict) else {"rows": content}
        for row in own["rows"]:
            if kind in ("letter", "label"):
                choices = tuple(own.get("letters") or own.get("labels") or table["letters"])
                options = tuple(own.get("options") or table.get("options") or ())
                yield Row(kind, group, *row, choices, options)
            elif kind == "math":
                response, reference, right, rule = row
                yield Row(kind, group, response, None, rule, references=(reference,), scores=(right,))
            elif kind == "summary":
                response, references, *scores = row
                rule = (
                    "none"
                    if not any(scores) and "<think>" in response and "</think>" not in response
                    else "text"
                )
                rule = rule if response else "none"
                yield Row(
                    kind,
                    group,
                    response,
                    None,
                    rule,
                    references=tuple(references),
                    scores=tuple(round(score, 9) for score in scores),
                )
            else:
                yield Row(kind, group, *row)


@functools.cache
def scored_rows() -> tuple[Row, ...]:
    """Rows of numbers and texts with their references and score alone."""
    found = []
    for table in _tables():
        for response, reference, right in table.get("equal", ()):
            references = tuple(reference) if isinstance(reference, list) else (reference,)
            found.append(
                Row(table["type"], "equal", response, None, "", references=references, scores=(right,))
            )
    return tuple(found)


def measured() -> str:
    """Precision and recall of every rule on the table, as a Markdown table."""
    wanted: Counter[tuple[str, str]] = Counter()
    read: Counter[tuple[str, str]] = Counter()
    right: Counter[tuple[str, str]] = Counter()
    found_right: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    for row in rows():
        found = row.read()
        good = row.is_read_right(found)
        kinds[row.type] += 1
        silent[row.type] += row.rule == "none"
        wanted[row.type, row.rule] += 1
        read[row.type, found.rule] += 1
        right[row.type, found.rule] += good
        found_right[row.type, row.rule] += good and found.rule == row.rule
    lines = [
        "| type | rule | rows it should read | rows it must not | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for kind, rule in sorted(wanted.keys() | read.keys()):
        key = kind, rule
        name = "no answer" if rule == "none" else f"`{rule}`"
        lines.append(
            f"| {kind} | {name} | {wanted[key]} | {kinds[kind] - wanted[key]} | "
            f"{_percent(right[key], read[key])} | {_percent(found_right[key], wanted[key])} |"
        )
    total = len(rows()) + len(scored_rows())
    return f"{total} rows, {sum(silent.values())} of them without an answer.\n\n" + "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def page_with(text: str) -> str:
    """The page with the measured table in its place."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{measured()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        page.write_text(page_with(page.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(measured())
