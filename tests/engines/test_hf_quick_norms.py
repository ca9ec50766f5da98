"""RMS norms by torch's kernel: those that are known by their numbers, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from cme_bench.engines.hf.quick_norms import QuickNorms


class HalvedRMSNorm(LlamaRMSNorm):
    """As a model's own code may be: it looks the same, and computes something else."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        found: Tensor = super().forward(hidden_states) / 2
        return found


class MovedRMSNorm(LlamaRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        found: Tensor = super().forward(hidden_states + 1e-3)
        return found


def drawn(norm: Any) -> nn.Module:
    torch.manual_seed(0)
    norm.weight.data.normal_()
    return nn.Sequential(norm)


@pytest.mark.parametrize("norm", [LlamaRMSNorm(48, 1e-5), Qwen3RMSNorm(48, 1e-6)])
def test_a_norm_is_computed_by_one_operation(norm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    kernel = nn.functional.rms_norm

    def counted(x: Tensor, *args: Any) -> Tensor:
        calls.append(x)
        return kernel(x, *args)

    model, x = drawn(norm), torch.randn(2, 5, 48) * torch.logspace(-4, 3, 5)[:, None]
    wanted = model(x)
    quick = QuickNorms(model)
    monkeypatch.setattr(nn.functional, "rms_norm", counted)
    with quick():
        torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
        assert len(calls) == 1
        assert model(x.double()).dtype == torch.float64  # its own forward takes other types
    assert len(calls) == 1
    assert torch.equal(model(x), wanted)
    assert "forward" not in norm.__dict__


def test_weights_of_16_bits_meet_wide_states() -> None:
    model, x = drawn(LlamaRMSNorm(48, 1e-5)).bfloat16(), torch.randn(2, 5, 48)
    wanted = model(x)
    assert wanted.dtype == torch.float32
    quick, norm = QuickNorms(model), model.get_parameter("0.weight")
    with quick(), torch.no_grad():
        torch.testing.assert_close(model(x), wanted, rtol=1e-6, atol=1e-6)
        norm.mul_(2)
        torch.testing.assert_close(model(x), 2 * wanted, rtol=1e-6, atol=1e-6)
        assert model(x.bfloat16()).dtype == torch.bfloat16  # rounded states are the norm's own matter
    assert norm.dtype == torch.bfloat16


@pytest.mark.parametrize("norm", [Gemma2RMSNorm(48), HalvedRMSNorm(48), MovedRMSNorm(48), nn.LayerNorm(48)])
def test_what_computes_something_else_keeps_its_own(norm: nn.Module) -> None:
    model, x = drawn(norm), torch.randn(3, 48)
    wanted = model(x)
    with QuickNorms(model)():
        assert torch.equal(model(x), wanted)


def test_a_norm_is_tried_once_for_every_state_of_its_weight() -> None:
    tried: list[Tensor] = []

    class CountedRMSNorm(LlamaRMSNorm):
        def forward(self, hidden_states: Tensor) -> Tensor:
            tried.append(hidden_states)
            return super().forward(hidden_states)

    model = nn.Sequential(CountedRMSNorm(16), CountedRMSNorm(16))
    for _ in range(2):
        assert len(QuickNorms(model)._norms) == 2
    assert len(tried) == 2
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(2)
    QuickNorms(model)
    assert len(tried) == 3
