"""easy-VQA: pictures of one shape in one colour, with questions (github.com/vzhou842/easy-VQA, MIT)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
YES_NO = ("yes", "no")
_WORD = re.compile(r"[a-z]+")


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a picture: ``image`` is its number."""

    text: str
    answer: str
    image: int

    @property
    def choices(self) -> Sequence[str]:
        """The answers that a question of this kind may have."""
        return next(kind for kind in (YES_NO, SHAPES, COLOURS) if self.answer in kind)

    @property
    def facts(self) -> frozenset[str]:
        """The shape and the colour that question and answer together tell of the picture."""
        words = _WORD.findall(self.text)
        named = {word for word in words if word in SHAPES + COLOURS}
        if self.answer in YES_NO:
            denied = "not" in words or "no" in words
            return frozenset(named) if (self.answer == "yes") != denied else frozenset()
        return frozenset(named | {self.answer})


def read_questions(data: Path, split: str) -> list[Question]:
    """Read the questions of ``split`` (train or test) in the package's folder."""
    rows = orjson.loads((data / split / "questions.json").read_bytes())
    return [Question(str(text), str(answer), int(image)) for text, answer, image in rows]


def image_file(data: Path, split: str, image: int) -> Path:
    """Return the PNG of a picture."""
    return data / split / "images" / f"{image}.png"


def labels(questions: Sequence[Question]) -> Mapping[int, frozenset[str]]:
    """Return what all questions of a picture together tell of it: its shape, its colour, one or none."""
    known: dict[int, frozenset[str]] = {}
    for question in questions:
        known[question.image] = known.get(question.image, frozenset()) | question.facts
    return known
