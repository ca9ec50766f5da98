"""The one list of adapter methods. An entry holds all that the tool knows of a method.

A method's file ends in :func:`register`. Command line, training, description, engines, measurements and tests
read the entries, so a method's name stands nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, fields
from typing import Any, ClassVar, TypeAlias, get_origin

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from torch import nn

from cme_bench.adapters.code import Code, code_of
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.gated import GatedForm
from cme_bench.adapters.peft_types import peft_type, remove_peft_type
from cme_bench.util.errors import did_you_mean, first_line

Wrap = Callable[[nn.Linear], nn.Module]
How: TypeAlias = PeftConfig | Wrap
"""How a measured form is put on a model: by PEFT, or by wrapping each linear."""
_NAME = re.compile(r"[a-z][a-z0-9_]*[a-z0-9]")
_PLACES = frozenset(
    "target_modules target_attention exclude_modules layers_to_transform layers_pattern modules_to_save "
    "init r num_experts".split()
)
"""Fields that say where an adapter lies and how it starts, or that a description shows by themselves."""


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """The settings of an adapter that ``train`` takes.

    Attributes:
        rank: Of one expert. alpha: Numerator of the scaling; twice the rank unless it was given.
        dropout: Probability. experts: Number of experts. balance_loss: Weight of the load-balance loss.
        steps: Optimizer steps of the training.
    """

    rank: int
    alpha: float
    dropout: float
    experts: int
    balance_loss: float
    steps: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A form of a method that ``cme-bench efficiency`` measures.

    Attributes:
        name: As "teamlora32_k8": the method, its rank, and what else tells it from others.
        how: From the names of linears to a config, or to what wraps each linear.
        form: How it computes, in words that stand beside every number of it.
        default: Whether it is measured where no form is named.
    """

    name: str
    how: Callable[[list[str]], How]
    form: str
    default: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    """An adapter method; :func:`register` explains the attributes.

    ``code``: the file that computes it, where that is neither this package's nor PEFT's.
    """

    name: str
    config_class: type[PeftConfig]
    model_class: type[BaseTuner]
    routed: bool
    per_token: bool
    train: Callable[[TrainingSettings], Mapping[str, Any]] | None
    compared: frozenset[str]
    settings: tuple[str, ...]
    rank_field: str
    no_decay: tuple[str, ...]
    measured: tuple[Measured, ...]
    vllm: GatedForm | str
    paper: str = ""
    code: Code | None = field(default=None)

    @property
    def is_pefts(self) -> bool:
        """Whether PEFT knows the method by itself."""
        return self.config_class.__module__.startswith("peft.")

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields of its config."""
        return frozenset(f.name for f in fields(self.config_class))


NO_GATED_FORM = "its update is not known to have the form that the vLLM plugin computes"
_METHODS: dict[str, Method] = {}


def register(
    name: str,
    config_class: type[PeftConfig],
    model_class: type[BaseTuner],
    *,
    routed: bool = False,
    per_token: bool = False,
    train: Callable[[TrainingSettings], Mapping[str, Any]] | None = None,
    settings: Sequence[str] | None = None,
    rank_field: str = "r",
    compared: Iterable[str] | None = None,
    no_decay: Sequence[str] = (),
    measured: Sequence[Measured] = (),
    vllm: GatedForm | str = NO_GATED_FORM,
    paper: str = "",
) -> Method:
    """Make an adapter method known to this tool and to PEFT. The last line of a method's file.

    Afterwards ``cme-bench train --method NAME`` trains it, ``get_peft_model`` and
    ``PeftModel.from_pretrained`` know it, and its adapters are described, evaluated and stand in tables.
    Registering a method again from the same class, as a notebook does, replaces it.

    Args:
        name: Lower case, as "teamlora"; in upper case it is the ``peft_type`` of saved adapters.
        config_class: A dataclass on ``AdapterConfig`` or ``PeftConfig``. Options of ``train`` that have a
            field of it are passed: rank to ``r``, and alike ``alpha`` or ``lora_alpha``, ``dropout`` or
            ``lora_dropout``, ``num_experts``, ``balance_coefficient``, ``scaling``, ``collaboration``,
            ``competition``.
        model_class: A PEFT tuner, such as a subclass of ``AdapterModel``; its ``prefix`` is NAME and "_".
        routed: Whether it has experts behind a router that ``routing_hooks`` can hear.
        per_token: Whether a token's update depends on that token alone. Then prefixes, batches and a cache
            are shared, after a trial. Otherwise every row is computed by itself at every step.
        train: Further config fields for a training, which win over those above.
        settings: Fields that a description shows. Default: all but those that say where the adapter lies.
        rank_field: The field that holds the rank.
        compared: Fields under which an engine's numbers were compared with PEFT's own. Default: all.
        no_decay: Parts of the names of parameters that weight decay leaves alone.
        measured: Forms for ``cme-bench efficiency``.
        vllm: How vLLM's plugin computes it, or a clause that says why it cannot.
        paper: What a model card cites, as "TeamLoRA (arXiv 2408.09856)".

    Returns:
        The entry.

    Raises AdapterError if the name is taken or malformed, or a class is not what it must be.
    """
    _check_classes(name, config_class, model_class)
    _check_fields(name, config_class)
    _check_rest(name, train=train, settings=settings, measured=measured, vllm=vllm)
    earlier = _METHODS.get(name)
    if earlier is not None:
        if not _is_again(earlier, config_class):
            owner = _qualified(earlier.config_class) if earlier.code is None else earlier.code.file
            raise AdapterError(f"register {name!r}: the name is taken by {owner}")
        if earlier.code is None:
            return earlier
        unregister(name)
    own = frozenset(f.name for f in fields(config_class)) - {f.name for f in fields(PeftConfig)}
    entry = Method(
        name=name,
        config_class=config_class,
        model_class=model_class,
        routed=routed,
        per_token=per_token,
        train=train,
        compared=own if compared is None else frozenset(compared),
        settings=tuple(sorted(own - _PLACES) if settings is None else settings),
        rank_field=rank_field,
        no_decay=tuple(no_decay),
        measured=tuple(measured),
        vllm=vllm,
        paper=paper,
        code=code_of(model_class, config_class),
    )
    added = _tell_peft(entry)
    _METHODS[name] = entry
    if added and not _is_ours(config_class):
        try:
            _check_config(entry)
        except AdapterError:
            unregister(name)
            raise
    return entry


def unregister(name: str) -> None:
    """Forget a method that :func:`register` added to PEFT's own."""
    del _METHODS[name]
    remove_peft_type(name)


def methods() -> tuple[Method, ...]:
    """Return every registered method, those without experts first, by name."""
    return tuple(sorted(_METHODS.values(), key=lambda method: (method.routed, method.name)))


def names() -> tuple[str, ...]:
    """Return the names of the registered methods."""
    return tuple(method.name for method in methods())


def routed_names() -> tuple[str, ...]:
    """Return the names of the methods that have a router."""
    return tuple(method.name for method in methods() if method.routed)


def method(name: str) -> Method:
    """Return the method of this name. Raises AdapterError, with a suggestion, if there is none."""
    if name not in _METHODS:
        hint = did_you_mean(name, names())
        raise AdapterError(f"unknown method {name!r}{hint} (known: {', '.join(names())})")
    return _METHODS[name]


def method_of(config: PeftConfig) -> Method | None:
    """Return the entry of an adapter's method; None if it is one of PEFT's that is not registered here."""
    return find(str(getattr(config.peft_type, "value", config.peft_type)))


def find(type_name: str) -> Method | None:
    """Return the method with this ``peft_type``, in upper case; None if it is not registered."""
    return _METHODS.get(type_name.lower()) if type_name.isupper() else None


def type_of(config_class: type[PeftConfig]) -> PeftType:
    """Return the ``peft_type`` under which a config class, or one that it inherits from, is registered.

    Raises AdapterError if it is not registered.
    """
    for cls in config_class.__mro__:
        for entry in _METHODS.values():
            if entry.config_class is cls:
                return peft_type(entry.name)
    raise AdapterError(f"{config_class.__name__} is not registered: its file must end in register(...)")


def _check_classes(name: str, config_class: object, model_class: object) -> None:
    if not _NAME.fullmatch(name):
        raise AdapterError(
            f"register {name!r}: a name is of lower-case letters, digits and underscores, a letter first"
        )
    for cls, kind in ((config_class, PeftConfig), (model_class, BaseTuner)):
        if not (isinstance(cls, type) and issubclass(cls, kind)):
            shown = getattr(cls, "__name__", repr(cls))
            raise AdapterError(f"register {name!r}: {shown} is no subclass of PEFT's {kind.__name__}")


def _check_fields(name: str, config_class: type[PeftConfig]) -> None:
    """Without @dataclass a new field is none: it would be neither an argument nor saved."""
    known = {f.name for f in fields(config_class)}
    for key, annotation in vars(config_class).get("__annotations__", {}).items():
        marker = None if key in known else _marker(annotation)
        if key in known or marker in ("ClassVar", "KW_ONLY"):
            continue
        shown = f"{key!r} is no field of {config_class.__name__}"
        if marker == "InitVar":
            raise AdapterError(f"register {name!r}: {shown}: an InitVar is not saved; make it a field")
        raise AdapterError(f"register {name!r}: {shown}; write @dataclass above the class")


def _marker(annotation: Any) -> str | None:
    """Return the name of what dataclasses read as no field; ``annotation`` may be its text."""
    if isinstance(annotation, str):
        return annotation.strip().partition("[")[0].rpartition(".")[2]
    kinds = (annotation, get_origin(annotation), type(annotation))
    return next((name for name, kind in _MARKERS.items() if kind in kinds), None)


_MARKERS = {"ClassVar": ClassVar, "KW_ONLY": KW_ONLY, "InitVar": InitVar}


def _check_rest(name: str, *, train: object, settings: object, measured: object, vllm: object) -> None:
    """Refuse what a type checker would have refused, for those who run none."""
    listed = isinstance(measured, Sequence) and all(isinstance(one, Measured) for one in measured)
    wrong = {
        "train must be a function": train is not None and not callable(train),
        "settings must be a list of names": isinstance(settings, str),
        "measured must be a list of Measured": not listed,
        "vllm must be a GatedForm, or a clause that says why not": not isinstance(vllm, GatedForm | str),
    }
    for sentence, is_wrong in wrong.items():
        if is_wrong:
            raise AdapterError(f"register {name!r}: {sentence}")


def _tell_peft(entry: Method) -> bool:
    """Add the method to PEFT's tables, unless it stands there already, as LoRA does; whether it was added."""
    name = entry.name.upper()
    if name in PeftType._member_map_:
        known = PEFT_TYPE_TO_CONFIG_MAPPING.get(name), PEFT_TYPE_TO_TUNER_MAPPING.get(name)
        if known == (entry.config_class, entry.model_class):
            return False
        raise AdapterError(f"register {entry.name!r}: the name is taken by PEFT's own method")
    peft_type(entry.name)
    try:
        register_peft_method(name=entry.name, config_cls=entry.config_class, model_cls=entry.model_class)
    except (KeyError, ValueError) as err:
        remove_peft_type(entry.name)
        raise AdapterError(f"register {entry.name!r}: {first_line(err)}") from None
    return True


def _check_config(entry: Method) -> None:
    """Check that PEFT can make a config of the class from a saved file, by the type that it carries."""
    shown = entry.config_class.__name__
    try:
        config = entry.config_class()
    except Exception as err:
        raise AdapterError(
            f"register {entry.name!r}: {shown}() cannot be made without arguments ({first_line(err)})"
        ) from err
    if config.peft_type != peft_type(entry.name):
        raise AdapterError(
            f"register {entry.name!r}: a {shown} has peft_type {config.peft_type!s}; set "
            f"self.peft_type = peft_type({entry.name!r}) at the end of its __post_init__"
        )


def _is_again(earlier: Method, config_class: type[PeftConfig]) -> bool:
    """Return whether a class is one that was registered, written anew or imported by another name."""
    if _qualified(earlier.config_class) == _qualified(config_class):
        return True
    code = code_of(config_class)
    same_file = code is not None and earlier.code is not None and code.file == earlier.code.file
    return same_file and earlier.config_class.__qualname__ == config_class.__qualname__


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("cme_bench.")


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
