"""Whether an adapter folder fits a base model, found out from names and shapes before any weight is read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
from torch import nn

from cme_bench.adapters.base_name import other_base
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, check_types, read_config, tensor_shapes, weights_file
from cme_bench.adapters.meta_model import adapted, bare_model, saved_shapes
from cme_bench.adapters.registry import method_of
from cme_bench.adapters.support import verdict, virtual_tokens
from cme_bench.adapters.vocabulary import PREFIX, base_name, shipped_vocabulary
from cme_bench.adapters.xlora import experts_of, inner_name, is_xlora
from cme_bench.util.errors import first_line

_TASKS = (None, "CAUSAL_LM")
_UNREAD = (".lora_monteclora_sampler.", "lm_head.token_adapter.trainable_tokens_")
"""Tensors that PEFT saves and does not read: of training, or a second copy of those of tied embeddings."""


@dataclass(frozen=True, slots=True)
class Examined:
    """An adapter that fits a base model.

    Attributes:
        config: Its settings.
        vocabulary: Token ids that the base's embeddings must grow to; None to leave them.
        virtual_tokens: Positions of the model that it takes for itself.
        base_tensors: Names in the file of tensors of the base model, which replace the base's own.
        checked: Whether names and shapes could be compared; a few methods cannot be built without memory.
        notes: Sentences that a user should see.
    """

    config: PeftConfig
    vocabulary: int | None
    virtual_tokens: int
    base_tensors: tuple[str, ...]
    checked: bool
    notes: tuple[str, ...]


def examine(
    model: nn.Module, folder: Path, *, allow_other_base: bool = False, task: int | None = None
) -> Examined:
    """Return what an adapter folder asks of ``model``, which is a base model and may be on the meta device.

    ``allow_other_base``: no note where the adapter records a base model of another name. ``task``: that of
    all rows, of an adapter of several tasks.

    Raises AdapterError with one line that names the file (and tensor or field) at fault: folder or file
    missing or damaged, pickle file, a method or field that is not computed exactly, no layer to adapt, a base
    model of another size, or tensors that are missing, extra, or of the wrong shape or type.
    """
    config = read_config(folder)
    weights = weights_file(folder)
    _check_computable(folder, config, task)
    found = tensor_shapes(weights)
    method = method_of(config)
    if method is None or method.code is None:
        check_types(weights)
    vocabulary = shipped_vocabulary(weights, found, model)
    other = other_base(folder, config, model, vocabulary)
    notes = [] if other is None or allow_other_base else [other]
    if vocabulary is not None:
        notes.append(f"{weights}: the base's embeddings grow to the {vocabulary} rows that are shipped")
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and "_niter_" in start:
        notes.append(
            f"{folder / CONFIG_FILE}: init_lora_weights {start!r} repeats a randomised SVD of the base; "
            "scores are as exact as that is"
        )
    if method is not None and method.code is not None and not method.per_token:
        notes.append(
            f"{folder}: {method.name} is not registered as per_token, so every row is computed by itself, "
            "anew at every step: slow, and as its own code computes it"
        )
    if is_xlora(config):
        for expert in experts_of(folder, config):
            _check_expert(model, expert)
        return Examined(config, None, 0, (), checked=False, notes=tuple(notes))
    base_tensors = _compared(folder, config, found, _grown(model.config, vocabulary))
    return Examined(
        config=config,
        vocabulary=vocabulary,
        virtual_tokens=virtual_tokens(config),
        base_tensors=base_tensors or (),
        checked=base_tensors is not None,
        notes=tuple(notes),
    )


_COMPARED: dict[tuple[Any, ...], tuple[str, ...]] = {}
"""What was found before, by all that it hangs on: an adapter is examined when it is named, and when it is
loaded, and to build it on a base takes half a second."""
_MOST_COMPARED = 64


def _compared(
    folder: Path, config: PeftConfig, found: Mapping[str, tuple[int, ...]], base_config: Any
) -> tuple[str, ...] | None:
    """Return the names of base tensors among ``found``, the shapes in the file; None if they cannot be
    compared."""
    of_base = repr(_untyped(base_config.to_dict()))
    key = type(config), repr(config.to_dict()), tuple(found.items()), type(base_config), of_base
    if key not in _COMPARED:
        weights, base = weights_file(folder), bare_model(base_config)
        shapes = {
            name: tuple(parameter.shape) for name, parameter in base.named_parameters(remove_duplicate=False)
        }
        on_meta = _meta_model(folder, base, config)
        if on_meta is None:
            return None
        names = tuple(compare(weights, _converted(weights, found, on_meta), on_meta, shapes))
        if len(_COMPARED) >= _MOST_COMPARED:
            _COMPARED.clear()
        _COMPARED[key] = names
    return _COMPARED[key]


def _untyped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without dtypes, on which no shape depends: a loaded model has another than its file."""
    return {k: _untyped(v) if isinstance(v, dict) else v for k, v in settings.items() if k != "dtype"}


def _check_expert(model: Any, folder: Path) -> None:
    """Raise AdapterError unless the tensors of an X-LoRA's expert are those of its settings on ``model``."""
    weights, base = weights_file(folder), bare_model(model.config)
    check_types(weights)
    shapes = {key: tuple(tensor.shape) for key, tensor in base.named_parameters(remove_duplicate=False)}
    found = {f"{PREFIX}{inner_name(key)}": shape for key, shape in tensor_shapes(weights).items()}
    on_meta = _meta_model(folder, base, read_config(folder))
    if on_meta is not None and (more := compare(weights, found, on_meta, shapes)):
        raise AdapterError(f"{weights}: tensor {more[0]} is the base model's, which no expert may change")


def compare(
    weights: Path,
    found: Mapping[str, tuple[int, ...]],
    model: PeftModel,
    base: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """Return the names of base tensors among ``found``, after checking all others.

    Args:
        weights: The adapter's file, for messages.
        found: Shape of every tensor in it.
        model: The base model with the adapter, on any device.
        base: Shape of every parameter of the base model alone.

    Raises AdapterError for a tensor that is missing, extra or of the wrong shape.
    """
    expected = saved_shapes(model, model.active_adapters[0])
    hidden = getattr(model.get_base_model().config, "hidden_size", None)
    for key, shape in expected.items():
        if key not in found:
            missing = sum(other not in found for other in expected)
            raise AdapterError(f"{weights}: tensor {key} is missing ({missing} of {len(expected)} are)")
        if found[key] != shape:
            raise AdapterError(
                f"{weights}: tensor {key} has shape {list(found[key])}, but this base model "
                f"(hidden size {hidden}) and {CONFIG_FILE} ask for {list(shape)}"
            )
    others = [key for key in found if key not in expected and not any(part in key for part in _UNREAD)]
    for key in others:
        own = base.get(base_name(key))
        if own is None:
            raise AdapterError(f"{weights}: tensor {key} is not part of this adapter")
        if own != found[key]:
            raise AdapterError(
                f"{weights}: base weight {key} has shape {list(found[key])}, "
                f"but the base model's is {list(own)}"
            )
    return others


def _check_computable(folder: Path, config: PeftConfig, given: int | None) -> None:
    path = folder / CONFIG_FILE
    task = getattr(config.task_type, "value", config.task_type)
    if task not in _TASKS:
        raise AdapterError(f"{path}: field 'task_type' is {task!r}; only adapters of a causal LM can be run")
    how = verdict(config, given)
    if how.way == "refused":
        raise AdapterError(f"{path}: {how.reason}")
    if is_xlora(config):
        experts_of(folder, config)


def _grown(config: Any, vocabulary: int | None) -> Any:
    config = copy.deepcopy(config)
    if vocabulary is not None:
        config.get_text_config(decoder=True).vocab_size = vocabulary
    return config


def _meta_model(folder: Path, base: nn.Module, config: PeftConfig) -> PeftModel | None:
    """Return the adapter on a base without memory; None if PEFT needs values to build it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return adapted(base, config)
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG_FILE}: {first_line(error)}") from None
    except Exception:
        return None


def _converted(
    weights: Path, found: Mapping[str, tuple[int, ...]], model: PeftModel
) -> dict[str, tuple[int, ...]]:
    """Return the shapes as PEFT changes them while loading: experts of older transformers are fused."""
    tensors = {name: torch.empty(shape, device="meta") for name, shape in found.items()}
    try:
        tensors = convert_peft_adapter_state_dict_for_transformers(
            model, model.peft_config[model.active_adapters[0]], tensors
        )
    except Exception as error:
        raise AdapterError(f"{weights}: PEFT cannot read these tensors ({first_line(error)})") from None
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
