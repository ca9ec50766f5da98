"""Describe an option where its name, type and default stand: in the annotation of a dataclass's field.

The command line makes an option of every field that has such a description (:mod:`cme_bench.cli.options`);
Python code builds the same dataclass and calls :func:`check_choices`, so that both refuse the same values.

    limit: Annotated[int | None, Option("Only N items of each task.", minimum=1)] = None
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from cme_bench.util.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Option:
    """Say of an option what its name, type and default do not.

    help: a sentence. flag: the long name, where it is not the field's; short: ``-o``; aliases: former names.
    panel: the heading under which ``--help`` lists it. argument: whether it goes by its place, not by a name.
    minimum: the least number. metavar: the value's name in ``--help``. separated: whether a tuple is typed as
    one word with commas. parse: makes the field's value of what is typed; the type of its parameter is the
    type of the option. noun: what an unknown value is called, by default the field's name; or the whole
    message, with places for {value}, {hint} and {known}. hidden: whether ``--help`` leaves it out. prepare:
    called before other options are read, with Typer's context and the value, where one is given.
    """

    help: str
    flag: str | None = None
    short: str | None = None
    aliases: tuple[str, ...] = ()
    panel: str | None = None
    argument: bool = False
    minimum: float | None = None
    metavar: str | None = None
    separated: bool = False
    parse: Callable[[Any], Any] | None = None
    noun: str | None = None
    hidden: bool = False
    prepare: Callable[[Any, Any], None] | None = None

    def flag_of(self, name: str) -> str:
        """Return the option's long name, for a field called ``name``."""
        return self.flag or f"--{name.strip('_').replace('_', '-')}"


DType = Literal["auto", "float32", "bfloat16", "float16"]
FormatName = Literal["auto", "chat", "plain", "teamlora", "alpaca", "llm-adapters"]
ThinkingChoice = Literal["auto", "on", "off", "template"]
BosMode = Literal["auto", "always", "never"]
BOS_UNKNOWN = "--bos {value}: unknown{hint} ({known})"
LocalEngine = Literal["hf", "vllm", "ray"]
"""The engines that compute with weights that they load."""
Engine = Literal["hf", "vllm", "ray", "server"]
TableFormat = Literal["md", "latex", "html", "csv"]
TABLE_FORMAT_UNKNOWN = "unknown table format {value!r}{hint}; one of {known}"
Quantize = Literal["4bit", "8bit"]
Worker = Literal["hf", "vllm"]
"""The engines that compute in a worker of ray."""

Model = Annotated[
    str,
    Option(
        "A model folder, a hub name (OWNER/NAME[/SUB][@REVISION]), 'smollm2', 'smollava' or 'gemma3-270m'.",
        argument=True,
    ),
]
Data = Annotated[str, Option("'hub', 'mini' (our own smoke-test items), or a folder of DATASET/SPLIT.jsonl.")]
Limit = Annotated[int | None, Option("Only N items of each task: the first of a fixed shuffle.", minimum=1)]
Include = Annotated[tuple[Path, ...], Option("Folder of your own task files.")]
AllowCode = Annotated[bool, Option("Run !function code of --include files.")]
Offline = Annotated[bool, Option("Never use the network.")]


def described(source: Any) -> Iterator[tuple[str, Any, Option]]:
    """Yield (name, type, description) of each field of a dataclass that has a description."""
    yield from _described(source)


@functools.cache
def _described(source: Any) -> Sequence[tuple[str, Any, Option]]:
    """Return what ``described`` yields: reading annotations takes long, and each call of a run asks."""
    hints = get_type_hints(source, include_extras=True)
    split = ((field.name, *split_hint(hints[field.name])) for field in fields(source))
    return tuple((name, kind, option) for name, kind, option in split if option is not None)


def split_hint(hint: Any) -> tuple[Any, Option | None]:
    """Return the type that an annotation names, and its description if it has one."""
    if get_origin(hint) is not Annotated:
        return hint, None
    kind, *extras = get_args(hint)
    return kind, next((extra for extra in extras if isinstance(extra, Option)), None)


def inner_type(kind: Any) -> Any:
    """Return T of ``T | None``; every other type as it is."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    parts = tuple(each for each in get_args(kind) if each is not type(None))
    return Union[parts]  # noqa: UP007 - made at run time


def choices(kind: Any) -> tuple[str, ...]:
    """Return the values that a type allows: those of a Literal, or of a tuple's or list's. Empty: any."""
    kind = inner_type(kind)
    if get_origin(kind) in (tuple, list):
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        return tuple(value for part in get_args(kind) for value in choices(part))
    return get_args(kind) if get_origin(kind) is Literal else ()


def check_choices(options: Any, source: type[Any] | None = None) -> None:
    """Raise UsageError for the first field of a dataclass that has none of its choices.

    ``source``: the class whose fields are checked, by default all of them.
    """
    for name, kind, option in described(source or type(options)):
        check_choice(getattr(options, name), kind, option.noun or name.replace("_", " "))


def check_minimums(options: Any, source: type[Any] | None = None) -> None:
    """Raise UsageError for the first field that is no number, below its minimum, or too large for a file."""
    for name, kind, option in described(source or type(options)):
        value, least, inner = getattr(options, name), option.minimum, inner_type(kind)
        if value is None or inner not in (int, float):
            continue
        whole = inner is int
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not number or (least is not None and not value >= least):  # NaN is at least nothing
            text = f"a {'whole ' if whole else ''}number{'' if least is None else f' of at least {least}'}"
            raise UsageError(f"{option.flag_of(name)}: {text}, not {value!r}")
        if whole and abs(value) >= _TOO_LARGE:
            raise UsageError(f"{option.flag_of(name)}: a whole number of at most 63 bits, not {value}")


_TOO_LARGE = 1 << 63


def check_choice(value: Any, kind: Any, noun: str) -> None:
    """Raise UsageError if ``value``, or one in it, is none of the choices of ``kind``. None always is one."""
    known = choices(kind)
    values: Sequence[Any] = value if isinstance(value, tuple | list) else (value,)
    for each in values if known else ():
        if each is not None and each not in known:
            hint = did_you_mean(str(each).lower(), known)
            text = noun if "{" in noun else f"unknown {noun} {{value!r}}{{hint}} (one of {{known}})"
            raise UsageError(text.format(value=each, hint=hint, known=", ".join(known)))
