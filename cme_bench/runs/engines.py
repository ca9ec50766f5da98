"""Engines of a run: made when first asked for, on weights or a vLLM that several adapters share."""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.engines.base import Engine, TokenIds

if TYPE_CHECKING:
    from cme_bench.models.adapter import AdapterCheckpoint
    from cme_bench.models.fingerprint import Fingerprint
    from cme_bench.runs.responder import BaseModel

LIVENESS_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Job:
    """What an engine is made for. max_length: most tokens of a row that the model takes; longest: of any row
    it will be asked; probe: a prompt of the run, whose answer an adapter must change."""

    max_length: int
    longest: int
    probe: TokenIds


def check_computable(engine: str, adapter: AdapterCheckpoint, base: BaseModel) -> None:
    """Raise UsageError, or AdapterError, for an adapter that ``engine`` does not compute exactly on ``base``.

    Asked before anything is answered. What an engine can only tell when it runs is raised by ``open``.
    """
    if engine == "vllm":
        from cme_bench.engines.vllm.adapter import adapted_linears
        from cme_bench.models.quantisation import check_takes_adapter

        check_takes_adapter(base.checkpoint.path, base.config)
        adapted_linears(adapter.path, base.config)


class EngineSource(ABC):
    """Makes engines for one base model."""

    @abstractmethod
    def __init__(self, base: BaseModel) -> None: ...

    @abstractmethod
    def open(self, adapter: AdapterCheckpoint | None, job: Job) -> Engine:
        """An engine that answers with ``adapter``. Raises AdapterError if the adapter does not fit or does
        nothing."""

    @abstractmethod
    def release(self) -> None:
        """The engine opened last is done with; what the next one can use stays."""

    def close(self) -> None:
        """Free everything."""
        self.release()


class HFSource(EngineSource):
    """transformers: the base's weights stay, adapters are put on and taken off.

    Some adapters leave the base changed (whole modules that were trained, biases, initialisations that
    subtract what they put into the adapter). The base is compared before and after each, and loaded again
    where it differs.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._peft: Any = None
        self._clean: Fingerprint | None = None
        self._changed: str | None = None

    def open(self, adapter: AdapterCheckpoint | None, job: Job) -> Engine:
        from cme_bench.engines.hf.engine import HFEngine

        settings = self._base.options.settings
        if self._changed is not None:
            self._base.note(f"{self._changed}: it is loaded again")
            self._changed = None
        model = self._base.model if adapter is None else self._adapted(adapter, job.probe)
        return HFEngine(
            model,
            self._base.tokenizer_of(adapter).tokenizer,
            max_length=job.max_length,
            tokens_per_batch=settings.get("tokens_per_batch"),
            plain=not settings.get("shared_prefixes", 1),
        )

    def _adapted(self, adapter: AdapterCheckpoint, probe: TokenIds) -> Any:
        import torch

        from cme_bench.adapters.liveness import check_liveness, probing
        from cme_bench.adapters.load import load_adapter
        from cme_bench.models.fingerprint import fingerprint

        if self._clean is None:
            self._clean = fingerprint(self._base.model)
        try:
            self._peft = load_adapter(self._base.model, adapter.path, note=self._note_of(adapter))
            ids = probing(self._peft.active_peft_config, probe[-LIVENESS_TOKENS:])
            check_liveness(self._peft, torch.tensor([ids], device=self._base.device), name=adapter.name)
        except BaseException:
            self._take_off(adapter.name)
            raise
        self._name = adapter.name
        return self._peft

    def _note_of(self, adapter: AdapterCheckpoint) -> Callable[[str], None]:
        """Tells and records what is only known once the weights are there."""

        def note(sentence: str) -> None:
            if sentence not in adapter.notes:
                adapter.notes.append(sentence)
                self._base.note(sentence)

        return note

    def release(self) -> None:
        if self._peft is not None:
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
        if found := difference(self._clean, fingerprint(self._base.model)):
            self._changed = f"adapter {name!r} left the base model changed ({found})"
            self._base.reload()


class VLLMSource(EngineSource):
    """vLLM: one running engine; adapters of one shape are swapped in it."""

    def __init__(self, base: BaseModel) -> None:
        from cme_bench.engines.vllm.host import Host
        from cme_bench.engines.vllm.settings import VllmSettings, require_vllm
        from cme_bench.models.folder import only_the_model

        require_vllm()
        self._base = base
        dtype = str(base.dtype).removeprefix("torch.")
        self._held = contextlib.ExitStack()
        self._files = self._held.enter_context(tempfile.TemporaryDirectory(prefix="cme-bench-adapters-"))
        model = self._held.enter_context(only_the_model(base.checkpoint.path))
        settings = VllmSettings.from_pairs(base.options.settings)
        self._host = Host(model, dtype, settings, self._tell)

    def _tell(self, message: str) -> None:
        self._base.note(message)  # a run that starts says where to later than this is made

    def open(self, adapter: AdapterCheckpoint | None, job: Job) -> Engine:
        from cme_bench.engines.vllm.adapter import read_gated
        from cme_bench.engines.vllm.engine import VLLMEngine
        from cme_bench.models.load import end_token_ids
        from cme_bench.vllm_plugin.file import write_adapter

        self._host.allow(job.longest)
        tokenizer = self._base.tokenizer_of(adapter).tokenizer
        ends = end_token_ids(self._base.checkpoint, self._base.config, tokenizer)
        if adapter is None:
            return VLLMEngine(self._host, tokenizer, ends)
        gated = read_gated(adapter.path, self._base.config)
        file = Path(self._files) / f"{adapter.hash}.safetensors"
        write_adapter(file, gated.spec, gated.tensors)
        engine = VLLMEngine(self._host, tokenizer, ends, adapter=file, spec=gated.spec)
        engine.check_liveness(repr(adapter.name), job.probe[-LIVENESS_TOKENS:])
        return engine

    def release(self) -> None:
        """The running engine stays for the next adapter."""

    def close(self) -> None:
        self._host.close()
        self._held.close()


class RaySource(EngineSource):
    """ray: workers on the nodes of a cluster, each with one of the sources above, for the whole run."""

    def __init__(self, base: BaseModel) -> None:
        from cme_bench.engines.ray.pool import Pool
        from cme_bench.runs.ray_worker import worker_environment, worker_source

        assert base.cluster is not None
        crew = base.cluster.crew
        self._base = base
        self._pool = Pool(crew, worker_source(base), worker_environment(base.options, crew))

    def open(self, adapter: AdapterCheckpoint | None, job: Job) -> Engine:
        """What opening an adapter raises in a worker is raised by the first answer."""
        from cme_bench.engines.ray.engine import RayEngine

        named = None if adapter is None else (str(adapter.path), adapter.hash)
        return RayEngine(
            self._pool,
            (named, job),
            max_length=job.max_length,
            kind=self._base.options.worker,
            note=self._base.note,
            stopping=self._base.stopping,
        )

    def release(self) -> None:
        """Workers take their adapter off when they are told to open the next."""

    def close(self) -> None:
        self._pool.close()


SOURCES: dict[str, type[EngineSource]] = {"hf": HFSource, "vllm": VLLMSource, "ray": RaySource}
