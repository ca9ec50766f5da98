"""Rows of one's own with images: ``{image, conversations}`` as LLaVA writes it, or an image beside any form.

An image stands where its mark ``<image>`` does in the prompt; before a prompt without a mark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cme_bench.images.decode import decode_image
from cme_bench.images.image import MARK, Image
from cme_bench.images.marks import check_marks, with_marks
from cme_bench.training.own_rows import Completion, Conversation, Instruction, TextRow
from cme_bench.util.errors import UsageError

COLUMNS = ("image", "images")


@dataclass(frozen=True, slots=True)
class Pictured:
    """A row with its images, in the order of their marks; ``place``: of it, for messages."""

    row: TextRow
    images: tuple[Image, ...]
    place: str

    @property
    def asked(self) -> str:
        return self.row.asked

    @property
    def target(self) -> str:
        return self.row.target

    @property
    def bare(self) -> Pictured:
        """The same without its place: rows are alike if they are."""
        row = replace(self.row, place="") if isinstance(self.row, Conversation) else self.row
        return replace(self, row=row, place="")

    def digest(self) -> bytes:
        """Return what tells its images from others'."""
        return hashlib.sha256(" ".join(image.digest for image in self.images).encode()).digest()


def with_pictures(
    rows: Sequence[TextRow], values: Sequence[Mapping[str, Any]], origin: str, place: Any
) -> list[TextRow | Pictured]:
    """Return rows with the images of their table's ``values``; a row without one stays as it is.

    Paths begin at the folder of the file ``origin``. UsageError, with the row's place, for an image that
    cannot be read, for other marks than images, and for a mark in an answer.
    """
    column = [name for name in COLUMNS if name in values[0]]
    if not column:
        return list(rows)
    if len(column) > 1:
        raise UsageError(f"{origin}: has the columns image and images; take one of them out")
    file = Path(origin)
    folder = file.parent if file.is_file() else None
    made: list[TextRow | Pictured] = []
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        found = value[column[0]]
        listed = found if isinstance(found, list | tuple) else [] if found in (None, "") else [found]
        images = tuple(decode_image(each, folder=folder, place=place(number)) for each in listed)
        made.append(_pictured(row, images, place(number)) if images or MARK in row.asked else row)
    return made


def _pictured(row: TextRow, images: tuple[Image, ...], place: str) -> Pictured:
    row = row if MARK in row.asked else _marked(row, len(images))
    if MARK in row.target or (
        isinstance(row, Conversation) and any(MARK in turn.content for turn in row.turns if turn.learnt)
    ):
        raise UsageError(f"{place}: an answer has the mark {MARK}; images stand in prompts only")
    try:
        check_marks(row.asked, len(images))
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    return Pictured(row, images, place)


def _marked(row: TextRow, count: int) -> TextRow:
    """Return a row with the marks of its images before its first question."""
    match row:
        case Instruction():
            return replace(row, instruction=with_marks(row.instruction, count))
        case Completion():
            return replace(row, prompt=with_marks(row.prompt, count))
    first = next((i for i, turn in enumerate(row.turns) if turn.role == "user"), None)
    if first is None:
        return row
    turns = list(row.turns)
    turns[first] = replace(turns[first], content=with_marks(turns[first].content, count))
    return replace(row, turns=tuple(turns))
