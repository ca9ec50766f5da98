"""Makes our methods known to PEFT, whose list of methods is a closed enum without an extension point."""

from __future__ import annotations

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

METHODS = ("teamlora", "moelora", "hydralora", "moslora")


def peft_type(method: str) -> PeftType:
    """The ``PeftType`` member of ``method``, grafted onto the enum at the first call.

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


def register() -> None:
    """Registers teamlora, moelora, hydralora and moslora with PEFT; a second call changes nothing."""
    from cme_bench.adapters.hydralora import HydraLoraConfig, HydraLoraModel
    from cme_bench.adapters.moelora import MoeLoraConfig, MoeLoraModel
    from cme_bench.adapters.moslora import MosLoraConfig, MosLoraModel
    from cme_bench.adapters.teamlora import TeamLoraConfig, TeamLoraModel

    classes = {
        "teamlora": (TeamLoraConfig, TeamLoraModel),
        "moelora": (MoeLoraConfig, MoeLoraModel),
        "hydralora": (HydraLoraConfig, HydraLoraModel),
        "moslora": (MosLoraConfig, MosLoraModel),
    }
    for method, (config_cls, model_cls) in classes.items():
        if peft_type(method) not in PEFT_TYPE_TO_CONFIG_MAPPING:
            register_peft_method(name=method, config_cls=config_cls, model_cls=model_cls)
