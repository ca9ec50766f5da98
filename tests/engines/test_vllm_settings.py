"""What vLLM is told through its environment."""

from __future__ import annotations

import pytest

from cme_bench.engines.vllm import settings
from cme_bench.engines.vllm.settings import VllmSettings, environment


@pytest.mark.parametrize("cpu", [True, False])
def test_every_variable_is_one_that_vllm_reads(cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt one is ignored without a word."""
    known = pytest.importorskip("vllm.envs", reason="vLLM is not installed").environment_variables
    monkeypatch.setattr(settings, "on_cpu", lambda: cpu)
    chosen = environment(VllmSettings(tensor_parallel=2), "bfloat16")
    assert chosen.keys() <= known.keys()


def test_on_a_gpu_processes_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork of a process that has asked for a GPU cannot use it."""
    monkeypatch.setattr(settings, "on_cpu", lambda: False)
    assert environment(VllmSettings(), "bfloat16")["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_float32_on_a_gpu_is_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's products of float32 are TF32 unless it is told otherwise, and vLLM's attention is Triton's."""
    monkeypatch.setattr(settings, "on_cpu", lambda: False)
    assert environment(VllmSettings(), "float32")["TRITON_F32_DEFAULT"] == "ieee"
