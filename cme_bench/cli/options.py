"""Make commands from functions that take option dataclasses: name, type, default and help stand once.

A parameter whose type is a dataclass becomes one option for each field that has a description
(:class:`cme_bench.util.options.Option`), and the function gets the dataclass built. Any other parameter with
a description is an option itself. A name that stands twice is one option; both must say the same of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import GenericAlias
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

import typer

from cme_bench.util.options import Option, check_choice, choices, described, inner_type, split_hint


@dataclass(frozen=True, slots=True)
class Parameter:
    """One option or argument: ``default`` is MISSING where it must be given."""

    name: str
    kind: Any
    default: Any
    option: Option

    @property
    def typed(self) -> Any:
        """The type that Typer reads from the command line."""
        kind = self.kind
        if self.option.parse is not None:
            (kind,) = (hint for name, hint in get_type_hints(self.option.parse).items() if name != "return")
        if self.option.separated:
            return str | None
        kind = inner_type(kind)
        several = get_origin(kind) in (tuple, list)
        one = inner_type(get_args(kind)[0]) if several else kind
        one = str if choices(one) else one
        return (GenericAlias(list, (one,)) if several else one) | None

    @property
    def typed_default(self) -> Any:
        """The default as it would be typed; None where nothing would be."""
        if self.option.parse is not None:
            return None
        if self.option.separated and self.default is not None:
            return ",".join(self.default)
        return (list(self.default) or None) if isinstance(self.default, tuple | list) else self.default

    def value(self, given: Any) -> Any:
        """Return what the function gets for what was typed."""
        if given is None or given == []:
            return self.default
        if self.option.parse is not None:
            return self.option.parse(given)
        if self.option.separated:
            given = tuple(name.strip() for name in given.split(",") if name.strip())
        elif isinstance(given, list) and get_origin(inner_type(self.kind)) is tuple:
            given = tuple(given)
        check_choice(given, self.kind, self.option.noun or self.name.replace("_", " "))
        return given

    def signature(self) -> inspect.Parameter:
        """Return it as a parameter that Typer understands."""
        required = self.default is MISSING
        facts: dict[str, Any] = {
            "help": self.option.help,
            "min": self.option.minimum,
            "metavar": self.option.metavar or self._choices(),
            "hidden": self.option.hidden,
            "rich_help_panel": self.option.panel,
            "is_eager": self.option.prepare is not None,
            "callback": self._prepared if self.option.prepare else None,
            "autocompletion": self._completed if choices(self.kind) else None,
        }
        info = typer.Argument(**facts) if self.option.argument else typer.Option(*self._names(), **facts)
        default = inspect.Parameter.empty if required else self.typed_default
        kind: Any = Annotated.__class_getitem__((self.typed, info))  # type: ignore[attr-defined]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    def _completed(self, incomplete: str) -> list[str]:
        """Return the values that a shell offers; behind a comma those of a further one."""
        before, comma, begun = incomplete.rpartition(",") if self.option.separated else ("", "", incomplete)
        return [f"{before}{comma}{value}" for value in choices(self.kind) if value.startswith(begun)]

    def _prepared(self, context: typer.Context, given: Any) -> Any:
        if self.option.prepare is not None and given is not None and not context.resilient_parsing:
            self.option.prepare(context, given)
        return given

    def _choices(self) -> str | None:
        known = "|".join(choices(self.kind))
        return f"{known}[,...]" if known and self.option.separated else known or None

    @property
    def flag(self) -> str:
        """The option's long name, as ``--max-length``."""
        return self.option.flag_of(self.name)

    def _names(self) -> Iterator[str]:
        both_ways = inner_type(self.typed) is bool and self.default is not False
        yield f"{self.flag}/--no-{self.flag.removeprefix('--')}" if both_ways else self.flag
        yield from self.option.aliases
        if self.option.short is not None:
            yield self.option.short


@dataclass(frozen=True, slots=True)
class Taker:
    """A parameter of a command's function: a dataclass with the options that fill it, or one option."""

    build: Callable[..., Any] | None
    parameters: tuple[Parameter, ...]

    def filled(self, values: Mapping[str, Any]) -> Any:
        """Return what the function gets; ``values`` are those of all options."""
        if self.build is None:
            return values[self.parameters[0].name]
        return self.build(**{each.name: values[each.name] for each in self.parameters})


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function for Typer: a keyword for each option, in the order of ``function``'s parameters.

    Raises TypeError for a parameter that is neither a dataclass nor described, a field that must be given but
    has no description, and a name that stands twice with another type, default or description.
    """
    takers = dict(_takers(function))
    options: dict[str, Parameter] = {}
    for each in (parameter for taker in takers.values() for parameter in taker.parameters):
        if options.setdefault(each.name, each) != each:
            raise TypeError(f"{function.__name__}: option {each.name!r} stands twice, but not alike")

    def command(**typed: Any) -> None:
        values = {name: option.value(typed[name]) for name, option in options.items()}
        function(**{name: taker.filled(values) for name, taker in takers.items()})

    signature = inspect.Signature([option.signature() for option in options.values()])
    command.__name__, command.__doc__, command.__module__ = (
        function.__name__,
        function.__doc__,
        function.__module__,
    )
    command.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.parameters = options  # type: ignore[attr-defined]
    return command


def as_typed(options: Any) -> Iterator[str]:
    """Yield the words that give the same dataclass on a command line; defaults are left out."""
    for each in _fields(type(options)):
        value = getattr(options, each.name)
        if value != each.default:
            yield from ((str(value),) if each.option.argument else (each.flag, str(value)))


def _takers(function: Callable[..., None]) -> Iterator[tuple[str, Taker]]:
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, option = split_hint(hints[name])
        default = MISSING if parameter.default is parameter.empty else parameter.default
        if option is not None:
            yield name, Taker(None, (Parameter(name, kind, default, option),))
        elif is_dataclass(kind):
            yield name, Taker(cast("Callable[..., Any]", kind), tuple(_fields(kind)))
        else:
            raise TypeError(f"{function.__name__}: {name!r} is no dataclass and has no description")


def _fields(source: Any) -> Iterator[Parameter]:
    known = {name: (kind, option) for name, kind, option in described(source)}
    for field in sorted(fields(source), key=lambda each: each.kw_only is True):
        make = field.default_factory
        default = field.default if make is MISSING else make()
        if field.name in known:
            kind, option = known[field.name]
            yield Parameter(field.name, kind, default, option)
        elif default is MISSING:
            raise TypeError(f"{source.__name__}.{field.name} must be given, but has no description")
