"""Kernels that fail are not used, and it is said."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch

from cme_bench.util.kernels import _one_gpu, compute, drawn, launched_on, tried


def right() -> bool:
    x = torch.ones(3, requires_grad=True)
    return torch.equal(torch.autograd.grad((2 * x).sum(), x)[0], torch.full((3,), 2.0))


def test_gradients_are_compared_in_every_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute(right, "slower")
        with torch.no_grad():
            assert compute(right, "slower")
        with torch.inference_mode():
            assert compute(right, "slower")


def test_what_they_are_compared_with_has_all_digits() -> None:
    part = torch.backends.cuda.matmul
    part.allow_tf32 = True
    try:
        assert compute(lambda: not part.allow_tf32, "slower")
        assert part.allow_tf32
    finally:
        part.allow_tf32 = False
        part.fp32_precision = "none"


def test_what_fails_is_told_in_one_line() -> None:
    with pytest.warns(UserWarning, match=r"^slower \(they compute something else\)$"):
        assert not compute(lambda: False, "slower")

    def broken() -> bool:
        raise RuntimeError("no compiler\nat all")

    with pytest.warns(UserWarning, match=r"^slower \(RuntimeError: no compiler\)$"):
        assert not compute(broken, "slower")


def test_numbers_are_float32_while_weights_load_in_another_type() -> None:
    usual = drawn([(2, 3), (4,)])
    torch.set_default_dtype(torch.bfloat16)
    try:
        beside = drawn([(2, 3), (4,)])
    finally:
        torch.set_default_dtype(torch.float32)
    assert [x.dtype for x in beside] == [torch.float32] * 2
    assert all(torch.equal(one, other) for one, other in zip(usual, beside, strict=True))


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_launch_switches_devices_only_where_there_are_several(
    gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    _one_gpu.cache_clear()
    try:
        assert isinstance(launched_on(torch.empty(0)), torch.cuda.device_of) == (gpus > 1)
    finally:
        _one_gpu.cache_clear()


def test_triton_hashes_itself_once_for_trials_in_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[float] = []

    @functools.lru_cache
    def triton_key() -> str:
        time.sleep(0.2)
        hashed.append(time.perf_counter())
        return "key"

    cache: Any = ModuleType("triton.runtime.cache")
    cache.triton_key = triton_key
    for name in ("triton", "triton.runtime"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, cache.__name__, cache)
    trials = [tried(lambda: bool(triton_key()), "slower") for _ in range(3)]
    assert [trial.result() for trial in trials] == [True] * 3
    assert len(hashed) == 1
    monkeypatch.delattr(cache, "triton_key")
    assert tried(lambda: True, "slower").result()
