"""Options of `tasks new`; light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cme_bench.util.errors import UsageError
from cme_bench.util.options import Option

READING, FILES = "How rows are read", "How files are written"
_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|"}


def parse_delimiter(text: str) -> str:
    """Return the character that parts fields. Raises UsageError unless it is one, or a name of one."""
    delimiter = _DELIMITERS.get(text, text)
    if len(delimiter) != 1:
        raise UsageError(f"--sep {text!r}: one character parts the fields (or 'tab')")
    return delimiter


def parse_quotes(text: str) -> str:
    """Return the mark that encloses fields, empty for none. Raises UsageError unless it is yes, single or
    no."""
    marks = {"yes": '"', "single": "'", "no": ""}
    if text not in marks:
        raise UsageError(f"--quote {text}: {', '.join(marks)}")
    return marks[text]


def parse_decimal(text: str) -> str:
    """Return what parts decimals. Raises UsageError unless it is comma or point."""
    if text not in ("", "comma", "point"):
        raise UsageError(f"--decimal {text}: comma or point")
    return text


def delimiter_option(panel: str) -> Option:
    """Return the option ``--sep``, under a heading."""
    text = "The sign between the fields of a CSV file."
    return Option(text, flag="--sep", parse=parse_delimiter, panel=panel)


def quotes_option(panel: str) -> Option:
    """Return the option ``--quote``, under a heading."""
    return Option(
        "Whether quotation marks (\"; single: ') enclose fields of a CSV file, or are characters.",
        flag="--quote",
        metavar="yes|single|no",
        parse=parse_quotes,
        panel=panel,
    )


@dataclass(frozen=True, slots=True)
class NewOptions:
    """The task that is made, and where its rows come from."""

    name: Annotated[str, Option("Name of the task.", argument=True)]
    source: Annotated[
        str,
        Option(
            "A .jsonl, .json, .csv, .tsv or .parquet file (packed too: .gz, .zip, ...), or "
            "hub:OWNER/NAME[:CONFIG].",
            flag="--from",
        ),
    ]
    instruction: Annotated[str | None, Option("The text that the prompt begins with.")] = None
    form: Annotated[
        str,
        Option("likelihood (of the options or labels) or generate.", metavar="likelihood|generate"),
    ] = ""
    shots_from: Annotated[Path | None, Option("A file of exemplars for --shots, like --from.")] = None
    split: Annotated[str, Option("The split of a hub dataset.")] = "test"
    domain: Annotated[str, Option("Domain in tables.")] = "own"
    licence: Annotated[str, Option("Licence of the rows.")] = "not stated"
    out: Annotated[Path, Option("Folder of the task file.", short="-o")] = Path()
    force: Annotated[bool, Option("Replace a task file of this name.")] = False

    @property
    def on_hub(self) -> bool:
        """Whether the rows are a dataset of the hub."""
        return self.source.startswith("hub:")


@dataclass(frozen=True, slots=True)
class Told:
    """The user's settings of a new task; an empty one is guessed. ``way``: how answers name options."""

    kind: Annotated[
        str,
        Option(
            "The kind of question; default: guessed.",
            flag="--type",
            metavar="choice|label|qa|number|math|summary",
            panel=READING,
        ),
    ] = ""
    question: Annotated[
        tuple[str, ...], Option("Columns that are shown, comma-separated.", separated=True, panel=READING)
    ] = ()
    images: Annotated[
        tuple[str, ...],
        Option(
            "Columns of images (PNG, JPEG or WebP: paths beside the rows, bytes or base64), "
            "comma-separated, or 'none'; default: the one that holds images.",
            separated=True,
            panel=READING,
        ),
    ] = ()
    answer: Annotated[str, Option("The column of the right answer.", panel=READING)] = ""
    choices: Annotated[
        tuple[str, ...],
        Option("The column of a list of options, or one column an option.", separated=True, panel=READING),
    ] = ()
    labels: Annotated[
        tuple[str, ...],
        Option("Names of the labels, in the order of their sorted values.", separated=True, panel=READING),
    ] = ()
    way: Annotated[
        str,
        Option(
            "How answers name their option: text, key, letter, index0 or index1 (places from 0 or 1); "
            "for --type qa: text, or list where a text writes several answers.",
            flag="--answer-is",
            panel=READING,
        ),
    ] = ""
    separator: Annotated[str, Option("Parts several accepted answers in one text.", panel=READING)] = ""
    decimal: Annotated[
        str,
        Option(
            "The sign before the decimals of right answers that are numbers.",
            metavar="comma|point",
            parse=parse_decimal,
            panel=READING,
        ),
    ] = ""


@dataclass(frozen=True, slots=True)
class FileOptions:
    """How a file is written, where the file does not say. ``quotes``: the mark that encloses fields of CSV,
    empty for none."""

    encoding: Annotated[
        str | None,
        Option("Encoding of the files, where it is not UTF-8 and no byte order mark says it.", panel=FILES),
    ] = None
    delimiter: Annotated[str | None, delimiter_option(FILES)] = None
    quotes: Annotated[str | None, quotes_option(FILES)] = None
