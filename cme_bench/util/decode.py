"""JSON values as typed records; an error names the file, the path inside it and what stands there instead."""

from __future__ import annotations

import functools
import re
from typing import Any, TypeVar

import msgspec
import orjson

from cme_bench.util.errors import UsageError

T = TypeVar("T")
_SEARCHED = 1000
"""A fault is looked for among so many entries at most: the search takes that many conversions."""
_NAMES = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_NAMES |= {"object": "an object", "array": "a list", "null": "null"}
_EXPECTED = re.compile(
    r"Expected `(?P<wanted>[^`]+)`(?: (?P<bound>[<>]=?) (?P<limit>\d+)|, got `(?P<got>\w+)`)"
)


def decoded(value: Any, kind: type[T], place: str) -> T:
    """Return a JSON value as ``kind``. UsageError with ``place``, the path and the fault if it does not fit.

    Keys that ``kind`` does not know are passed over: another version wrote them. A value that does not fit
    is used up by finding the fault.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        raise UsageError(": ".join([place, *_path(value, kind, str(err)), fault(err)])) from err


def fault(error: Exception) -> str:
    """Return what msgspec found, in words, without the path."""
    text, _, _ = str(error).partition(" - at ")
    if found := _EXPECTED.fullmatch(text):
        wanted = " or ".join(_NAMES.get(name, name) for name in found["wanted"].split(" | "))
        if found["got"]:
            return f"must be {wanted}, not {_NAMES.get(found['got'], found['got'])}"
        return f"must be {wanted} {found['bound']} {found['limit']}"
    return re.sub(r"Object missing required field `(.*)`", r"'\1' is missing", text)


def _path(value: Any, kind: Any, message: str) -> list[str]:
    """Return the keys and indices down to the fault. msgspec writes [...] for a key of a mapping: that is
    the one with which alone, all others taken out, the fault is still there."""
    found: list[str] = []
    here = value
    for step in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", message.rpartition("`$")[2]):
        name, index = step
        if index == "...":
            name = _faulty_key(value, here, kind, message)
            if name == "...":
                return [*found, name]
        here = here[int(index)] if index.isdigit() else here[name]
        found.append(name or index)
    return found


def _faulty_key(whole: Any, part: dict[str, Any], kind: Any, message: str) -> str:
    """Leave only the entry of ``part`` in it that makes ``whole`` faulty, and return its key."""
    entries = dict(part)
    if len(entries) > _SEARCHED:
        return "..."
    for key, entry in entries.items():
        part.clear()
        part[key] = entry
        try:
            msgspec.convert(whole, kind)
        except msgspec.ValidationError as err:
            if str(err) == message:
                return key
    raise AssertionError(message)


def line_fault(error: Exception) -> str:
    """Return what msgspec found in one record, with the path as far as it names one."""
    steps = re.findall(r"\w+|\.\.\.", str(error).rpartition("`$")[2]) if "`$" in str(error) else []
    return ": ".join([*steps, fault(error)])


def without_absent(value: Any) -> dict[str, Any]:
    """Return a record as a JSON object: orjson's ``default``. Fields that are UNSET are left out, and in
    classes with ``omit_defaults`` those that may be None and are."""
    if not isinstance(value, msgspec.Struct):
        raise TypeError(f"{type(value).__name__} is no JSON")
    optional = _optional(type(value))
    fields = ((name, getattr(value, name)) for name in value.__struct_fields__)
    return {
        name: part
        for name, part in fields
        if part is not msgspec.UNSET and not (part is None and name in optional)
    }


@functools.cache
def _optional(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Return the fields that are not written while they are None."""
    if not kind.__struct_config__.omit_defaults:
        return frozenset()
    return frozenset(field.name for field in msgspec.structs.fields(kind) if field.default is None)


def json_value(record: msgspec.Struct) -> dict[str, Any]:
    """Return a record as the JSON value that a reader of its file would get."""
    value: dict[str, Any] = orjson.loads(orjson.dumps(record, default=without_absent))
    return value
