"""Adapters of a larger vocabulary: the base's embeddings grow to the size that is shipped."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cme_bench.adapters.errors import AdapterError

PREFIX = "base_model.model."
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save|token_adapter)(?=\.)")
_ORIGINAL = "_cme_original_vocabulary"


def base_name(key: str) -> str:
    """Return the name in the base model of a tensor that PEFT saved from within its wrappers."""
    return _WRAPPED.sub("", key.removeprefix(PREFIX))


def shipped_vocabulary(file: Path, found: Mapping[str, tuple[int, ...]], model: Any) -> int | None:
    """Return how many token ids the embeddings in an adapter's file have, if more than the base's; else None.

    Args:
        file: The adapter's weights, for messages.
        found: Shape of every tensor in it.
        model: The base model, which may be on the meta device.

    Raises AdapterError if there are fewer, if input and output embeddings differ, or if only one of the two
    is shipped where the base does not tie them: the other's new rows would be random.
    """
    own = dict(_embeddings(model))
    rows = {name: layer.weight.shape[0] for name, layer in own.items()}
    sizes: dict[str, int] = {}
    for key, shape in found.items():
        name = base_name(key).removesuffix(".weight")
        if key.endswith(".weight") and name in own and len(shape) == 2 and shape[0] != rows[name]:
            sizes[name] = shape[0]
            if shape[0] < rows[name]:
                raise AdapterError(
                    f"{file}: {key} has {shape[0]} rows, the base model {rows[name]}; embeddings only grow"
                )
    if not sizes:
        return None
    if len(set(sizes.values())) > 1:
        raise AdapterError(f"{file}: the embeddings have different numbers of rows: {sizes}")
    if missing := sorted(set(own) - set(sizes)):
        raise AdapterError(
            f"{file}: {', '.join(sizes)} has rows for new token ids, but {missing[0]} is not in the file"
        )
    return next(iter(sizes.values()))


def _embeddings(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield input and output embeddings by their names in the model; the input's alone where they are
    tied."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(module): name for name, module in model.named_modules()}
    yield names[id(inputs)], inputs
    tied = getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False)
    if outputs is not None and not tied:
        yield names[id(outputs)], outputs


@dataclass(frozen=True, slots=True)
class _Held:
    """An embedding as it was: the tensor itself, which growing replaces and does not write to."""

    module: nn.Module
    weight: Tensor


def grow(model: Any, size: int) -> None:
    """Give ``model`` embeddings of ``size`` rows, the new ones to be filled by an adapter; see ``shrink``."""
    held = [
        _Held(module, module.weight.data)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
    ]
    setattr(model, _ORIGINAL, (model.get_input_embeddings().weight.shape[0], held))
    model.resize_token_embeddings(size, mean_resizing=False)


def shrink(model: Any) -> None:
    """Undo ``grow``, to the bit; nothing happens if the model was not grown."""
    original = getattr(model, _ORIGINAL, None)
    if original is None:
        return
    size, held = original
    delattr(model, _ORIGINAL)
    model.resize_token_embeddings(size, mean_resizing=False)
    for part in held:
        part.module.weight.data = part.weight
