"""Engines that compute in this process, or in processes of their own on this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cme_bench.models.load import evaluation_device
from cme_bench.models.loaded import SavedModel
from cme_bench.runs.auto_source import SOURCES, open_auto
from cme_bench.runs.engine_source import SavedSource
from cme_bench.util.notes import Note, unheard
from cme_bench.util.phases import phase

if TYPE_CHECKING:
    import torch

    from cme_bench.runs.options import ModelOptions


def open_local(options: ModelOptions, note: Note = unheard) -> SavedSource:
    """Return the engines of hf or vllm for the model of ``options``; no weights are loaded yet."""
    if options.engine == "auto":
        return open_auto(options, lambda engine: find_model(options, note=note, engine=engine), note)
    return SOURCES[options.computes](find_model(options, note=note), options, note)


def find_model(
    options: ModelOptions,
    device: Callable[[], torch.device] = evaluation_device,
    note: Note = unheard,
    engine: str | None = None,
) -> SavedModel:
    """Return the model that ``options`` name, checked for the engine that will compute: ``engine``, or what
    ``options`` say."""
    with phase("model"):
        return SavedModel(
            options.model,
            engine=engine or options.computes,
            dtype=options.dtype,
            device=device,
            offline=options.offline,
            quantize=options.quantize,
            device_map=options.device_map,
            note=note,
        )
