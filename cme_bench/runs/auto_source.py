"""Engine auto of a run: hf or vllm, decided once for all adapters, before the first is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cme_bench.engines.base import Engine, Request
from cme_bench.models.adapter import Adapter
from cme_bench.models.loaded import SavedModel
from cme_bench.runs.engine_choice import Choice, LocalChoice, Waiting, by_options, by_work
from cme_bench.runs.engine_source import EngineJob, SavedSource, never, saved
from cme_bench.runs.hf_source import HFSource
from cme_bench.runs.options import ModelOptions
from cme_bench.runs.vllm_source import VLLMSource
from cme_bench.util.errors import UsageError, first_line
from cme_bench.util.notes import Note, unheard

SOURCES: dict[str, type[SavedSource]] = {"hf": HFSource, "vllm": VLLMSource}
"""Local engine -> what makes it."""


class AutoSource(SavedSource):
    """One of the local engines, hf until ``decide`` says otherwise.

    ``forced``: the only engine that can load the model, and why; None if there is a choice.
    """

    def __init__(
        self, model: SavedModel, options: ModelOptions, forced: Choice | None, note: Note = unheard
    ) -> None:
        super().__init__(model, options, note)
        self._choice = forced or Choice("hf", "")
        self._decided = forced is not None
        self._made: SavedSource | None = None
        self._told = self._images = False

    @property
    def computes(self) -> str:
        return self._choice.engine

    @property
    def because(self) -> str | None:
        """Why it is this engine; None before it is decided."""
        return f"auto: {self._choice.because}" if self._decided else None

    def decide(
        self,
        adapters: Sequence[Adapter | None],
        waiting: Callable[[], Waiting],
        begun: Callable[[str], bool],
    ) -> None:
        """Choose for all that this process asks: the first decision holds.

        A run that is begun goes on with its engine, if that can compute here.
        """
        if not self._decided:
            self._choice = self._chosen(adapters, waiting, begun)
            self._decided = True
        self._source.decide(adapters, waiting, begun)

    def _chosen(
        self,
        adapters: Sequence[Adapter | None],
        waiting: Callable[[], Waiting],
        begun: Callable[[str], bool],
    ) -> Choice:
        choice = by_options(
            self.model.device.type,
            quantised=self.model.quantisation,
            device_map=self.options.device_map,
            settings=self.options.settings,
        )
        if self._images:
            return Choice("hf", "its tasks show images")
        there: tuple[LocalChoice, ...] = ("hf", "vllm") if vllm_is_there() else ("hf",)
        held = [engine for engine in there if begun(engine)]
        if held == ["hf"]:
            return Choice("hf", "the run was begun with it")
        if held == ["vllm"] and self._why_not_vllm(adapters) is None:
            return Choice("vllm", "the run was begun with it")
        if choice is None and not vllm_is_there():
            choice = Choice("hf", "vLLM is not installed")
        choice = choice or by_work(waiting(), self.model.parameters)
        if choice.engine == "vllm" and (reason := self._why_not_vllm(adapters)) is not None:
            return Choice("hf", reason)
        return choice

    def _why_not_vllm(self, adapters: Sequence[Adapter | None]) -> str | None:
        """Return why vLLM cannot answer with all of ``adapters`` here; None if it can."""
        from cme_bench.adapters.errors import AdapterError
        from cme_bench.engines.vllm.settings import require_vllm
        from cme_bench.models.load import check_base

        try:
            check_base(self.model.checkpoint, self.model.config, "vllm")
            for adapter in adapters:
                if (found := saved(adapter)) is not None:
                    self.check_vllm(found)
            require_vllm()
        except (UsageError, AdapterError) as error:
            return first_line(error)
        return None

    @property
    def _source(self) -> SavedSource:
        if self._made is None:
            self._made = SOURCES[self.computes](self.model, self.options, self.note)
        return self._made

    def check(self, requests: Iterable[Request]) -> None:
        """Note whether images are asked about: they are computed by engine hf, each once."""
        if any(request.images for request in requests):
            self._images = True

    def groups(self, adapters: Sequence[Adapter | None]) -> list[list[int]]:
        return self._source.groups(adapters)

    def begin(self) -> None:
        self._source.begin()

    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        if not self._told:
            self.note(f"engine {self._choice.engine} (auto: {self._choice.because})")
            self._told = True
        return self._source.open(adapter, job, stopping)

    def release(self) -> None:
        if self._made is not None:
            self._made.release()

    def close(self) -> None:
        if self._made is not None:
            self._made.close()


def vllm_is_there() -> bool:
    """Tell whether a package called vllm is installed; whether it serves is asked where it is wanted."""
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


def open_auto(options: ModelOptions, find: Callable[[str], SavedModel], note: Note = unheard) -> AutoSource:
    """Return engine auto for the model that ``find`` returns for an engine's name.

    A model that transformers cannot load goes to vLLM where that can; else both reasons are raised as one.
    """
    try:
        return AutoSource(find("hf"), options, None, note)
    except UsageError as error:
        reason = error
    if options.quantize is not None or options.device_map is not None or not vllm_is_there():
        raise reason
    from cme_bench.engines.vllm.settings import require_vllm

    try:
        model = find("vllm")
        require_vllm()
    except UsageError as error:
        raise reason if str(error) == str(reason) else UsageError(f"{reason} (vLLM: {error})") from None
    return AutoSource(model, options, Choice("vllm", "transformers cannot load the model"), note)
