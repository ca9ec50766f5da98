"""Options and habits that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cme_bench.util.options import Option
from cme_bench.util.terminal import say

RunFolder = Annotated[Path, Option("A run folder.", argument=True)]
AllowMixed = Annotated[bool, Option("Compare runs that differ; each difference becomes a note.")]
Output = Annotated[Path | None, Option("Write here instead.", short="-o")]


def tell(message: str) -> None:
    """Show a note on stderr: a line on what is being done."""
    say(message, file=sys.stderr)


def print_or_write(text: str, output: Path | None, name: str) -> None:
    """Print ``text``, or write it to ``output`` and say where ``name`` is."""
    if output is None:
        say(text, end="")
        return
    from cme_bench.util.files import write_text

    write_text(output, text)
    say(f"{name} is in {output}")
