"""Where images stand in a prompt: one mark for each, in their order."""

from __future__ import annotations

from cme_bench.images.image import MARK, ImageError


def with_marks(question: str, count: int) -> str:
    """Return a question with the marks of its ``count`` images.

    One that places them itself stays as it is; before one without a mark they all stand, in a line of their
    own, as lmms-eval has it.
    """
    if not count or MARK in question:
        return question
    return " ".join([MARK] * count) + "\n" + question


def check_marks(prompt: str, images: int) -> None:
    """Raise ImageError if a prompt has not one mark for each of its images."""
    marks = prompt.count(MARK)
    if marks != images:
        raise ImageError(f"the prompt has {_of(marks, 'mark')} {MARK} for {_of(images, 'image')}")


def _of(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
