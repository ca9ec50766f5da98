"""The process of one engine in the comparison of inference times."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cme_bench.experiments.efficiency import vllm_inference


def test_an_engine_is_stopped_when_its_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both are waited for in vain: the process waits for the engine's own, and we for it."""
    stopped: list[bool] = []
    core = SimpleNamespace(shutdown=lambda: stopped.append(True))
    llm = SimpleNamespace(llm_engine=SimpleNamespace(engine_core=core))
    monkeypatch.setattr(vllm_inference, "_start", lambda setup: (llm, []))
    ours, theirs = Pipe()
    ours.send(None)
    setup: Any = SimpleNamespace(log=tmp_path / "log", cores=None, profile=None)
    vllm_inference._serve(theirs, setup)
    assert ours.recv() == 0.0
    assert stopped == [True]
