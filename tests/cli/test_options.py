"""Options from dataclasses: odd fields, and every option that the command line had before, unchanged."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from options_table import options_table
from typer.main import get_command
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.cli.help import command, examples_of, group
from cme_bench.cli.options import as_typed, with_options
from cme_bench.util.errors import UsageError
from cme_bench.util.options import Option, check_choices

GOLDEN: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "data" / "options.json").read_text()
)


def pairs(texts: list[str]) -> dict[str, int]:
    """Return ``["a=1"]`` as a mapping."""
    return {key: int(value) for key, value in (text.split("=") for text in texts)}


def yes(text: str) -> bool:
    """Return whether ``text`` is yes."""
    return text == "yes"


@dataclass(frozen=True, slots=True)
class Odd:
    """A field of every kind."""

    source: Annotated[Path, Option("A file.", argument=True)]
    must: Annotated[int, Option("A number.", minimum=2)]
    colour: Annotated[Literal["red", "blue"], Option("A colour.", panel="Paint")] = "red"
    shade: Annotated[
        Literal["light", "dark"] | None, Option("A shade.", noun="--shade {value}: no{hint}")
    ] = None
    switch: Annotated[bool, Option("Off unless given.")] = False
    both_ways: Annotated[bool, Option("On unless refused.")] = True
    undecided: Annotated[bool | None, Option("Neither.")] = None
    paths: Annotated[tuple[Path, ...], Option("Many.", short="-p")] = ()
    marks: Annotated[tuple[Literal["a", "b"], ...], Option("With commas.", separated=True)] = ("a", "b")
    lone: Annotated[tuple[str, ...] | None, Option("With commas, or none.", separated=True)] = None
    settings: Annotated[Mapping[str, int], Option("Pairs.", flag="--set", parse=pairs)] = field(
        default_factory=dict
    )
    renamed: Annotated[float, Option("Was something else.", aliases=("--former",))] = 0.5
    quoted: Annotated[bool | None, Option("A word that is parsed.", parse=yes)] = None
    from_: Annotated[str, Option("A keyword of Python.")] = ""
    untold: tuple[int, ...] = (1,)


@dataclass(frozen=True, slots=True)
class More:
    """Shares ``colour`` with Odd."""

    colour: Annotated[Literal["red", "blue"], Option("A colour.", panel="Paint")] = "red"
    size: Annotated[int | None, Option("A size.")] = None


def typed(*words: str) -> tuple[Odd, More, str]:
    """Return what a command's function is given for a command line."""
    got: list[tuple[Odd, More, str]] = []
    one = group()

    def paint(odd: Odd, more: More, name: Annotated[str, Option("A name.")] = "x") -> None:
        """Paint."""
        got.append((odd, more, name))

    command(one, {"paint": "paint FILE"})(paint)
    command(one, {}, name="other")(lambda: None)
    result = CliRunner().invoke(one, ["paint", *words])
    if result.exception is not None:
        raise result.exception
    return got[0]


def test_fields_at_their_defaults() -> None:
    odd, more, name = typed("in.txt", "--must", "3")
    assert odd == Odd(Path("in.txt"), 3)
    assert (more, name) == (More(), "x")


def test_every_kind_of_field() -> None:
    odd, more, _ = typed(
        *shlex.split(
            "in.txt --must 2 --colour blue --shade dark --switch --no-both-ways --no-undecided -p a --paths "
            "b --marks 'b, a' --lone x,,y --set a=1 --set b=2 --former 2 --quoted no --from there --size 4"
        )
    )
    assert odd == Odd(
        Path("in.txt"),
        2,
        colour="blue",
        shade="dark",
        switch=True,
        both_ways=False,
        undecided=False,
        paths=(Path("a"), Path("b")),
        marks=("b", "a"),
        lone=("x", "y"),
        settings={"a": 1, "b": 2},
        renamed=2.0,
        quoted=False,
        from_="there",
    )
    assert more == More("blue", 4), "one option fills the field of both"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--colour bleu", "unknown colour 'bleu'; did you mean 'blue'? (one of red, blue)"),
        ("--colour ''", "unknown colour '' (one of red, blue)"),
        ("--shade drak", "--shade drak: no; did you mean 'dark'?"),
        ("--marks a,c", "unknown marks 'c' (one of a, b)"),
    ],
)
def test_choices_are_refused_with_the_nearest(words: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        typed("in.txt", "--must", "3", *shlex.split(words))
    assert str(refused.value) == message


def test_python_refuses_the_same_choices() -> None:
    check_choices(Odd(Path(), 2))
    with pytest.raises(UsageError, match="unknown colour 'bleu'"):
        check_choices(Odd(Path(), 2, colour="bleu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("words", ["in.txt", "--must 3", "in.txt --must 1", "in.txt --must 3 --no-switch"])
def test_typer_refuses_the_rest(words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        typed(*words.split())
    assert stop.value.code == 2


def test_the_command_line_of_a_dataclass() -> None:
    options = Odd(Path("in.txt"), 3, colour="blue", renamed=2.0)
    assert list(as_typed(options)) == ["in.txt", "--must", "3", "--colour", "blue", "--renamed", "2.0"]


def test_help_shows_choices_panels_defaults_and_examples() -> None:
    one = group()

    def paint(odd: Odd) -> None:
        """Paint a file."""

    command(one, {"paint it": "paint in.txt --must 3"})(paint)
    command(one, {}, name="other")(lambda: None)
    text = CliRunner().invoke(one, ["paint", "--help"], env={"COLUMNS": "110"}).output
    assert "\nPaint:\n  --colour red|blue  A colour.  [default: red]\n" in text
    assert "--marks a|b[,...]" in text and "[default: a,b]" in text
    assert "Examples:\n  paint it:\n    paint in.txt --must 3\n" in text
    assert "untold" not in text


def test_what_cannot_be_an_option_is_no_command() -> None:
    @dataclass
    class Untold:
        size: int

    @dataclass
    class Other:
        colour: Annotated[str, Option("Not as in More.")] = "red"

    def untold(options: Untold) -> None: ...
    def unlike(options: More, other: Other) -> None: ...
    def bare(size: int) -> None: ...

    untold.__annotations__["options"], unlike.__annotations__["other"] = Untold, Other
    for function, message in ((untold, "has no description"), (unlike, "twice"), (bare, "no dataclass")):
        with pytest.raises(TypeError, match=message):
            with_options(function)


SAME_DEFAULT = {
    ("run", "--engine"): "auto",
    ("run", "--worker"): "hf",
    ("efficiency", "--methods"): "default",
}
"""Defaults that were written otherwise and mean the same."""


@pytest.mark.parametrize("path", GOLDEN)
def test_every_option_is_as_it_was(path: str) -> None:
    now = options_table(app)[path]
    for name, was in GOLDEN[path].items():
        was = was | {"default": SAME_DEFAULT.get((path, name), was["default"])}  # noqa: PLW2901
        is_now = now[name]
        alike = is_now | {"default": is_now["default"] or was["default"]}
        assert alike == was, f"{path} {name}"
    arguments = [name for name, row in now.items() if row["kind"] == "argument"]
    assert arguments == [name for name, row in GOLDEN[path].items() if row["kind"] == "argument"]
    added = now.keys() - GOLDEN[path].keys()
    assert not [name for name in added if now[name].get("required")], "an addition must not be asked for"


def commands() -> list[tuple[str, Any]]:
    """Return every command with its path."""
    found: list[tuple[str, Any]] = []
    below: list[tuple[str, Any]] = [("", get_command(app))]
    while below:
        path, one = below.pop()
        inner = getattr(one, "commands", {})
        below += [(f"{path} {name}".strip(), each) for name, each in inner.items()]
        found += [] if inner else [(path, one)]
    return found


@pytest.mark.parametrize(("path", "one"), commands(), ids=[path for path, _ in commands()])
def test_every_command_has_examples_that_can_be_typed(path: str, one: Any) -> None:
    known = {name for row in options_table(app)[path].values() for name in row["names"]}
    lines = examples_of(one).values()
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert path in line
        if one.context_settings.get("ignore_unknown_options"):  # its options are another program's
            continue
        assert {word for word in words if word.startswith("-") and word != "-m"} <= known, line
