"""Who answers in a run: model, adapter, dtype and engine, known by identity before any weights are loaded."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.engines.base import Engine, GenerateRequest, LoglikelihoodRequest, TokenIds
from cme_bench.engines.ray.cluster import Cluster
from cme_bench.models.adapter import AdapterCheckpoint, resolve_adapter
from cme_bench.models.adapter_tokenizer import AdapterTokenizer, beside
from cme_bench.models.checkpoint import Checkpoint, resolve_model
from cme_bench.models.load import (
    check_base,
    choose_device,
    evaluation_dtype,
    load_config,
    load_model,
    load_tokenizer,
)
from cme_bench.prompts.bos import decide_bos, model_types, trained_prefix
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.vocabulary import embeddings
from cme_bench.runs.engines import SOURCES, EngineSource, Job, check_computable
from cme_bench.runs.options import RunOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BaseModel:
    """The model that several adapters share. Weights are loaded on first use, and once.

    ``cluster``: where engine ray computes, which also decides the device; ``note`` is told what a user may
    want to know of it; ``stopping``: whether the run was asked to stop.
    """

    def __init__(self, options: RunOptions) -> None:
        self.options = options
        self._tokenizers: dict[Path, AdapterTokenizer] = {}
        self.note: Callable[[str], None] = lambda message: None
        self.stopping: Callable[[], bool] = lambda: False
        self.checkpoint: Checkpoint = resolve_model(options.model, offline=options.offline)
        self.config = load_config(self.checkpoint)
        check_base(self.checkpoint, self.config, options.computes)
        self.cluster = (
            Cluster(options.address, options.workers, options.gpus_per_worker)
            if options.engine == "ray"
            else None
        )
        self.device = choose_device() if self.cluster is None else self.cluster.device
        self.dtype, self.dtype_because = evaluation_dtype(
            options.dtype, self.config, self.device, lambda: self.parameters
        )

    @functools.cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.checkpoint)

    def tokenizer_of(self, adapter: AdapterCheckpoint | None) -> AdapterTokenizer:
        """Return what an adapter is asked with: the tokenizer and template beside it, or the base's."""
        if adapter is None:
            return AdapterTokenizer(self.tokenizer)
        if adapter.path not in self._tokenizers:
            self._tokenizers[adapter.path] = beside(adapter.path, self.tokenizer)
        return self._tokenizers[adapter.path]

    @functools.cached_property
    def parameters(self) -> int:
        return count_parameters(self.config)

    @functools.cached_property
    def model(self) -> PreTrainedModel:
        return load_model(self.checkpoint, self.dtype, self.device)

    def reload(self) -> None:
        """Free the weights; they are loaded again when they are next asked for."""
        self.__dict__.pop("model", None)
        gc.collect()
        if self.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()

    @functools.cached_property
    def engines(self) -> EngineSource:
        return SOURCES[self.options.engine if self.options.engine == "ray" else self.options.computes](self)

    def close(self) -> None:
        """Free what computes."""
        if "engines" in self.__dict__:
            self.engines.close()
        if self.cluster is not None:
            self.cluster.close()


class Responder:
    """A base model with one adapter or none; the engine is made on first use."""

    def __init__(self, options: RunOptions, base: BaseModel, adapter: str | None = None) -> None:
        self.options = options
        self.base = base
        self.adapter: AdapterCheckpoint | None = (
            None if adapter is None else resolve_adapter(adapter, base.config)
        )
        if self.adapter is not None:
            check_computable(options.computes, self.adapter, base)
        self.longest: int | None = None
        """Most tokens of a row that will be asked, if that is known before the engine is made."""
        self._engine: Engine | None = None

    @property
    def name(self) -> str:
        base = self.base.checkpoint.name
        return base if self.adapter is None else f"{base}-{self.adapter.name}"

    @property
    def tokenizer(self) -> Any:
        """The one beside the adapter, or the base's."""
        return self.base.tokenizer_of(self.adapter).tokenizer

    @property
    def notes(self) -> list[str]:
        """What a user should know of the adapter and of how it is asked."""
        if self.adapter is None:
            return []
        note = self.base.tokenizer_of(self.adapter).note
        return [*self.adapter.notes, *([] if note is None else [note])]

    @property
    def embeddings(self) -> int:
        """How many token ids the model knows, with those that the adapter ships."""
        grown = None if self.adapter is None else self.adapter.vocabulary
        return embeddings(self.base.config) if grown is None else grown

    @functools.cached_property
    def encoder(self) -> Encoder:
        """What makes token ids of its prompts. UsageError if ``--bos`` cannot be honoured."""
        trained = None
        if self.adapter is not None:
            trained = trained_prefix(self.adapter.tokenization, self.tokenizer)
        kinds = model_types(self.base.config)
        bos = decide_bos(self.tokenizer, self.options.bos, model_types=kinds, trained=trained)
        return Encoder(self.tokenizer, bos)

    @property
    def saved_format(self) -> str | None:
        """The prompt format the adapter was trained with."""
        return None if self.adapter is None else self.adapter.prompt_format

    @property
    def max_length(self) -> int:
        """Most tokens the model is fed of a row; virtual tokens of an adapter take some of its positions."""
        from cme_bench.engines.hf.forward import max_positions

        positions = max_positions(self.base.config)
        given = self.options.settings.get("max_length", positions)
        taken = 0 if self.adapter is None else self.adapter.virtual_tokens
        return min(given, positions - taken) if taken else given

    @property
    def identity(self) -> dict[str, str]:
        """What a stored response belongs to: two responders with one identity answer alike.

        Engine ray changes where an answer is computed and not how, so its workers' engine stands here. The
        base's tokenizer goes without saying; one beside the adapter does not. ``logits`` is there for 16-bit
        types only: earlier versions rounded logits to them.
        """
        own = self.base.tokenizer_of(self.adapter).identity
        dtype = str(self.base.dtype).removeprefix("torch.")
        return {
            "model": self.base.checkpoint.hash,
            "adapter": "none" if self.adapter is None else self.adapter.hash,
            "dtype": dtype,
            "engine": self.options.computes,
            **({"tokenizer": own} if own else {}),
            **({} if dtype == "float32" else {"logits": "float32"}),
        }

    def engine(self, first: LoglikelihoodRequest | GenerateRequest) -> Engine:
        """The engine, made when it is first asked for; ``first`` is a request it will answer.

        Raises AdapterError if the adapter does not fit, or changes no logit of that request.
        """
        if self._engine is None:
            most = self.max_length + 1  # a row's last token is scored, or generated, but never fed
            job = Job(most, self.longest or most, first_prompt(first))
            self._engine = self.base.engines.open(self.adapter, job)
        return self._engine

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
            "dtype_because": self.base.dtype_because,
        }

    def close(self) -> None:
        """Done with this adapter; the base model stays for the next."""
        if self._engine is not None:
            self._engine.close()
            self.base.engines.release()
            self._engine = None


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
