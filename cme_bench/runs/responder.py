"""Who answers in a run: checkpoint, dtype and engine, known by identity before any weights are loaded."""

from __future__ import annotations

import functools
from typing import Any

from cme_bench.engines.base import Engine
from cme_bench.models.checkpoint import Checkpoint, resolve_model
from cme_bench.models.load import choose_device, choose_dtype, load_config, load_model, load_tokenizer
from cme_bench.runs.options import RunOptions


class Responder:
    """Resolves the model at once; loads the tokenizer and the engine when they are first needed."""

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self.checkpoint: Checkpoint = resolve_model(options.model, offline=options.offline)
        self.config = load_config(self.checkpoint)
        self.device = choose_device()
        self.dtype = choose_dtype(options.dtype, self.config, self.device)
        self._engine: Engine | None = None

    @functools.cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.checkpoint)

    @property
    def max_length(self) -> int:
        from cme_bench.engines.hf.forward import max_positions

        return self.options.settings.get("max_length", max_positions(self.config))

    @property
    def identity(self) -> dict[str, str]:
        """What a stored response belongs to: two responders with one identity answer alike."""
        return {
            "model": self.checkpoint.hash,
            "adapter": "none",
            "dtype": str(self.dtype).removeprefix("torch."),
            "engine": self.options.engine,
        }

    @property
    def engine(self) -> Engine:
        """The engine, loaded on first use."""
        if self._engine is None:
            from cme_bench.engines.hf.engine import HFEngine

            self._engine = HFEngine(
                load_model(self.checkpoint, self.dtype, self.device),
                self.tokenizer,
                max_length=self.max_length,
                tokens_per_batch=self.options.settings.get("tokens_per_batch"),
            )
        return self._engine

    @property
    def loaded(self) -> Engine | None:
        """The engine if it was needed so far."""
        return self._engine

    def describe(self) -> dict[str, Any]:
        """The model as ``run.json`` records it."""
        return {
            "name": self.checkpoint.name,
            "path": str(self.checkpoint.path),
            "hash": self.checkpoint.hash,
            "revision": self.checkpoint.revision,
            "architecture": (self.config.architectures or ["unknown"])[0],
            "parameters": count_parameters(self.config),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def count_parameters(config: Any) -> int:
    """Parameters of the model that ``config`` describes, tied ones once; no memory is used (meta device)."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())
