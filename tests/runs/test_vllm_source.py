"""vLLM is imported before it is asked; what its kernels need is computed beside. What it is started for."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from cme_bench.engines.vllm import settings
from cme_bench.runs import vllm_source
from cme_bench.runs.engine_source import EngineJob
from cme_bench.runs.options import ModelOptions
from cme_bench.runs.vllm_source import VLLMSource, _imported


@pytest.mark.parametrize("has_triton", [True, False])
def test_tritons_files_are_hashed_once_vllm_is_imported(
    has_triton: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    cache: Any = ModuleType("triton.runtime.cache")
    if has_triton:
        cache.triton_key = lambda: hashed.append(threading.current_thread().name)
    for name in ("triton", "triton.runtime"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, cache.__name__, cache)
    monkeypatch.setattr(settings, "require_vllm", lambda: "0.0")
    assert _imported() == "0.0"
    for thread in threading.enumerate():
        if thread.name == "cme-bench-triton":
            thread.join()
    assert hashed == (["cme-bench-triton"] if has_triton else [])


@pytest.mark.parametrize(("generated", "writes"), [(0, False), (7, True), (None, True)])
def test_an_engine_has_a_tokenizer_unless_nothing_is_generated(
    generated: int | None, writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "require_vllm", lambda: "0.0")
    monkeypatch.setattr(vllm_source, "reader_of", lambda model: None)
    model: Any = SimpleNamespace(config=LlamaConfig())
    source = VLLMSource(model, ModelOptions("base", engine="vllm"))
    vars(source)["_base"] = Path("base")
    host = source._host_of(Path("base"), EngineJob(100, 10, (1, 2), generated), "float32")
    assert host.writes == writes
    source.close()
