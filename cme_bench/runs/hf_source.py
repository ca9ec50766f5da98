"""Engine hf of a run: the base's weights stay, adapters are put on and taken off."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cme_bench.engines.base import Engine
from cme_bench.engines.kept_plans import KeptPlans
from cme_bench.runs.engine_source import EngineJob, SavedSource, never, saved
from cme_bench.runs.options import PIECES, WIDE
from cme_bench.runs.probing import check_probe, reader_of
from cme_bench.util.building import build_early
from cme_bench.util.early import Early
from cme_bench.util.notes import Note, unheard
from cme_bench.util.phases import phase

if TYPE_CHECKING:
    from cme_bench.engines.hf.forward import CausalForward
    from cme_bench.models.adapter import Adapter, AdapterCheckpoint
    from cme_bench.models.fingerprint import Fingerprint
    from cme_bench.models.loaded import SavedModel
    from cme_bench.runs.engine_choice import Waiting
    from cme_bench.runs.options import ModelOptions


_NO_ADAPTER = ""


class Base(NamedTuple):
    """Hold what the base alone decides, for all of its adapters.

    ``positions``: whether it takes those that count from 0; ``verdicts``: of trials that hold with adapters
    of single tokens too; ``clean``: its fingerprint before any adapter, None where there is none to put on.
    """

    positions: bool
    verdicts: Mapping[str, Any]
    clean: Fingerprint | None


class HFSource(SavedSource):
    """transformers on one copy of the weights.

    Some adapters leave the base changed (whole modules that were trained, biases, initialisations that
    subtract what they put into the adapter). The base is compared before and after each, and loaded again
    where it differs.
    """

    def __init__(self, model: SavedModel, options: ModelOptions, note: Note = unheard) -> None:
        super().__init__(model, options, note)
        self._peft: Any = None
        self._name = ""
        self._builds: Early[None] | None = None
        self._early: Early[Base] | None = None
        self._adapters: Sequence[AdapterCheckpoint] = ()
        self._clean: Fingerprint | None = None
        self._changed: str | None = None
        self._warm: CausalForward | None = None
        """What calls the bare model, of text. Engines with adapters share what it made of the weights."""
        self._plans = KeptPlans()
        self._verdicts: dict[str, dict[str, Any]] = defaultdict(dict)
        """Of trials, by the adapter's hash: engines of one base with one adapter need no second."""

    def decide(
        self,
        adapters: Sequence[Adapter | None],
        waiting: Callable[[], Waiting],
        begun: Callable[[str], bool],
    ) -> None:
        """Know the adapters that will be put on."""
        self._adapters = [found for adapter in adapters if (found := saved(adapter)) is not None]

    def begin(self) -> None:
        """Begin to load the weights and to try the base, and to build the kernels that a GPU needs."""
        self._early = self._early or build_early(self._tried)
        if self._builds is None and self.model.device.type == "cuda":
            self._builds = Early(self._build)

    @phase("kernels")
    def _build(self) -> None:
        from cme_bench.engines.hf import quick_rotary

        quick_rotary.build_early(self.model.device)
        wide = self.model.dtype_name in {"bfloat16", "float16"} and self._is_wide
        if wide or (self.model.dtype_name == "float32" and self._by_pieces is not False):
            from cme_bench.engines.hf.tree_kernel import Factors, build_early

            build_early(self.model.config, self.model.device, Factors.HALVES if wide else Factors.PIECES)
        if self._adapters:
            from cme_bench.adapters.files import read_config
            from cme_bench.adapters.routing.building import build

            for adapter in self._adapters:
                build(read_config(adapter.path), self.model.device)

    @functools.cached_property
    def _base(self) -> Base:
        """Return what the base decides; waits for the weights."""
        with phase("weights"):
            return self._tried() if self._early is None else self._early.result()

    @phase("weights")
    def _tried(self) -> Base:
        from cme_bench.engines.hf.engine import ROWWISE
        from cme_bench.engines.hf.forward import CausalForward, max_positions
        from cme_bench.engines.hf.sharing import why_rowwise
        from cme_bench.models.fingerprint import fingerprint
        from cme_bench.util.auto_model import sees

        model = self.model.model
        clean = fingerprint(model) if self._adapters else None
        forward = CausalForward(
            model,
            self.model.device,
            wide=self._is_wide,
            pieces=self._by_pieces,
            verdicts=self._verdicts[_NO_ADAPTER],
        )
        verdicts = dict[str, Any]()
        if not sees(model.config):  # else engines have a forward of their own, which knows of images
            self._warm = forward.tried()
            if self._shares:
                verdicts[ROWWISE] = why_rowwise(forward, max_positions(model.config))
        return Base(forward.takes_positions, verdicts, clean)

    @property
    def _shares(self) -> bool:
        return bool(self.options.settings.get("shared_prefixes", 1))

    @property
    def _is_wide(self) -> bool:
        return bool(self.options.settings.get(WIDE, 1))

    @property
    def _by_pieces(self) -> bool | None:
        return bool(self.options.settings[PIECES]) if PIECES in self.options.settings else None

    def _found(self, adapter: AdapterCheckpoint | None) -> dict[str, Any]:
        """Return what trials found of the base, or of an adapter that is on."""
        from cme_bench.engines.hf.alone import is_known_per_token

        found = self._verdicts[_NO_ADAPTER if adapter is None else adapter.hash]
        if adapter is None or is_known_per_token(self._peft):
            for name, verdict in self._base.verdicts.items():
                found.setdefault(name, verdict)
        return found

    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        with phase("libraries"):
            from cme_bench.engines.hf.engine import HFEngine

        settings = self.options.settings
        if self._changed is not None:
            self.note(f"{self._changed}: it is loaded again")
            self._changed = None
        found, positions = saved(adapter), self._base.positions
        with phase("adapters"):
            model = self.model.model if found is None else self._adapted(found, job)
        with phase("trials"):
            return HFEngine(
                model,
                self.model.tokenizer_of(adapter).tokenizer,
                max_length=job.max_length,
                tokens_per_batch=settings.get("tokens_per_batch"),
                plain=not self._shares,
                static=bool(settings["graphs"]) if "graphs" in settings else None,
                note=self.note,
                reader=reader_of(self.model),
                wide=self._is_wide,
                pieces=self._by_pieces,
                verdicts=self._found(found),
                positions=positions,
                plans=self._plans,
                forward=self._warm if found is None else None,
            )

    def _adapted(self, adapter: AdapterCheckpoint, job: EngineJob) -> Any:
        from cme_bench.adapters.load import load_adapter
        from cme_bench.models.fingerprint import fingerprint

        if self._clean is None:
            self._clean = self._base.clean or fingerprint(self.model.model)
        try:
            self._peft = load_adapter(
                self.model.model, adapter.path, task=adapter.task, note=self._note_of(adapter)
            )
            check_probe(self._peft, self.model, job, adapter.name)
        except BaseException:
            self._take_off(adapter.name)
            raise
        self._name = adapter.name
        return self._peft

    def _note_of(self, adapter: AdapterCheckpoint) -> Note:
        """Return what tells and records what is only known once the weights are there."""

        def note(sentence: str) -> None:
            if sentence not in adapter.notes:
                adapter.notes.append(sentence)
                self.note(sentence)

        return note

    def release(self) -> None:
        if self._peft is not None:
            with phase("adapters"):
                self._take_off(self._name)

    def _take_off(self, name: str) -> None:
        """Remove the adapter ``name``; free the base if that, or a failure to put it on, left it changed."""
        from cme_bench.adapters.load import take_off
        from cme_bench.models.fingerprint import difference, fingerprint

        peft, self._peft = self._peft, None
        if peft is not None:
            take_off(peft)
        del peft
        assert self._clean is not None
        if found := difference(self._clean, fingerprint(self.model.model)):
            self._changed = f"adapter {name!r} left the base model changed ({found})"
            self._warm = None
            self.model.reload()
