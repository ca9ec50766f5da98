"""Putting a saved adapter on a base model, with every check made before anything is changed or generated."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open
from torch import nn

from cme_bench.adapters import xlora
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.examine import Examined, compare, examine
from cme_bench.adapters.files import check_values, tensor_shapes, weights_file
from cme_bench.adapters.row_task import choose_task
from cme_bench.adapters.shared.quantised import READS_8_BITS, parameter_place, restore_scales
from cme_bench.adapters.vocabulary import base_name, grow, shrink
from cme_bench.util.devices import computing_device, is_spread
from cme_bench.util.errors import first_line

NAME = "default"
"""The name under which adapters are loaded: a folder's name may be no name of a module."""


def load_adapter(
    base_model: nn.Module,
    folder: str | Path,
    *,
    name: str = NAME,
    allow_other_base: bool = False,
    is_trainable: bool = False,
    task: int | None = None,
    note: Callable[[str], None] | None = None,
) -> PeftModel:
    """Load an adapter folder onto a base model, and activate it; ``take_off`` undoes it.

    Args:
        base_model: A transformers causal language model, or a ``PeftModel`` of one, which gets a further
            adapter.
        folder: Has adapter_config.json and adapter_model.safetensors. Pickle files are refused.
        name: The adapter's name in the model; must not be taken.
        allow_other_base: Say nothing where the recorded base model has another name.
        is_trainable: Keep the adapter's parameters trainable.
        task: Of an adapter of several tasks (POLY), the number of the one that all rows are of.
        note: Told what a user should see, such as a base model of another name; default: a warning.

    Returns:
        The ``PeftModel``; ``base_model`` itself if it was one.

    Raises AdapterError with one line that names the folder, or the file and tensor at fault, as ``examine``
    does and where PEFT cannot load the adapter. The base model is unchanged then.
    """
    folder = Path(folder)
    inner = base_model.get_base_model() if isinstance(base_model, PeftModel) else base_model
    if isinstance(base_model, PeftModel) and name in base_model.peft_config:
        raise AdapterError(f"{folder}: the model already has an adapter named {name!r}")
    found = examine(inner, folder, allow_other_base=allow_other_base, task=task)
    check_numbers(folder, found.config)
    for sentence in found.notes:
        _say(note, sentence)
    if isinstance(base_model, PeftModel):
        if xlora.is_xlora(found.config):
            raise AdapterError(f"{folder}: an X-LoRA cannot be loaded beside other adapters")
        if found.vocabulary is not None:
            raise AdapterError(f"{folder}: its vocabulary is larger than that of the adapters already loaded")
        _put_beside(base_model, folder, name, is_trainable)
        return _with_task(base_model, name, task)
    for sentence in _replaced(inner, folder, found):
        _say(note, sentence)
    try:
        model = _put_on(inner, folder, found, name, is_trainable=is_trainable)
    except BaseException as error:
        _strip(inner)
        if isinstance(error, AdapterError) or not isinstance(error, Exception):
            raise
        raise AdapterError(f"{folder}: PEFT cannot load this adapter ({_reason(error)})") from error
    return _with_task(model, name, task)


def check_numbers(folder: Path, config: PeftConfig) -> None:
    """Raise AdapterError, naming file and tensor, if the adapter in ``folder`` holds NaN or an infinity.

    Reads all of its tensors; those of an X-LoRA's experts too.
    """
    experts = xlora.experts_of(folder, config) if xlora.is_xlora(config) else ()
    for place in (folder, *experts):
        check_values(weights_file(place))


def check_adapter(base_model: nn.Module, folder: Path) -> PeftConfig:
    """Return the settings of an adapter that fits ``base_model``, which may be on the meta device.

    Raises AdapterError as ``examine`` does.
    """
    return examine(base_model, folder).config


def take_off(model: PeftModel) -> nn.Module:
    """Return the base model without any adapter; its modules and its vocabulary are what they were.

    PEFT's ``unload`` leaves modules that an adapter saved whole in the place of the base's. What an adapter
    wrote into the base's own tensors (biases, a start that is subtracted from the weights) stays.
    """
    base: nn.Module = model.get_base_model()
    if model.active_peft_config.is_adaption_prompt:
        model.base_model.disable_adapter_layers()
    _strip(base)
    return base


def _put_on(inner: nn.Module, folder: Path, found: Examined, name: str, *, is_trainable: bool) -> PeftModel:
    shapes = {key: tuple(p.shape) for key, p in inner.named_parameters(remove_duplicate=False)}
    if found.vocabulary is not None:
        grow(inner, found.vocabulary)
    spread = is_spread(inner)
    with torch.random.fork_rng(), warnings.catch_warnings(), _undispatched(inner):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)  # PEFT repeats an initialisation that draws numbers, such as pissa_niter_16
        settings: dict[str, Any] = {"adapter_name": name, "torch_device": _device(inner)}
        if xlora.is_xlora(found.config):
            with xlora.prepared(inner, folder, found.config) as config:
                model = PeftModel.from_pretrained(inner, str(folder), config=config, **settings)
                xlora.load_classifier(model, folder)
        else:
            # where weights are on disk, PEFT would make the adapter's tensors there too
            settings |= {"is_trainable": is_trainable, "low_cpu_mem_usage": spread}
            model = PeftModel.from_pretrained(inner, str(folder), **settings)
    if restore_scales(inner):
        raise AdapterError(f"{folder}: {READS_8_BITS}")
    _follow_layers(model)
    if not found.checked and not xlora.is_xlora(found.config):
        weights = weights_file(folder)
        compare(weights, tensor_shapes(weights), model, shapes)
    model.peft_config[name].loaded_from = str(folder)  # where a model in memory finds its training record
    return model


def _with_task(model: PeftModel, name: str, task: int | None) -> PeftModel:
    if task is not None:
        choose_task(model, name, task)
    return model


def _put_beside(model: PeftModel, folder: Path, name: str, is_trainable: bool) -> None:
    device = _device(model.get_base_model())
    try:
        model.load_adapter(str(folder), name, is_trainable=is_trainable, torch_device=device)
    except Exception as error:
        raise AdapterError(
            f"{folder}: PEFT cannot load this adapter beside others ({_reason(error)})"
        ) from error
    model.peft_config[name].loaded_from = str(folder)
    model.set_adapter(name)


def _reason(error: Exception) -> str:
    """Return one line of an error; torch's begin with a heading that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else first_line(error)


def _device(model: Any) -> str:
    return str(computing_device(model.get_input_embeddings()))


@contextmanager
def _undispatched(model: Any) -> Iterator[None]:
    """Let PEFT load onto a model whose parts lie on several devices as onto any other.

    It would take accelerate's hooks off and put them on anew, which fails for weights on disk and leaves the
    base changed. The hooks of the layers below the adapters go on as they are.
    """
    spread = model.__dict__.pop("hf_device_map", None)
    try:
        yield
    finally:
        if spread is not None:
            model.hf_device_map = spread


def _follow_layers(model: nn.Module) -> None:
    """Put the parameters of every adapted layer where the layer computes."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            place = parameter_place(layer.get_base_layer())[0]
            for name in layer.adapter_layer_names:
                held: Any = getattr(layer, name, None)
                for key in held if isinstance(held, nn.ModuleDict | nn.ParameterDict) else ():
                    if place is not None and _device_of(held[key]) not in (place, None):
                        held[key] = held[key].to(place)


def _device_of(held: nn.Module | torch.Tensor) -> torch.device | None:
    tensor = held if isinstance(held, torch.Tensor) else next(held.parameters(), None)
    return None if tensor is None else tensor.device


def _replaced(model: nn.Module, folder: Path, found: Examined) -> list[str]:
    """Return a sentence for every base tensor in the file whose values are not the base's own."""
    weights, sentences = weights_file(folder), []
    own = dict(model.named_parameters(remove_duplicate=False))
    with safe_open(weights, framework="pt") as file:
        for key in found.base_tensors:
            if ".modules_to_save." in key:
                continue  # a second copy of what is trained, which PEFT does not read
            mine = own[base_name(key)].detach()
            shipped = file.get_tensor(key).to(mine)
            rows = min(len(mine), len(shipped)) if mine.ndim else None
            if not torch.equal(mine[:rows], shipped[:rows]):
                sentences.append(f"{weights}: {key} differs from the base model's own and replaces it")
    return sentences


def _strip(base: Any) -> None:
    """Take away what PEFT leaves in a model: its layers, its config, and a grown vocabulary."""
    wrappers = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            inner = child
            while isinstance(inner, wrappers):
                inner = inner.base_layer if isinstance(inner, BaseTunerLayer) else inner.original_module
            if inner is not child:
                setattr(parent, name, inner)
    if hasattr(base, "peft_config"):
        del base.peft_config
    xlora.restore(base)
    shrink(base)


def _say(note: Callable[[str], None] | None, sentence: str) -> None:
    if note is None:
        warnings.warn(sentence, stacklevel=3)
    else:
        note(sentence)
