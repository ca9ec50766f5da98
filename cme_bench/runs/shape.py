"""Whether a JSON value has the shape that its readers rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cme_bench.errors import UsageError

_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
_NAMES |= {list: "a list"}


@dataclass(frozen=True)
class _Of:
    shape: Any


class Maybe(_Of):
    """``shape``, null, or absent."""


class OrNull(_Of):
    """``shape`` or null."""


class Each(_Of):
    """An object of any keys, whose values all have ``shape``."""


class ListOf(_Of):
    """A list whose elements all have ``shape``."""


@dataclass(frozen=True, slots=True)
class Count:
    """A whole number from 0 to ``most``."""

    most: int


def check_shape(value: Any, shape: Any, place: str) -> None:
    """UsageError with ``place`` and the path of the first part of ``value`` that is not as ``shape`` says.

    A shape is a type (``float`` takes whole numbers too), a mapping from required keys to shapes (further
    keys may be there), or one of the classes above.
    """
    if isinstance(shape, Maybe | OrNull):
        if value is not None:
            check_shape(value, shape.shape, place)
    elif isinstance(shape, Mapping):
        _check_type(value, dict, place)
        for key, part in shape.items():
            if key not in value and not isinstance(part, Maybe):
                raise UsageError(f"{place}: {key!r} is missing")
            check_shape(value.get(key), part, f"{place}: {key}")
    elif isinstance(shape, Each):
        _check_type(value, dict, place)
        for key, part in value.items():
            check_shape(part, shape.shape, f"{place}: {key}")
    elif isinstance(shape, ListOf):
        _check_type(value, list, place)
        for index, part in enumerate(value):
            check_shape(part, shape.shape, f"{place}: {index}")
    elif isinstance(shape, Count):
        _check_type(value, int, place)
        if not 0 <= value <= shape.most:
            raise UsageError(f"{place}: {value} is not between 0 and {shape.most}")
    else:
        _check_type(value, shape, place)


def _check_type(value: Any, wanted: type, place: str) -> None:
    if type(value) is not wanted and not (wanted is float and type(value) is int):
        raise UsageError(f"{place}: must be {_NAMES[wanted]}, not {_NAMES.get(type(value), 'null')}")
