"""Weights are converted on the model's device, and only those that are to be; torch's own device without
memory stands for a GPU's."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cme_bench.vllm_plugin import converted
from cme_bench.vllm_plugin.converted import placed


@pytest.mark.parametrize(
    ("weight", "parameter", "device", "moves"),
    [
        (torch.bfloat16, torch.float32, "meta", True),
        (torch.float32, torch.float16, "meta", True),
        (torch.float32, torch.float32, "meta", False),
        (torch.uint8, torch.float32, "meta", False),
        (torch.float16, torch.int32, "meta", False),
        (torch.bfloat16, torch.float32, "cpu", False),
        (torch.bfloat16, torch.float32, "no GPU", False),
    ],
)
def test_a_weight_of_another_type_moves(
    weight: torch.dtype, parameter: torch.dtype, device: str, moves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters on torch's device without memory are of models that are quantised while they load."""
    if device != "no GPU":
        monkeypatch.setattr(converted, "GPU", "meta")
    where = "cpu" if device == "cpu" else "meta"
    given, model = torch.ones(3, dtype=weight), torch.empty(2, dtype=parameter, device=where)
    found = placed(given, model)
    assert (found.device.type, found.dtype) == ("meta" if moves else "cpu", weight)
    assert moves or found is given
    monkeypatch.setattr(converted, "LARGEST", given.nbytes - 1)
    assert placed(given, model) is given


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_both_devices_convert_alike() -> None:
    torch.manual_seed(0)
    numbers = torch.cat([torch.randn(1 << 16) * scale for scale in (1e-8, 1e-3, 1.0, 1e3, 1e6)])
    for source in (torch.float32, torch.bfloat16, torch.float16):
        for target in (torch.float32, torch.bfloat16, torch.float16):
            weight = numbers.to(source)
            here = torch.empty_like(weight, dtype=target)
            there = torch.empty_like(here, device="cuda")
            here.copy_(weight)
            there.copy_(placed(weight, there))
            assert torch.equal(here.view(torch.uint8), there.cpu().view(torch.uint8)), (source, target)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.slow
def test_vllms_loader_gives_weights_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    def weights(self: Any, config: Any, model: Any) -> Any:
        yield "a", torch.ones(1, dtype=torch.bfloat16)
        yield "b", torch.ones(1)

    monkeypatch.setattr(DefaultModelLoader, "get_all_weights", weights)
    monkeypatch.setattr(converted, "GPU", "meta")
    converted.install()
    once = DefaultModelLoader.get_all_weights
    converted.install()
    assert DefaultModelLoader.get_all_weights is once
    model: Any = SimpleNamespace(parameters=lambda: iter([torch.empty(1, device="meta")]))
    found = DefaultModelLoader.get_all_weights(SimpleNamespace(), None, model)
    assert [(name, weight.device.type) for name, weight in found] == [("a", "meta"), ("b", "cpu")]
    empty: Any = SimpleNamespace(parameters=lambda: iter([]))
    assert len(list(once(SimpleNamespace(), None, empty))) == 2
