"""``--config FILE`` and ``--from RUN``: options that stand in a file, or in the record of an earlier run.

Both fill what the command line leaves out; an option that is typed wins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer

from cme_bench.cli.options import Parameter
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import Option, inner_type
from cme_bench.util.project import line_of

_TYPED_ONLY = {
    "allow-code": "is only for the command line: a file of others would run its own code",
    "plugin": "is only for the command line: a file of others would run its own code",
    "config": "is only for the command line",
    "from": "is only for the command line",
    "dry-run": "is only for the command line",
}
"""Options that a file must not set, and what it is told."""
_PATHS = frozenset({"model", "adapters", "data", "include", "device_map"})
"""Options that may name what lies beside the file."""
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def take_config(context: typer.Context, file: Path) -> None:
    """Make the options of a TOML file this command's defaults, above those of the project file.

    Raises UsageError, naming file and line, for broken TOML, a key that is no option of the command, and a
    value of another type or choice.
    """
    _only_one(context)
    try:
        text = file.read_text(encoding="utf-8-sig")
        values = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--config {file}: {reason}") from error
    known = dict(_by_flag(context))
    found: dict[str, Any] = {}
    for key, value in values.items():
        place = line_of(file, text, key)
        if key in _TYPED_ONLY:
            raise UsageError(f"{place}: {key!r} {_TYPED_ONLY[key]}")
        if key not in known:
            names = known.keys() - _TYPED_ONLY.keys()
            raise UsageError(f"{place}: unknown key {key!r}{did_you_mean(key, names)}")
        parameter = known[key]
        if parameter.name in found:
            raise UsageError(f"{place}: {key!r} and its other name both stand here")
        found[parameter.name] = _checked(place, key, value, parameter, file.parent)
    context.default_map = {**(context.default_map or {}), **found}


def take_run(context: typer.Context, folder: Path) -> None:
    """Make the settings of a run this command's defaults, in place of those of the project file.

    Raises UsageError if the folder is no run, and for what it needs and is no more.
    """
    _only_one(context)
    from cme_bench.runs.again import settings_of

    parameters = _parameters(context)
    names = {parameter.name for parameter in parameters.values()}
    values = settings_of(folder, names - {"plugin", "config", "again"})
    context.default_map = {
        name: _typed(value, parameters[name]) for name, value in values.items() if value is not None
    }


def _only_one(context: typer.Context) -> None:
    if context.meta.setdefault("cme_bench.given", False):
        raise UsageError("--config and --from both say what to run: give one of them")
    context.meta["cme_bench.given"] = True


def _parameters(context: typer.Context) -> Mapping[str, Parameter]:
    found: Mapping[str, Parameter] = context.command.callback.parameters  # type: ignore[union-attr]
    return found


def _by_flag(context: typer.Context) -> Iterator[tuple[str, Parameter]]:
    """Yield every option by its long names, without dashes, and an argument by its name."""
    for parameter in _parameters(context).values():
        names = [parameter.name] if parameter.option.argument else [parameter.flag, *parameter.option.aliases]
        for name in names:
            yield name.removeprefix("--"), parameter


def _checked(place: str, key: str, value: Any, parameter: Parameter, folder: Path) -> Any:
    """Return a value of a file as it would be typed. UsageError, with its place, if the option takes no such
    value."""
    typed = _typed(value, parameter)
    kind = inner_type(parameter.typed)
    several = get_origin(kind) is list
    one = inner_type(kind.__args__[0]) if several else kind
    for each in typed if several else [typed]:
        if not _fits(each, one):
            raise UsageError(f"{place}: {key!r} takes {_KINDS[one]}, not {each!r}")
        least = parameter.option.minimum
        if least is not None and each < least:
            raise UsageError(f"{place}: {key!r} must be at least {least:g}, not {each!r}")
    if parameter.name in _PATHS:
        texts = [_found(place, each, folder) for each in (typed if several else [typed])]
        typed = texts if several else texts[0]
    try:
        parameter.value([Path(v) if one is Path else v for v in typed] if several else typed)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    return typed


def _typed(value: Any, parameter: Parameter) -> Any:
    """Return a value as the command line has it: pairs for a mapping, commas for a list in one word."""
    if isinstance(value, Mapping):
        return [f"{key}={_word(inner)}" for key, inner in value.items()]
    if parameter.option.separated and isinstance(value, list):
        return ",".join(map(str, value))
    several = get_origin(inner_type(parameter.typed)) is list
    if several:
        return list(value) if isinstance(value, list | tuple) else [value]
    if inner_type(parameter.typed) is str and parameter.name == "tasks" and isinstance(value, list):
        return ",".join(map(str, value))
    return value


def _word(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(value, str if kind is Path else kind)


def _found(place: str, text: str, folder: Path) -> str:
    """Return a path from the working folder, or where nothing is there from the file's own; any other text as
    it is. UsageError if both are there."""
    here, beside = Path(text), folder / text
    if not beside.exists() or here.is_absolute() or here == beside:
        return text
    if here.exists() and not here.samefile(beside):
        raise UsageError(f"{place}: {here.resolve()} or {beside.resolve()}? Write one of them whole")
    return text if here.exists() else str(beside)


ConfigFile = Annotated[
    Path | None,
    Option(
        'A TOML file of options, named as here without dashes: tasks = "nli". What is typed wins.',
        metavar="FILE.toml",
        prepare=take_config,
    ),
]
FromRun = Annotated[
    Path | None,
    Option(
        "Repeat the settings of an earlier run, but for its --out. What is typed wins.",
        flag="--from",
        metavar="RUN",
        prepare=take_run,
    ),
]
