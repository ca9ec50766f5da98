"""Putting a saved adapter on a base model, with every check made before anything is changed or generated."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from peft import PeftConfig, PeftModel
from torch import nn

from cme_bench.adapters.blueprint import adapted, bare_model, saved_shapes
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, read_config, read_json, tensor_shapes, weights_file

_PREFIX = "base_model.model."
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[0-9a-f]+")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def load_adapter(
    base_model: nn.Module,
    folder: str | Path,
    *,
    name: str = "default",
    allow_other_base: bool = False,
    is_trainable: bool = False,
) -> PeftModel:
    """Loads an adapter folder onto a base model, and activates it.

    Args:
        base_model: A transformers causal language model, or a ``PeftModel`` of one, which gets a further
            adapter.
        folder: Has adapter_config.json and adapter_model.safetensors. Pickle files are refused.
        name: The adapter's name in the model; must not be taken.
        allow_other_base: Accept an adapter whose recorded base model has another name, if the shapes fit.
        is_trainable: Keep the adapter's parameters trainable.

    Returns:
        The ``PeftModel``; ``base_model`` itself if it was one.

    Raises AdapterError with one line that names the file (and tensor) at fault: folder or file missing or
    damaged, pickle file, unknown method, setting out of range, no layer to adapt, another base model, or
    tensors that are missing, extra or of the wrong shape. The base model is unchanged then.
    """
    folder = Path(folder)
    inner = base_model.get_base_model() if isinstance(base_model, PeftModel) else base_model
    if isinstance(base_model, PeftModel) and name in base_model.peft_config:
        raise AdapterError(f"{folder}: the model already has an adapter named {name!r}")
    check_adapter(inner, folder, allow_other_base=allow_other_base)
    device = str(next(inner.parameters()).device)
    if isinstance(base_model, PeftModel):
        base_model.load_adapter(str(folder), name, is_trainable=is_trainable, torch_device=device)
        base_model.set_adapter(name)
        return base_model
    return PeftModel.from_pretrained(
        base_model, str(folder), adapter_name=name, is_trainable=is_trainable, torch_device=device
    )


def check_adapter(base_model: nn.Module, folder: Path, *, allow_other_base: bool = False) -> PeftConfig:
    """The settings of an adapter that fits ``base_model``, which may be on the meta device.

    Raises AdapterError as ``load_adapter`` does.
    """
    config = read_config(folder)
    weights = weights_file(folder)
    _check_base_name(folder, config, base_model, allow_other_base)
    _check_tensors(weights, config, base_model)
    return config


def _check_base_name(folder: Path, config: PeftConfig, model: nn.Module, allow_other_base: bool) -> None:
    """Refuses when two hub ids differ, or two local folders hold models of different sizes.

    A path says little (the same model lies elsewhere on every machine), so a path that differs is only warned
    of.
    """
    recorded = config.base_model_name_or_path
    actual = getattr(model, "name_or_path", None)
    if not recorded or not actual or allow_other_base:
        return
    ours, theirs = _model_name(str(actual)), _model_name(str(recorded))
    if ours.rpartition("/")[2].lower() == theirs.rpartition("/")[2].lower():
        return
    message = (
        f"{folder / CONFIG_FILE}: the adapter was trained on {recorded}, the base model here is {actual}"
    )
    if _HUB_ID.fullmatch(ours) and _HUB_ID.fullmatch(theirs):
        raise AdapterError(message)
    recorded_config = Path(recorded) / "config.json"
    if recorded_config.is_file():
        sizes = read_json(recorded_config)
        for key in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"):
            mine = getattr(model.config, key, None)
            if key in sizes and sizes[key] != mine:
                raise AdapterError(f"{message} ({key} {sizes[key]} there, {mine} here)")
    warnings.warn(f"{message}; the shapes fit", stacklevel=3)


def _model_name(path: str) -> str:
    """The hub id behind a folder of the hub's cache; any other path or id as it is."""
    cached = _SNAPSHOT.search(path)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return path.rstrip("/") if not Path(path).exists() else str(Path(path).resolve())


def _check_tensors(weights: Path, config: PeftConfig, model: nn.Module) -> None:
    found = tensor_shapes(weights)
    try:
        expected = saved_shapes(adapted(bare_model(model.config), config))
    except ValueError as error:
        raise AdapterError(f"{weights.parent / CONFIG_FILE}: {error}") from None
    base = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for key, shape in expected.items():
        if key not in found:
            missing = sum(other not in found for other in expected)
            raise AdapterError(f"{weights}: tensor {key} is missing ({missing} of {len(expected)} are)")
        if found[key] != shape:
            hidden = getattr(model.config, "hidden_size", None)
            raise AdapterError(
                f"{weights}: tensor {key} has shape {list(found[key])}, but this base model "
                f"(hidden size {hidden}) and {CONFIG_FILE} ask for {list(shape)}"
            )
    for key, shape in found.items():
        if key in expected:
            continue
        # An adapter may ship base weights that were trained with it, such as embeddings, if they fit.
        own = base.get(key.removeprefix(_PREFIX))
        if own is None:
            raise AdapterError(f"{weights}: tensor {key} is not part of this adapter")
        if own != shape:
            raise AdapterError(
                f"{weights}: base weight {key} has shape {list(shape)}, but the base model's is {list(own)}"
            )
