"""Who answers in a run: model, adapter, dtype and engine, known by identity before any weights are loaded."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from cme_bench.engines.base import Engine, GenerateRequest, LoglikelihoodRequest, TokenIds
from cme_bench.models.adapter import AdapterCheckpoint, resolve_adapter
from cme_bench.models.checkpoint import Checkpoint, resolve_model
from cme_bench.models.load import choose_device, choose_dtype, load_config, load_model, load_tokenizer
from cme_bench.runs.options import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIVENESS_TOKENS = 256


class BaseModel:
    """The model that several adapters share. Weights are loaded on first use, and once."""

    def __init__(self, options: RunOptions) -> None:
        self.checkpoint: Checkpoint = resolve_model(options.model, offline=options.offline)
        self.config = load_config(self.checkpoint)
        self.device = choose_device()
        self.dtype = choose_dtype(options.dtype, self.config, self.device)

    @functools.cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.checkpoint)

    @functools.cached_property
    def parameters(self) -> int:
        return count_parameters(self.config)

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        return load_model(self.checkpoint, self.dtype, self.device)


class Responder:
    """A base model with one adapter or none; the engine is made on first use."""

    def __init__(self, options: RunOptions, base: BaseModel, adapter: str | None = None) -> None:
        self.options = options
        self.base = base
        self.adapter: AdapterCheckpoint | None = (
            None if adapter is None else resolve_adapter(adapter, base.config)
        )
        self._peft: Any = None
        self._engine: Engine | None = None

    @property
    def name(self) -> str:
        base = self.base.checkpoint.name
        return base if self.adapter is None else f"{base}-{self.adapter.name}"

    @property
    def tokenizer(self) -> Any:
        return self.base.tokenizer

    @property
    def saved_format(self) -> str | None:
        """The prompt format the adapter was trained with."""
        return None if self.adapter is None else self.adapter.prompt_format

    @property
    def max_length(self) -> int:
        """Most tokens the model is fed of a row."""
        from cme_bench.engines.hf.forward import max_positions

        return self.options.settings.get("max_length", max_positions(self.base.config))

    @property
    def identity(self) -> dict[str, str]:
        """What a stored response belongs to: two responders with one identity answer alike."""
        return {
            "model": self.base.checkpoint.hash,
            "adapter": "none" if self.adapter is None else self.adapter.hash,
            "dtype": str(self.base.dtype).removeprefix("torch."),
            "engine": self.options.engine,
        }

    def engine(self, first: LoglikelihoodRequest | GenerateRequest) -> Engine:
        """The engine, loaded when it is first asked for; ``first`` is a request it will answer.

        Raises AdapterError if the adapter does not fit, or changes no logit of that request.
        """
        if self._engine is None:
            from cme_bench.engines.hf.engine import HFEngine

            model = self.base.model
            if self.adapter is not None:
                model = self._adapted(model, first_prompt(first))
            self._engine = HFEngine(
                model,
                self.tokenizer,
                max_length=self.max_length + 1,
                tokens_per_batch=self.options.settings.get("tokens_per_batch"),
                plain=not self.options.settings.get("shared_prefixes", 1),
            )
        return self._engine

    def _adapted(self, model: PreTrainedModel, tokens: TokenIds) -> Any:
        import torch

        from cme_bench.adapters.liveness import check_liveness
        from cme_bench.adapters.load import load_adapter

        assert self.adapter is not None
        self._peft = load_adapter(model, self.adapter.path, name=self.adapter.name)
        ids = torch.tensor([tokens[-LIVENESS_TOKENS:]], device=self.base.device)
        check_liveness(self._peft, ids)
        return self._peft

    @property
    def loaded(self) -> Engine | None:
        """The engine if it was needed so far."""
        return self._engine

    def describe(self) -> dict[str, Any]:
        """The base model as ``run.json`` records it."""
        checkpoint = self.base.checkpoint
        return {
            "name": checkpoint.name,
            "path": str(checkpoint.path),
            "hash": checkpoint.hash,
            "revision": checkpoint.revision,
            "architecture": (self.base.config.architectures or ["unknown"])[0],
            "parameters": self.base.parameters,
            "dtype": str(self.base.dtype).removeprefix("torch."),
        }

    def close(self) -> None:
        """Free the engine and take the adapter off the base model."""
        if self._engine is not None:
            self._engine.close()
        if self._peft is not None:
            self._peft.unload()
            self._peft = None


def first_prompt(request: LoglikelihoodRequest | GenerateRequest) -> TokenIds:
    """The prompt of a request; of its first choice, where there are several."""
    return request.prompt if isinstance(request, GenerateRequest) else request.rows[0][0]


def count_parameters(config: Any) -> int:
    """Parameters of the model that ``config`` describes, tied ones once; no memory is used (meta device)."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())
