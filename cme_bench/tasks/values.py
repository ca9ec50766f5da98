"""Turn values of any file into what JSON holds: texts, numbers, lists and mappings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

_MOST_INTEGER = 2**63 - 1
"""JSON readers and Arrow hold integers of 64 bits; a larger one stays exact as a text."""


class NotJsonError(ValueError):
    """A value that no JSON text can hold, such as bytes; its text says what it is."""


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it.

    Decimals, dates and integers beyond 64 bits become texts; a number that is none (NaN) becomes None. Raises
    NotJsonError for bytes, infinities, texts that are no Unicode, and other objects.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return plain(value.tolist())
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            return _unicode(value)
        case int():
            return value if abs(value) <= _MOST_INTEGER else str(value)
        case float():
            return _number(value)
        case Decimal() | date() | time() | timedelta():
            return str(value)
    raise NotJsonError("bytes" if isinstance(value, bytes | bytearray | memoryview) else type(value).__name__)


def _unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise NotJsonError(f"a text with half a character ({error.reason})") from None
    return text


def _number(value: float) -> float | None:
    if math.isinf(value):
        raise NotJsonError("an infinite number")
    return None if math.isnan(value) else value


def is_blank(value: Any) -> bool:
    """Return whether ``value`` is missing: None, white space, or an empty list or mapping."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def as_text(value: Any) -> str:
    """Return a scalar as a reader writes it: 3.0 as ``3.0``, True as ``true``, None as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def summary(value: Any) -> str:
    """Return a few words for a value that JSON cannot hold: ``<bytes: 5>``, or ``1.50`` for a Decimal."""
    try:
        return str(plain(value))
    except NotJsonError:
        size = len(value) if hasattr(value, "__len__") else type(value).__module__
        return f"<{type(value).__name__}: {size}>"
