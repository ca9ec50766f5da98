"""How a run gets its engines: made when first asked for, on a model that several adapters share."""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from cme_bench.engines.base import Engine, Request, TokenIds
from cme_bench.images.image import Image
from cme_bench.models.adapter import Adapter, AdapterCheckpoint, resolve_adapter
from cme_bench.models.float16 import ASKED, MORE, Computed, why_not_adapter, why_not_float16
from cme_bench.prompts.pieces import Pieces, pieces_of
from cme_bench.runs.options import HALF
from cme_bench.util.notes import Note, unheard
from cme_bench.util.phases import phase

if TYPE_CHECKING:
    from types import TracebackType

    from cme_bench.models.loaded import LoadedModel, SavedModel
    from cme_bench.runs.engine_choice import Waiting
    from cme_bench.runs.options import ModelOptions

LIVENESS_TOKENS = 256


def never() -> bool:
    """Return that the run was not asked to stop."""
    return False


@dataclass(frozen=True, slots=True)
class EngineJob:
    """The model, adapter and load that an engine is made for.

    Attributes:
        max_length: Most tokens of a row that the model takes.
        longest: Most tokens of any row that it will be asked.
        probe: A prompt of the run, whose answer an adapter must change.
        generated: Most tokens that the whole command may generate; None if that is not known.
        images: Those of the probe.
        computed: The type that vLLM computes a bfloat16 model in; None: what model and adapter say.
    """

    max_length: int
    longest: int
    probe: TokenIds
    generated: int | None = None
    images: tuple[Image, ...] = ()
    computed: Computed | None = None

    @property
    def liveness(self) -> TokenIds:
        """Return the end of the probe; all of one with images, which are not cut."""
        return self.probe if self.images else self.probe[-LIVENESS_TOKENS:]


class EngineSource(ABC):
    """Makes engines for one base model.

    Attributes:
        model: The base model.
        options: What was asked for: model, engine, settings.
        note: Told what a user may want to know of the model while it answers.
    """

    model: LoadedModel

    def __init__(self, model: LoadedModel, options: ModelOptions, note: Note = unheard) -> None:
        self.model = model
        self.options = options
        self.note = note

    @abstractmethod
    def adapter(self, name: str | None) -> Adapter | None:
        """Return the adapter of that name, or what is asked where none is named.

        Raises UsageError, or AdapterError, if there is none or if it cannot be computed exactly.
        """

    def pieces_of(self, tokenizer: Any) -> Pieces | None:
        """Return the pieces of one of the model's tokenizers: what one run learned serves the next."""
        known, pieces = self._pieces.get(id(tokenizer), (None, None))
        if known is not tokenizer:
            pieces = pieces_of(tokenizer)
            self._pieces[id(tokenizer)] = tokenizer, pieces
        return pieces

    @functools.cached_property
    def _pieces(self) -> dict[int, tuple[Any, Pieces | None]]:
        return {}

    @property
    def computes(self) -> str:
        """Return the engine that computes answers, as responses are known by."""
        return self.options.computes

    @property
    def because(self) -> str | None:
        """Return why it is this engine; None if it was asked for."""
        return None

    def computed(self, adapter: Adapter | None, engine: str) -> Computed | None:
        """Return the type that ``engine`` computes in and why, where that may be another than the model's."""
        return None

    def decide(  # noqa: B027 - most engines are asked for by name
        self,
        adapters: Sequence[Adapter | None],
        waiting: Callable[[], Waiting],
        begun: Callable[[str], bool],
    ) -> None:
        """Choose the engine for all ``adapters``, before the first is asked, where there is a choice.

        ``waiting`` counts what is asked; ``begun`` tells of an engine whether a run goes on that it began.
        """

    def groups(self, adapters: Sequence[Adapter | None]) -> list[list[int]]:
        """Return which of ``adapters`` answer at the same time, by place; each alone but for some engines."""
        return [[place] for place in range(len(adapters))]

    def begin(self) -> None:  # noqa: B027 - most engines have nothing to begin with
        """Begin in another thread what every engine needs, while the questions are planned."""

    def check(self, requests: Iterable[Request]) -> None:  # noqa: B027 - most engines answer every request
        """Raise UsageError if the engines cannot answer one of ``requests``, before the first is asked."""

    @abstractmethod
    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        """Return an engine that answers with ``adapter``.

        ``stopping`` says whether the run was asked to stop. Raises AdapterError if the adapter does not fit
        or does nothing.
        """

    @abstractmethod
    def release(self) -> None:
        """Let go of the engine opened last; parts that the next one can use stay."""

    def close(self) -> None:
        """Free everything."""
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with phase("closing"):
            self.close()


class SavedSource(EngineSource):
    """Engines of a model folder, with adapters from folders."""

    model: SavedModel

    def __init__(self, model: SavedModel, options: ModelOptions, note: Note = unheard) -> None:
        super().__init__(model, options, note)

    def adapter(self, name: str | None) -> AdapterCheckpoint | None:
        """Return the adapter that ``name`` names, a folder or one of the hub; None is the base model."""
        if name is None:
            return None
        found = resolve_adapter(name, self.model.config, offline=self.options.offline, note=self.note)
        if note := _other_quantisation(found, self.options.quantize):
            found.notes.append(note)
        if self.computes == "vllm":
            self.check_vllm(found)
        return found

    def computed(self, adapter: Adapter | None, engine: str) -> Computed | None:
        """Return float16 for a bfloat16 model on vLLM: its numbers have three bits more.

        It stays in bfloat16 where its range is needed, by the base or by ``adapter``, or if asked for.
        """
        if engine != "vllm" or self.model.dtype_name != "bfloat16":
            return None
        if not self.options.settings.get(HALF, 1):
            return Computed("bfloat16", ASKED)
        if reason := self._why_bfloat16 or self._why_adapter(saved(adapter)):
            return Computed("bfloat16", reason)
        return Computed("float16", MORE)

    @functools.cached_property
    def _why_bfloat16(self) -> str | None:
        return why_not_float16(self.model.checkpoint.path, self.model.config)

    def _why_adapter(self, adapter: AdapterCheckpoint | None) -> str | None:
        """Return why an adapter needs bfloat16's range. What is wrong with one is told when it is opened."""
        from cme_bench.adapters.errors import AdapterError
        from cme_bench.engines.vllm.adapter import read_gated

        if adapter is None:
            return None
        if adapter.hash not in self._adapters_ranges:
            reason = None
            with contextlib.suppress(AdapterError):
                reason = why_not_adapter(read_gated(adapter.path, self.model.config).tensors)
            self._adapters_ranges[adapter.hash] = reason
        return self._adapters_ranges[adapter.hash]

    @functools.cached_property
    def _adapters_ranges(self) -> dict[str, str | None]:
        return {}

    def check_vllm(self, adapter: AdapterCheckpoint) -> None:
        """Raise AdapterError or UsageError for an adapter that vLLM does not compute.

        What vLLM tells only when it runs is raised by ``open``.
        """
        from cme_bench.engines.vllm.adapter import adapted_linears
        from cme_bench.engines.vllm.fields import refuse_rounded
        from cme_bench.models.quantisation import check_takes_adapter, quantisation

        check_takes_adapter(self.model.checkpoint.path, self.model.config)
        adapted_linears(adapter.path, self.model.config)
        quantised = quantisation(self.model.config) is not None
        refuse_rounded(adapter.path, self.model.dtype_name, quantised=quantised)


def _other_quantisation(adapter: AdapterCheckpoint, quantize: str | None) -> str | None:
    """Return a note if an adapter's training record says that its base was quantised otherwise."""
    if not (training := adapter.record.training):
        return None
    then, now = training.get("quantize"), quantize
    if then == now:
        return None
    return (
        f"{adapter.path}: trained with {f'--quantize {then}' if then else 'no --quantize'}, evaluated with "
        f"{f'--quantize {now}' if now else 'none'}"
    )


def saved(adapter: Adapter | None) -> AdapterCheckpoint | None:
    """Return ``adapter``, which is one from a folder."""
    assert adapter is None or isinstance(adapter, AdapterCheckpoint)
    return adapter
