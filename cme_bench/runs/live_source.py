"""A run of a model in memory: the HF engine on the model itself, lent and given back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from cme_bench.engines.base import Engine
from cme_bench.models.adapter import Adapter
from cme_bench.models.live import LiveModel, unwrapped
from cme_bench.runs.engine_source import EngineJob, EngineSource, never
from cme_bench.runs.folders import DEFAULT_ROOT
from cme_bench.runs.options import PIECES, WIDE, ModelOptions, RunOptions, check_model, model_half
from cme_bench.runs.probing import check_probe, reader_of
from cme_bench.runs.progress import Listener
from cme_bench.runs.questions import Questions
from cme_bench.runs.responder import Responder
from cme_bench.runs.runner import ask
from cme_bench.util.errors import UsageError
from cme_bench.util.notes import Note, unheard
from cme_bench.util.options import FormatName


def run_live(
    model: Any,
    tokenizer: Any,
    options: RunOptions,
    listener: Listener | None = None,
    *,
    name: str | None = None,
    root: Path = DEFAULT_ROOT,
) -> list[Path]:
    """Evaluate a model in memory as it is now, or with each of several of its adapters; return run folders.

    The model, its configuration and all random states are as before afterwards, also after an error. Raises
    UsageError for what is no model, for engines that load their own, and for adapters that it does not have.
    ``name`` and ``root``: what it is called, and where folders are made that ``options`` do not name.
    """
    listener = listener or Listener()
    with _lent(model, tokenizer, options, listener.note, name) as engines:
        named = options.adapters or engines.present()
        return ask(engines, replace(options, adapters=named), listener, root=root)


def check_live(model: Any, tokenizer: Any, options: RunOptions) -> None:
    """Raise UsageError if ``run_live`` would before it computes anything; rows are not read."""
    Questions(options, offline=options.offline)
    with _lent(model, tokenizer, options, unheard, None) as engines:
        for adapter in options.adapters or engines.present():
            Responder(engines, adapter, bos=options.bos)


@contextmanager
def _lent(
    model: Any, tokenizer: Any, options: RunOptions, note: Note, name: str | None
) -> Iterator[LiveSource]:
    """Give the engines of a model in memory, which is as before afterwards."""
    from torch import nn

    from cme_bench.models.preserved import preserved

    check_model(options)
    if options.engine not in ("auto", "hf"):
        raise UsageError(
            f"engine {options.engine} loads its own weights: save the model and give its folder, or leave "
            "engine out"
        )
    if not isinstance(model, nn.Module):
        raise UsageError(f"a {type(model).__name__} is no model: give a folder, a hub id or a loaded model")
    with preserved(unwrapped(model)):
        live = LiveModel(model, tokenizer, name)
        if options.dtype not in ("auto", live.dtype_name):
            raise UsageError(
                f"dtype {options.dtype}: the model in memory is {live.dtype_name}; convert it first"
            )
        half = replace(model_half(options), model=live.name, engine="hf", dtype=live.dtype_name)
        with LiveSource(live, half, options.prompt_format, note) as engines:
            yield engines


class LiveSource(EngineSource):
    """The HF engine on a model in memory, inside ``preserved``.

    An adapter's name is one that the model knows it by; None: the model with its adapters off. The adapters
    that compute now are together one more, ``a+b``.
    """

    model: LiveModel

    def __init__(
        self, model: LiveModel, options: ModelOptions, prompt_format: str, note: Note = unheard
    ) -> None:
        super().__init__(model, options, note)
        self._prompt_format = prompt_format
        self._active = model.active()
        self._applied = ExitStack()
        self._checked = False

    def present(self) -> tuple[str | None, ...]:
        """Return the name of the adapters that compute now."""
        return ("+".join(self._active),) if self._active else (None,)

    def adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        found = self.model.adapter(self._names(name))
        if found.prompt_format is None and self._prompt_format == "auto":
            raise UsageError(
                f"adapter {name!r} does not say in which prompt format it was trained: give prompt_format= "
                f"({', '.join(get_args(FormatName)[1:])})"
            )
        return found

    def _names(self, name: str) -> tuple[str, ...]:
        together = len(self._active) > 1 and name == "+".join(self._active)
        return self._active if together else (name,)

    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        from cme_bench.engines.hf.engine import HFEngine

        self.release()
        model = self.model.given.eval()
        if self.model.peft is not None:
            model = self._switched(adapter, job)
        if not self._checked:
            self.model.check()
            self._checked = True
        settings = self.options.settings
        return HFEngine(
            model,
            self.model.tokenizer,
            max_length=job.max_length,
            tokens_per_batch=settings.get("tokens_per_batch"),
            plain=not settings.get("shared_prefixes", 1),
            static=bool(settings.get("graphs", 0)),  # hooks of a user would not run in a graph
            note=self.note,
            reader=reader_of(self.model),
            wide=bool(settings.get(WIDE, 1)),
            pieces=bool(settings[PIECES]) if PIECES in settings else None,
        )

    def _switched(self, adapter: Adapter | None, job: EngineJob) -> Any:
        """Return what computes with ``adapter`` on, and all others off."""
        peft = self.model.peft
        if adapter is None:
            self._applied.enter_context(peft.disable_adapter())
            return self.model.model
        names = self._names(adapter.name)
        if self.model.off:
            peft.base_model.enable_adapter_layers()
        if names != tuple(peft.active_adapters):
            switch = peft.set_adapter if len(names) == 1 else peft.base_model.set_adapter
            switch(names[0] if len(names) == 1 else list(names))
        peft._adapters_disabled = False
        self._check_alive(adapter, job)
        return peft

    def _check_alive(self, adapter: Adapter, job: EngineJob) -> None:
        """Note an adapter that changes nothing: it may be untrained yet, and is certainly on."""
        from cme_bench.adapters.errors import AdapterError
        from cme_bench.adapters.liveness import unchanged

        name = adapter.name
        try:
            check_probe(self.model.peft, self.model, job, name)
        except AdapterError as error:
            if str(error) != unchanged(repr(name)):
                raise
            adapter.notes.append(
                f"adapter {name!r} changes no logit: it scores as its base does (untrained?)"
            )

    def release(self) -> None:
        self._applied.close()
