"""A check of every model that vLLM has loaded, in every rank: an adapter that was promised is there, whole.

vLLM asks a quantisation config about single layers, and has no place where it is told that a model is
complete. A model that ignores the config, names its layers otherwise or runs through another class would be
served as the base model, without a word. So the loaders' ``load_model`` is followed by this check.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vllm.model_executor.model_loader import BaseModelLoader

from cme_bench.vllm_plugin.activation import fuse_activations
from cme_bench.vllm_plugin.config import GatedConfig
from cme_bench.vllm_plugin.file import ADAPTER_FILE, AdapterFileError, file_digest
from cme_bench.vllm_plugin.loading import gated_layers, load_layers
from cme_bench.vllm_plugin.spec import SUBFOLDER

_METHOD = "load_model"
_MARK = "_cme_bench_checks"


def install() -> None:
    """Follow every loader's ``load_model`` by ``check_model``. Raises AttributeError if there is none."""
    for loader in (BaseModelLoader, *_descendants(BaseModelLoader)):
        own = loader.__dict__.get(_METHOD)
        if own is None and loader is BaseModelLoader:
            raise AttributeError(f"{loader.__name__}.{_METHOD}")
        if own is not None and not hasattr(own, _MARK):
            setattr(loader, _METHOD, _checked(own))
    GatedConfig.guarded = True


def _descendants(cls: type[Any]) -> Iterator[type[Any]]:
    for child in cls.__subclasses__():
        yield child
        yield from _descendants(child)


def _checked(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def load_model(self: Any, vllm_config: Any, model_config: Any, *args: Any, **extra: Any) -> Any:
        model = own(self, vllm_config, model_config, *args, **extra)
        if model_config is vllm_config.model_config:  # not a draft model of speculative decoding
            check_model(model, vllm_config)
        return model

    setattr(load_model, _MARK, True)
    return load_model


def check_model(model: Any, vllm_config: Any) -> None:
    """Load the adapter that lies in the model's folder, if one does, and fuse what can be fused.

    Raises AdapterFileError, so that vLLM does not start, if the file is missing or not the one that
    config.json names, if vLLM was told to serve the folder without it, or if not every module of the adapter
    has a layer of the right shape.
    """
    file = Path(vllm_config.model_config.model) / SUBFOLDER / ADAPTER_FILE
    config = vllm_config.quant_config
    if isinstance(config, GatedConfig):
        fuse_activations(model, vllm_config)
    if not (isinstance(config, GatedConfig) and config.embedded):
        if file.is_file():
            raise AdapterFileError(
                f"{file} would not be applied: vLLM was told to use another quantisation, adapter or config "
                "format than this folder's config.json; serve the base model itself for that"
            )
        return
    if config.digest is not None and file_digest(file) != config.digest:
        raise AdapterFileError(f"{file} is damaged, or of another export than config.json; export it again")
    load_layers(gated_layers(model), file)
