"""Whether JSON values are what a config's dataclass says that its fields hold."""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def misfit(content: Mapping[str, Any], config_cls: type) -> str | None:
    """Return the first field of ``content`` whose value ``config_cls`` does not hold, as a sentence; None if
    all fit."""
    hints = get_type_hints(config_cls)
    hints |= dict.fromkeys(_ANY_NUMBER & hints.keys(), float)
    hints |= dict.fromkeys(_ANY_START & hints.keys(), bool | str | None)
    for key, value in content.items():
        if key in hints and not fits(value, hints[key]):
            if get_origin(hints[key]) is Literal:
                return f"{key} must be one of {', '.join(map(str, get_args(hints[key])))}, got {value!r:.60}"
            return f"field {key!r} cannot be {value!r:.60}"
    return None


def fits(value: Any, hint: Any) -> bool:
    """Return whether ``value``, as JSON has it, can stand for ``hint``; an unknown kind of hint takes
    anything."""
    origin, inner = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if isinstance(origin, type) and issubclass(origin, enum.Enum):
        return isinstance(value, str)
    held = _HELD.get(origin)
    if held is None:
        return True
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return type(value) in held and all(fits(part, inner[-1]) for part in parts if inner)


_ANY_NUMBER = {"lora_alpha"}
"""PEFT calls these whole numbers, and computes with any."""
_ANY_START = {"init_lora_weights"}
"""PEFT's list of these names is not complete ("pissa_niter_16"); it refuses what it does not know itself."""
_HELD: dict[Any, tuple[type, ...]] = {
    **dict.fromkeys((list, set), (list,)),
    **{kind: (kind,) for kind in (dict, int, str, bool, type(None))},
    float: (float, int),
}
"""The values that JSON gives for a field of such a type."""
