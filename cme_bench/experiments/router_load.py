"""Forwarding prompts through a routed adapter and hearing how its router shares the tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cme_bench.adapters import record_router
from cme_bench.adapters.routing.layer import RoutedLinear
from cme_bench.engines.base import GenerateRequest, TokenIds
from cme_bench.engines.hf.batching import run_batches
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.hf.forward import CausalForward, base_model, left_pad
from cme_bench.experiments.options import RouterOptions
from cme_bench.experiments.router import LayerLoad, RouterSlice, pooled
from cme_bench.experiments.router_prompts import PromptGroup, open_responder, prompt_groups
from cme_bench.runs.progress import Listener
from cme_bench.runs.responder import Responder


@dataclass(frozen=True, slots=True)
class RouterMeasurement:
    """``interaction``: M of every layer that has one, (k, k), by layer name. ``title``: model, adapter, its
    hash, and how many items were forwarded."""

    title: str
    slices: tuple[RouterSlice, ...]
    interaction: dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt as a row of a batch."""

    ids: TokenIds
    n_new: int = 0

    @property
    def n_input(self) -> int:
        return len(self.ids)


def measure_router(options: RouterOptions, listener: Listener | None = None) -> RouterMeasurement:
    """Forward the prompts of a run, or of tasks, through an adapter, and measure its routers.

    Every prompt token counts once, padding does not. Raises UsageError for bad input before weights are
    loaded, AdapterError (also a UsageError) if the adapter does not fit or changes no logit.
    """
    listener = listener or Listener()
    responder = open_responder(options)
    for note in responder.notes:
        listener.note(note)
    groups = prompt_groups(options, responder)
    engine = responder.engine(GenerateRequest(groups[0].prompts[0], 1, ()))
    assert isinstance(engine, HFEngine)
    try:
        slices = []
        for group in groups:
            name = f"{group.task} {group.group}".strip()
            listener.start(name, total=len(group.prompts), done=0)
            slices.append(_forward(engine, group, listener))
            listener.finish(name, f"{slices[-1].layers[0].tokens} tokens")
        return RouterMeasurement(_title(responder, slices), tuple(slices), _interaction(engine.model))
    finally:
        responder.close()


def _forward(engine: HFEngine, group: PromptGroup, listener: Listener) -> RouterSlice:
    forward = CausalForward(engine.model, engine.device).tried()  # whose tokens do not count
    heard: list[LayerLoad] = []

    def compute(batch: Sequence[_Prompt]) -> list[None]:
        # Recorded batch by batch, so that one which ran out of memory halfway leaves no trace.
        ids, mask = (part.to(engine.device) for part in left_pad([row.ids for row in batch]))
        with torch.inference_mode(), record_router(engine.model) as record:
            forward(ids, mask, keep=1)
        heard.extend(LayerLoad(s.layer, s.tokens, s.phi, s.omega, s.top1, s.entropy) for s in record.stats())
        return [None] * len(batch)

    rows = sorted((_Prompt(ids) for ids in group.prompts), key=lambda row: -row.n_input)
    for _ in run_batches(rows, engine.budget, compute):
        listener.advance(1)
    return RouterSlice(group.task, group.domain, group.group, len(group.prompts), pooled(heard))


def _interaction(model: Any) -> dict[str, NDArray[np.float64]]:
    """Return M of every layer whose experts interact; empty for methods without M."""
    matrices = {
        name: layer.interaction(layer.active_adapters[0])
        for name, layer in base_model(model).named_modules()
        if isinstance(layer, RoutedLinear)
    }
    return {name: m.detach().double().cpu().numpy() for name, m in matrices.items() if m is not None}


def _title(responder: Responder, slices: Sequence[RouterSlice]) -> str:
    adapter = responder.adapter
    assert adapter is not None
    about = adapter.record
    items, tasks = sum(part.items for part in slices), len({part.task for part in slices})
    return (
        f"{responder.model.name} + {adapter.name} "
        f"({about.method}, {about.experts} experts of rank {about.rank}, {adapter.hash[:8]}), "
        f"n = {items} items of {tasks} task{'s' * (tasks != 1)}"
    )
