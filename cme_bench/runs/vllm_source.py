"""Engine vllm of a run: one running engine, in which adapters of one shape are swapped."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.engines.base import Engine, Request, TokenIds
from cme_bench.engines.virtual import is_virtual
from cme_bench.engines.vllm.seen import MOST_IMAGES
from cme_bench.runs.engine_source import EngineJob, SavedSource, never, saved
from cme_bench.runs.probing import reader_of
from cme_bench.util.early import Early
from cme_bench.util.errors import UsageError
from cme_bench.util.notes import Note, unheard
from cme_bench.util.phases import phase

if TYPE_CHECKING:
    from cme_bench.engines.vllm.host import Host
    from cme_bench.models.adapter import Adapter, AdapterCheckpoint
    from cme_bench.models.loaded import SavedModel
    from cme_bench.runs.engine_choice import Waiting
    from cme_bench.runs.options import ModelOptions
    from cme_bench.vllm_plugin.spec import GatedSpec


def _imported() -> str:
    from cme_bench.engines.vllm.settings import require_vllm

    with phase("libraries"):
        version = require_vllm()
    threading.Thread(target=_know_triton, name="cme-bench-triton").start()
    return version


def _know_triton() -> None:
    from cme_bench.util.kernels import know_triton

    know_triton()


class VLLMSource(SavedSource):
    """vLLM, which starts when it is first asked."""

    def __init__(self, model: SavedModel, options: ModelOptions, note: Note = unheard) -> None:
        super().__init__(model, options, note)
        self._held = contextlib.ExitStack()
        self._host: Host | None = None
        self._early: Early[str] | None = None
        self._adapters: Sequence[AdapterCheckpoint | None] = ()
        self._slots = 0
        """How many adapters the engine holds at a time; 0: one, which is swapped."""
        self._gated: dict[str, tuple[GatedSpec, Path]] = {}

    def decide(
        self,
        adapters: Sequence[Adapter | None],
        waiting: Callable[[], Waiting],
        begun: Callable[[str], bool],
    ) -> None:
        """Remember the adapters: one engine is started for all of them, where that can be."""
        self._adapters = [saved(adapter) for adapter in adapters]

    def groups(self, adapters: Sequence[Adapter | None]) -> list[list[int]]:
        """Return groups of as many adapters as there are slots, then those that are merged, each alone."""
        from cme_bench.engines.vllm.fields import needs_merging

        most = self.options.settings.get("slots", 1)
        found = [saved(adapter) for adapter in adapters]
        alone = [i for i, each in enumerate(found) if each is not None and needs_merging(each.path)]
        rest = [i for i in range(len(found)) if i not in alone]
        self._slots = min(most, sum(found[i] is not None for i in rest))
        if self._slots < 2:
            self._slots = 0
            return super().groups(adapters)
        full = [rest[start : start + most] for start in range(0, len(rest), most)]
        return [*full, *([place] for place in alone)]

    def begin(self) -> None:
        """Begin to import vLLM, which takes longer than to plan a few thousand questions."""
        self._early = self._early or Early(_imported)

    @functools.cached_property
    def _files(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix="cme-bench-adapters-")
        return Path(self._held.enter_context(folder))

    @functools.cached_property
    def _base(self) -> Path:
        from cme_bench.models.folder import only_the_model

        return self._held.enter_context(only_the_model(self.model.checkpoint.path))

    def _host_of(self, folder: Path, job: EngineJob, dtype: str) -> Host:
        """Return the running engine if it is of the model in ``folder`` and of ``dtype``; else stop it, and
        return another."""
        from cme_bench.engines.vllm.host import Host
        from cme_bench.engines.vllm.settings import VllmSettings, require_vllm, row_length
        from cme_bench.models.quantisation import quantisation

        if self._host is None or (self._host.model, self._host.dtype) != (folder, dtype):
            with phase("libraries"):
                require_vllm() if self._early is None else self._early.result()
            if self._host is not None:
                self._host.close()
            settings = VllmSettings.from_pairs(self.options.settings).for_work(job.generated)
            quantised = quantisation(self.model.config)
            reader = reader_of(self.model)
            self._host = Host(folder, dtype, settings, self.note, quantised, reader)
            self._host.writes = job.generated != 0
            self._held.callback(self._host.close)
        slots = self._slots if folder == self._base else 0
        if folder == self._base and len(self._adapters) > 1 and (slots or not self._host.settings.compiles):
            self._host.expect(self._expected())
        self._host.hold(slots)
        self._host.allow(row_length(job.longest, job.max_length, self._host.settings))
        return self._host

    def check(self, requests: Iterable[Request]) -> None:
        """Raise UsageError for images that vLLM cannot be given as the model's own processor reads them."""
        vision = None
        for request in requests:
            if not request.images:
                continue
            vision = vision or self.model.vision
            if len(request.images) > MOST_IMAGES:
                raise UsageError(
                    f"engine vllm: a prompt has {len(request.images)} images, more than {MOST_IMAGES}; use "
                    "--engine hf"
                )
            if vision is not None and any(vision.layout(i).text != vision.token for i in request.images):
                raise UsageError(
                    f"engine vllm: {self.model.place} puts other tokens around or between those of an image, "
                    "which vLLM would place by itself; use --engine hf"
                )

    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        from cme_bench.engines.stopping import end_token_ids
        from cme_bench.engines.vllm.engine import VLLMEngine
        from cme_bench.engines.vllm.fields import needs_merging

        tokenizer = self.model.tokenizer_of(adapter).tokenizer
        ends = end_token_ids(self.model.eos, tokenizer)
        found = saved(adapter)
        computed = job.computed or self.computed(adapter, "vllm")
        dtype, states = (self.model.dtype_name, None) if computed is None else (computed.dtype, computed.told)
        if found is None:
            return VLLMEngine(self._host_of(self._base, job, dtype), tokenizer, ends, states=states)
        if needs_merging(found.path):
            text = tuple(token for token in job.liveness if not is_virtual(token))
            merged = self._merged(found, text)
            return VLLMEngine(self._host_of(merged, job, dtype), tokenizer, ends)
        spec, file = self._written(found)
        host = self._host_of(self._base, job, dtype)
        engine = VLLMEngine(host, tokenizer, ends, adapter=file, spec=spec, states=states)
        engine.check_liveness(repr(found.name), job.liveness, job.images)
        return engine

    def _written(self, adapter: AdapterCheckpoint) -> tuple[GatedSpec, Path]:
        """Return an adapter's spec, and the plugin's file of it; made once."""
        from cme_bench.engines.vllm.adapter import read_gated
        from cme_bench.vllm_plugin.file import write_adapter

        if adapter.hash not in self._gated:
            gated = read_gated(adapter.path, self.model.config)
            file = self._files / f"{adapter.hash}.safetensors"
            write_adapter(file, gated.spec, gated.tensors)
            self._gated[adapter.hash] = gated.spec, file
        return self._gated[adapter.hash]

    def _expected(self) -> list[GatedSpec]:
        """Return the specs of all adapters that the plugin computes; what is wrong with one is told in its
        turn."""
        from cme_bench.adapters.errors import AdapterError
        from cme_bench.engines.vllm.fields import needs_merging

        specs: list[GatedSpec] = []
        for adapter in self._adapters:
            with contextlib.suppress(AdapterError):
                if adapter is not None and not needs_merging(adapter.path):
                    specs.append(self._written(adapter)[0])
        return specs

    def _merged(self, adapter: AdapterCheckpoint, probe: TokenIds) -> Path:
        """Return a folder with the adapter merged into the base; made once."""
        from cme_bench.models.merged import write_merged

        folder = self._files / adapter.hash
        if not folder.exists():
            self.note(f"{adapter.name}: merged into the base weights, for which vLLM starts anew")
            write_merged(self.model.checkpoint, adapter.path, folder, probe=probe)
        return folder

    def release(self) -> None:
        """Do nothing: the running engine stays for the next adapter."""

    def close(self) -> None:
        self._held.close()
