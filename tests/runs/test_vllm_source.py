"""vLLM is imported before it is asked; what its kernels need is computed beside."""

from __future__ import annotations

import sys
import threading
from types import ModuleType
from typing import Any

import pytest

from cme_bench.engines.vllm import settings
from cme_bench.runs.vllm_source import _imported


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
