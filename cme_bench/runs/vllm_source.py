"""Engine vllm of a run: one running engine, in which adapters of one shape are swapped."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.engines.base import Engine
from cme_bench.runs.engine_source import LIVENESS_TOKENS, EngineJob, SavedSource, never, saved
from cme_bench.util.notes import Note, unheard

if TYPE_CHECKING:
    from cme_bench.engines.vllm.host import Host
    from cme_bench.models.adapter import Adapter
    from cme_bench.models.loaded import SavedModel
    from cme_bench.runs.options import ModelOptions


class VLLMSource(SavedSource):
    """vLLM, which starts when it is first asked."""

    def __init__(self, model: SavedModel, options: ModelOptions, note: Note = unheard) -> None:
        super().__init__(model, options, note)
        self._held = contextlib.ExitStack()

    @functools.cached_property
    def _files(self) -> Path:
        folder = tempfile.TemporaryDirectory(prefix="cme-bench-adapters-")
        return Path(self._held.enter_context(folder))

    @functools.cached_property
    def _host(self) -> Host:
        from cme_bench.engines.vllm.host import Host
        from cme_bench.engines.vllm.settings import VllmSettings, require_vllm
        from cme_bench.models.folder import only_the_model
        from cme_bench.models.quantisation import quantisation

        require_vllm()
        settings = VllmSettings.from_pairs(self.options.settings)
        folder = self._held.enter_context(only_the_model(self.model.checkpoint.path))
        base = quantisation(self.model.config)
        host = Host(folder, self.model.dtype_name, settings, self.note, base)
        self._held.callback(host.close)
        return host

    def open(self, adapter: Adapter | None, job: EngineJob, stopping: Callable[[], bool] = never) -> Engine:
        from cme_bench.engines.stopping import end_token_ids
        from cme_bench.engines.vllm.adapter import read_gated
        from cme_bench.engines.vllm.engine import VLLMEngine
        from cme_bench.models.load import eos_token_id
        from cme_bench.vllm_plugin.file import write_adapter

        self._host.allow(job.longest)
        tokenizer = self.model.tokenizer_of(adapter).tokenizer
        ends = end_token_ids(eos_token_id(self.model.checkpoint, self.model.config), tokenizer)
        found = saved(adapter)
        if found is None:
            return VLLMEngine(self._host, tokenizer, ends)
        gated = read_gated(found.path, self.model.config)
        file = self._files / f"{found.hash}.safetensors"
        write_adapter(file, gated.spec, gated.tensors)
        engine = VLLMEngine(self._host, tokenizer, ends, adapter=file, spec=gated.spec)
        engine.check_liveness(repr(found.name), job.probe[-LIVENESS_TOKENS:])
        return engine

    def release(self) -> None:
        """Do nothing: the running engine stays for the next adapter."""

    def close(self) -> None:
        self._held.close()
