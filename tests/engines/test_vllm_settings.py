"""What vLLM is told through its environment."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cme_bench.engines.vllm import settings
from cme_bench.engines.vllm.settings import VllmSettings, environment, row_length


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


def test_compilation_is_for_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "on_cpu", lambda: False)
    default = VllmSettings()
    little, much = settings.WORTH_COMPILING - 1, settings.WORTH_COMPILING
    assert [default.for_work(n).compiles for n in (None, 0, little, much)] == [True, False, False, True]
    assert VllmSettings(compile=True).for_work(0).compiles
    assert not VllmSettings(compile=False).for_work(None).compiles
    monkeypatch.setattr(settings, "on_cpu", lambda: True)
    assert not default.for_work(much).compiles


def test_rows_of_a_compiled_engine_have_few_lengths() -> None:
    eager, compiled = VllmSettings(compile=False), VllmSettings(compile=True)
    found = {row_length(n, 8193, compiled) for n in range(1, 8194, 7)}
    assert found == {1024, 2048, 4096, 8192}
    assert row_length(5000, 6000, compiled) == 6000
    assert all(row_length(n, 8193, compiled) >= n for n in range(1, 8194, 7))
    assert row_length(700, 513, compiled) == 700, "never less than the job's"
    assert row_length(700, 8193, eager) == 700


def test_rows_of_adapters_that_follow_have_a_little_room_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = VllmSettings(compile=False)
    monkeypatch.setattr(settings, "on_cpu", lambda: False)
    assert [row_length(n, 2000, eager) for n in (1, 256, 257, 1900, 2000, 2100)] == [
        256, 256, 512, 2000, 2000, 2100,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cpu", "given", "alone"),
    [
        (True, {}, True),
        (True, {"tensor_parallel": 2}, False),
        (True, {"compile": True}, True),
        (False, {}, False),
        (False, {"compile": False}, True),
        (False, {"compile": False, "in_process": False}, False),
        (False, {"compile": False, "tensor_parallel": 2}, False),
        (False, {"in_process": True}, True),
    ],
)
def test_a_short_job_needs_no_second_process(
    cpu: bool, given: dict[str, Any], alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "on_cpu", lambda: cpu)
    assert VllmSettings(**given).alone == alone


def test_the_size_of_the_cache_is_taken_on_a_gpu_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """vLLM then measures no memory, so that engines can start beside each other."""
    monkeypatch.setattr(settings, "on_cpu", lambda: False)
    given = settings.engine_arguments(tmp_path, "bfloat16", 64, settings.VllmSettings(kv_gib=3), None)
    assert given["kv_cache_memory_bytes"] == 3 << 30
    assert given["gpu_memory_utilization"] == settings.UNREAD


def test_steps_up_to_the_number_that_is_asked_for_are_graphs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of vLLM's own sizes stay; a step is never longer than the longest graph."""
    monkeypatch.setattr(settings, "on_cpu", lambda: False)
    assert settings.graph_sizes(512)[-3:] == [480, 496, 512]
    assert settings.graph_sizes(100)[-3:] == [88, 96, 100]
    for most in (1024, 3000, 8192):
        sizes = settings.graph_sizes(most)
        assert sizes == sorted({*sizes})
        assert sizes[-1] == most
        assert max(b - a for a, b in pairwise(sizes)) <= 1024
    asked = VllmSettings(graph_tokens=2048, kv_gib=1)
    given = settings.engine_arguments(tmp_path, "bfloat16", 64, asked, None)
    assert given["max_num_batched_tokens"] == 2048
    assert given["compilation_config"]["cudagraph_capture_sizes"][-1] == 2048
    eager = VllmSettings(graph_tokens=2048, kv_gib=1, compile=False)
    assert "compilation_config" not in settings.engine_arguments(tmp_path, "bfloat16", 64, eager, None)
