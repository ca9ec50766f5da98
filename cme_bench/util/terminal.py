"""Lines for a terminal. What a model, a data set or a file name says may not steer it."""

from __future__ import annotations

import re
import sys
from typing import TextIO

# Controls other than tab and newline (escape sequences begin with one), marks that reorder text, and the
# stand-ins for bytes of a file's name that are no text.
_STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """``text`` with everything that would steer a terminal as a visible escape: ``\\x1b`` in place of ESC."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def say(message: object = "", *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print, :func:`visible`, at once."""
    print(visible(str(message)), end=end, file=file or sys.stdout, flush=True)


def markup(text: str) -> str:
    """``text`` for a place where Rich looks for markup: shown as it is, :func:`visible`."""
    from rich.markup import escape

    return escape(visible(text))
