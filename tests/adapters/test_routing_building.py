"""What builds a routed layer's kernels early asks for those that the adapter will compute by."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import nn

from cme_bench.adapters import HydraLoraConfig, TeamLoraConfig
from cme_bench.adapters.methods.teamlora import TeamLoraLinear
from cme_bench.adapters.routing import gate_kernels
from cme_bench.adapters.routing.building import build

CPU = torch.device("cpu")


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> list[gate_kernels.Form]:
    """The forms of gates that are asked for; none is computed by a kernel."""
    asked: list[gate_kernels.Form] = []

    def infers(z: torch.Tensor, form: gate_kernels.Form) -> bool:
        asked.append(form)
        return False

    monkeypatch.setattr(gate_kernels, "infers", infers)
    return asked


def test_the_form_is_that_of_a_real_layer(forms: list[gate_kernels.Form]) -> None:
    config = TeamLoraConfig(r=8, num_experts=3, normalize_omega=True)
    build(config, CPU)
    layer = TeamLoraLinear(nn.Linear(96, 40), "default", config).requires_grad_(False).eval()
    with torch.inference_mode():
        layer(torch.randn(5, 7, 96))
    early, real = forms
    assert early == real
    assert (real.k, real.rank, real.mixed, real.divided) == (3, 8, True, True)


def test_no_random_number_is_drawn_and_other_methods_build_nothing(forms: list[gate_kernels.Form]) -> None:
    before = torch.random.get_rng_state()
    build(HydraLoraConfig(r=4, num_experts=2), CPU)
    build(LoraConfig(r=4, task_type="CAUSAL_LM"), CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(forms) == 1
