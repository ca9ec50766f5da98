"""Who answers in a run: model, adapter, dtype and engine, known by identity before any weights are loaded."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from cme_bench.engines.base import Engine, Request
from cme_bench.models.adapter import Adapter, AdapterCheckpoint
from cme_bench.models.float16 import Computed
from cme_bench.models.loaded import LoadedModel
from cme_bench.models.quantisation import DEQUANTISED
from cme_bench.models.vision import Vision
from cme_bench.prompts.bos import decide_bos, model_types, trained_prefix
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.ending import TrainedEnd, trained_end
from cme_bench.prompts.vocabulary import embeddings
from cme_bench.runs.engine_source import EngineJob, EngineSource, never
from cme_bench.runs.options import WIDE
from cme_bench.util.errors import UsageError


class Responder:
    """A base model with one adapter or none; the engine is made on first use.

    Args:
        engines: What makes its engine.
        adapter: The adapter's name, as the engines know it; None: what they ask where none is named.
        bos: Whether prompts begin with BOS, as ``--bos`` says.
        stopping: Whether the run was asked to stop.
    """

    def __init__(
        self,
        engines: EngineSource,
        adapter: str | None = None,
        *,
        bos: str = "auto",
        stopping: Callable[[], bool] = never,
    ) -> None:
        self.engines = engines
        self.adapter: Adapter | None = engines.adapter(adapter)
        self._bos = bos
        self._stopping = stopping
        self._engine: Engine | None = None
        self.overflowed: str | None = None
        """Why it is computed in bfloat16 though nothing before it ran spoke against float16."""
        self.generated: int | None = None
        """Most tokens that the whole command may generate, all adapters together, once that is known."""

    @property
    def model(self) -> LoadedModel:
        """Return the base model."""
        return self.engines.model

    @property
    def name(self) -> str:
        base = self.model.name
        return base if self.adapter is None else f"{base}-{self.adapter.name}"

    @property
    def tokenizer(self) -> Any:
        """The one beside the adapter, or the base's."""
        return self.model.tokenizer_of(self.adapter).tokenizer

    @property
    def tokenizer_place(self) -> str:
        """Return where the tokenizer lies, for messages."""
        if isinstance(self.adapter, AdapterCheckpoint) and self.model.tokenizer_of(self.adapter).identity:
            return str(self.adapter.path)
        return self.model.place

    @property
    def notes(self) -> list[str]:
        """Notes for the user on the adapter and its prompts."""
        if self.adapter is None:
            return []
        note = self.model.tokenizer_of(self.adapter).note
        return [*self.adapter.notes, *([] if note is None else [note])]

    @property
    def embeddings(self) -> int:
        """How many token ids the model knows, with those that the adapter ships."""
        grown = None if self.adapter is None else self.adapter.vocabulary
        return embeddings(self.model.config) if grown is None else grown

    @property
    def vision(self) -> Vision | None:
        """How it reads images; None for a model of text alone. UsageError if its processor is missing."""
        return self.model.vision

    @functools.cached_property
    def _processor(self) -> str | None:
        """The settings by which it reads images, as an identity has them; text is asked without."""
        try:
            return None if self.vision is None else self.vision.fingerprint
        except UsageError:
            return None

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder that makes token ids of its prompts. UsageError if ``--bos`` cannot be honoured."""
        trained = None
        if self.adapter is not None:
            trained = trained_prefix(self.adapter.tokenization, self.tokenizer)
        kinds = model_types(self.model.config)
        bos = decide_bos(self.tokenizer, self._bos, model_types=kinds, trained=trained)
        ends = () if self.trained_end is None else self.trained_end.tokens
        return Encoder(self.tokenizer, bos, self.engines.pieces_of(self.tokenizer), ends)

    @functools.cached_property
    def trained_end(self) -> TrainedEnd | None:
        """The end of the adapter's answers, by its training, where that is not one of its base's."""
        if self.adapter is None:
            return None
        return trained_end(self.adapter.tokenization, self.tokenizer, self.model.eos)

    @property
    def saved_format(self) -> str | None:
        """The prompt format the adapter was trained with."""
        return None if self.adapter is None else self.adapter.prompt_format

    @property
    def max_length(self) -> int:
        """Most tokens the model is fed of a row; virtual tokens of an adapter take some of its positions."""
        from cme_bench.engines.hf.forward import max_positions

        positions = max_positions(self.model.config)
        given = self.engines.options.settings.get("max_length", positions)
        taken = 0 if self.adapter is None else self.adapter.virtual_tokens
        return min(given, positions - taken) if taken else given

    @property
    def computed(self) -> Computed | None:
        """The type that it is computed in and why, where that may be another than the model's."""
        return self.computed_by(self.engines.computes)

    def computed_by(self, engine: str) -> Computed | None:
        """Return the type that ``engine`` would compute it in, and why."""
        found = self.engines.computed(self.adapter, engine)
        if found is not None and found.dtype == "float16" and self.overflowed is not None:
            return Computed("bfloat16", self.overflowed)
        return found

    @property
    def in_float16(self) -> bool:
        """Whether it is a bfloat16 model that is computed in float16."""
        return self.computed is not None and self.computed.dtype == "float16"

    @property
    def identity(self) -> dict[str, str]:
        """The identity of its responses, by the engine that computes; see ``identity_by``."""
        return self.identity_by(self.engines.computes)

    def identity_by(self, engine: str) -> dict[str, str]:
        """Return the identity of its responses: two responders with one identity answer alike.

        Engine ray changes where an answer is computed and not how, so its workers' engine stands here. The
        base's tokenizer goes without saying; one beside the adapter does not. ``logits`` is there for 16-bit
        types only: earlier versions rounded logits to them. So is ``states``, where the engine keeps hidden
        states in float32, or in float16 those of a bfloat16 model; earlier versions rounded both.
        ``quantised`` is there where the hash of the model's files does not tell how its weights are
        quantised, ``processor`` where a model takes images.
        """
        own = self.model.tokenizer_of(self.adapter).identity
        quantised = self.model.quantised_as
        dtype = self.model.dtype_name
        narrow = dtype in ("bfloat16", "float16")
        return {
            "model": self.model.hash,
            "adapter": "none" if self.adapter is None else self.adapter.hash,
            "dtype": dtype,
            "engine": engine,
            **({"quantised": quantised} if quantised else {}),
            **({"tokenizer": own} if own else {}),
            **({"processor": self._processor} if self._processor else {}),
            **({"logits": "float32"} if narrow else {}),
            **({"states": states} if narrow and (states := self._states(engine)) else {}),
        }

    def _states(self, engine: str) -> str | None:
        """Return the type of a 16-bit model's hidden states with ``engine``; None: that of the model."""
        computed = self.computed_by(engine)
        if computed is not None:
            return None if computed.dtype == self.model.dtype_name else computed.dtype
        plain = self.model.quantisation is None or self.model.quantised_as == DEQUANTISED
        wide = plain and engine == "hf" and bool(self.engines.options.settings.get(WIDE, 1))
        return "float32" if wide else None

    def engine(self, first: Request, longest: int | None = None) -> Engine:
        """Return the engine, made when it is first asked for.

        Args:
            first: A request that it will answer.
            longest: Most tokens of any row that it will be asked, if that is known.

        Raises AdapterError if the adapter does not fit, or changes no logit of that request.
        """
        if self._engine is None:
            most = self.max_length + 1  # a row's last token is scored, or generated, but never fed
            longest = longest or most
            job = EngineJob(most, longest, first.prompt, self.generated, first.images, self.computed)
            self._engine = self.engines.open(self.adapter, job, self._stopping)
        return self._engine

    @property
    def loaded(self) -> Engine | None:
        """Return the engine if it was needed so far."""
        return self._engine

    def close(self) -> None:
        """Let go of this adapter; the base model stays for the next."""
        if self._engine is not None:
            self._engine.close()
            self.engines.release()
            self._engine = None
