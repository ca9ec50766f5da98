"""PEFT's X-LoRA: LoRAs that a classifier weighs, token by token, from a pass of the base model.

PEFT saves the classifier in the folder itself, and expert i in its subfolder "i". It reads experts by the
names in a sorted file; here the subfolders give place and order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors.torch import load_file

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, WEIGHTS_FILE, read_config, weights_file
from cme_bench.adapters.support import verdict

CLASSIFIER = "internal_xlora_classifier."
_USE_CACHE = "_cme_use_cache"


def is_xlora(config: Any) -> bool:
    """Return whether a config is that of an X-LoRA."""
    return str(getattr(config.peft_type, "value", config.peft_type)) == "XLORA"


def experts_of(folder: Path, config: PeftConfig) -> list[Path]:
    """Return the folders of an X-LoRA's experts, in the order of the classifier's outputs.

    The subfolders "0", "1", ... as PEFT saves them; else the folders that the config names, if it calls them
    so. Raises AdapterError, naming the file, if one is missing, is no LoRA that PEFT's layers of X-LoRA
    compute, or if the order of experts with other names is unknown.
    """
    path = folder / CONFIG_FILE
    named: dict[str, Any] = config.adapters or {}
    if len(named) < 1:
        raise AdapterError(f"{path}: field 'adapters' names no expert")
    found = [folder / str(i) for i in range(len(named))]
    if not all((expert / CONFIG_FILE).is_file() for expert in found):
        if set(named) != {str(i) for i in range(len(named))}:
            raise AdapterError(
                f"{path}: the order of the experts {', '.join(named)} is not known from a sorted file; put "
                f"the adapter of expert i, counted from 0, into {folder}/i"
            )
        found = [folder / str(named[str(i)]) for i in range(len(named))]
    for i, expert in enumerate(found):
        _check_expert(path, i, expert)
    return found


def _check_expert(path: Path, i: int, expert: Path) -> None:
    if not (expert / CONFIG_FILE).is_file():
        raise AdapterError(
            f"{path}: expert {i} is in no folder {expert}; put its adapter into {path.parent}/{i}"
        )
    config = read_config(expert)
    how = verdict(config)
    if str(config.peft_type.value) != "LORA" or how.way != "shared":
        reason = how.reason or f"it is a {config.peft_type.value}"
        raise AdapterError(f"{expert / CONFIG_FILE}: an expert of X-LoRA must be a plain LoRA ({reason})")
    for field in ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters"):
        if getattr(config, field, None):
            raise AdapterError(f"{expert / CONFIG_FILE}: field {field!r} is not computed in an X-LoRA")
    weights_file(expert)


def inner_name(key: str) -> str:
    """Return the name of an expert's tensor in the base model, whatever PEFT wrapped this in."""
    while "." in key and (not key.startswith("model.") or key.startswith("model.model.")):
        key = key.partition(".")[2]
    return key


def files_of(folder: Path) -> list[Path]:
    """Return the files of an X-LoRA's experts, which decide what it computes; none for another adapter."""
    config = read_config(folder)
    if not is_xlora(config):
        return []
    return [expert / name for expert in experts_of(folder, config) for name in (CONFIG_FILE, WEIGHTS_FILE)]


@contextmanager
def prepared(base: Any, folder: Path, config: PeftConfig) -> Iterator[PeftConfig]:
    """Give the config with which PEFT loads an X-LoRA onto ``base``, whose cache must be off for it."""
    experts = experts_of(folder, config)
    config.adapters = {str(i): str(expert) for i, expert in enumerate(experts)}
    setattr(base, _USE_CACHE, base.config.use_cache)
    base.config.use_cache = False
    try:
        yield config
    except BaseException:
        restore(base)
        raise


def restore(base: Any) -> None:
    """Put the setting of the base's cache back that ``prepared`` changed."""
    if hasattr(base, _USE_CACHE):
        base.config.use_cache = getattr(base, _USE_CACHE)
        delattr(base, _USE_CACHE)


def load_classifier(model: Any, folder: Path) -> None:
    """Load the classifier of an X-LoRA, which PEFT 0.21 may leave as it was drawn.

    Raises AdapterError if the file holds none, or one of another shape. PEFT 0.21 saves none for experts that
    are called 0, 1, ..., since it takes its layers' numbers for their names.
    """
    weights = weights_file(folder)
    classifier = model.base_model.internal_xlora_classifier
    tensors = load_file(weights)
    if others := sorted(key for key in tensors if CLASSIFIER not in key):
        raise AdapterError(f"{weights}: tensor {others[0]} is not part of this adapter")
    found = {key.partition(CLASSIFIER)[2]: tensor for key, tensor in tensors.items()}
    for name, own in classifier.state_dict().items():
        if name not in found:
            raise AdapterError(
                f"{weights}: tensor {CLASSIFIER}{name} is missing; PEFT 0.21 leaves the classifier out where "
                "experts are named by numbers: save the classifier's state_dict under such names"
            )
        if found[name].shape != own.shape:
            raise AdapterError(
                f"{weights}: tensor {CLASSIFIER}{name} has shape {list(found[name].shape)}, the settings ask "
                f"for {list(own.shape)}"
            )
    if more := sorted(found.keys() - classifier.state_dict().keys()):
        raise AdapterError(f"{weights}: tensor {CLASSIFIER}{more[0]} is not part of this adapter")
    classifier.load_state_dict(found)
