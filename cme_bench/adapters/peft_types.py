"""Adds members to ``PeftType``, PEFT's list of methods: a closed enum without an extension point."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)


def peft_type(method: str) -> PeftType:
    """Return the ``PeftType`` member of ``method``, grafted onto the enum at the first call.

    The member behaves like one of PEFT's own (``PeftType.TEAMLORA``, ``PeftType("TEAMLORA")``, iteration),
    and repeated calls return the same object.
    """
    name = method.upper()
    known = PeftType._member_map_
    if name in known:
        return known[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    # Before the map entry: the enum's metaclass refuses to set an attribute that it lists as a member.
    setattr(PeftType, name, member)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    return member


def remove_peft_type(method: str) -> None:
    """Undo ``peft_type`` and PEFT's registration of a method that ``peft_type`` grafted."""
    name = method.upper()
    member = PeftType._member_map_.pop(name)
    PeftType._member_names_.remove(name)
    del PeftType._value2member_map_[name]
    type.__delattr__(PeftType, name)
    for mapping in (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
        PEFT_TYPE_TO_MIXED_MODEL_MAPPING,
    ):
        mapping.pop(member, None)
