"""Before the rows are there: the base is loaded, and kernels are built by a layer's own computation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from cme_bench.adapters.registry import routed_names
from cme_bench.runs.progress import Listener
from cme_bench.training import record
from cme_bench.training.methods import adapter_config
from cme_bench.training.options import TrainOptions, method_names
from cme_bench.training.shared import Shared
from cme_bench.training.sweep import rehearsal
from cme_bench.training.sweep.beginning import begin
from cme_bench.training.sweep.crew import Crew
from cme_bench.training.sweep.rehearsal import build_kernels, rehearse
from cme_bench.training.sweep.sweep import sweep
from cme_bench.training.train import frozen_base, prepare
from cme_bench.util.errors import UsageError

Make = Callable[..., TrainOptions]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("method", method_names())
def test_a_routed_layer_is_computed_once(
    method: str, dropout: float, options: Make, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    real = rehearsal.add_joints

    def noted(*given: Any) -> Any:
        computed.append(1)
        return real(*given)

    monkeypatch.setattr(rehearsal, "add_joints", noted)
    given = {"dropout": dropout} | ({"balance_loss": 0.01} if method in routed_names() else {})
    config = adapter_config(options(method, **given), tiny_model.config, steps=10)
    before = torch.get_rng_state()
    assert rehearse(config, CPU, bf16=False) == bool(computed)
    assert torch.equal(torch.get_rng_state(), before)
    if method in ("teamlora", "moelora", "hydralora"):
        assert computed


def test_on_a_cpu_nothing_is_built() -> None:
    build_kernels([], CPU, bf16=False, beside=pytest.fail)


def test_the_base_is_loaded_while_rows_are_read(
    options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [options("lora", out=tmp_path / "out" / name, max_steps=1) for name in "ab"]
    loading = begin(asked, Listener(), Shared())
    assert loading is not None and loading.result().config.use_cache is False
    sweep(asked)
    assert (asked[0].out / record.FILE).exists() and begin(asked, Listener(), Shared()) is None
    with pytest.raises(UsageError, match="rank"):
        begin([*asked, options("lora", rank=0)], Listener(), Shared())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_step_then_builds_no_kernel(options: Make, tmp_path: Path) -> None:
    from cme_bench.adapters.routing.triton_gate import gate_backward_kernel, gate_kernel

    def built() -> int:
        return sum(
            len(cache[0]) for k in (gate_kernel, gate_backward_kernel) for cache in k.device_caches.values()
        )

    cuda = torch.device("cuda")
    forms = [("teamlora", 4), ("moelora", 4), ("hydralora", 4), ("teamlora", 2), ("teamlora", 8)]
    asked = [
        options(method, experts=k, rank=32, out=tmp_path / f"{method}{k}", dtype="bfloat16", pack_tokens=1024)
        for method, k in forms
    ]
    members = [prepare(one, Listener()) for one in asked]
    build_kernels([m.config for m in members], cuda, bf16=True, beside=lambda: None)
    before = built()
    base = frozen_base(members[0].base, torch.bfloat16, cuda, asked[0])
    crew = Crew(base, members, step=0, states={}, bf16=True, packed=True)
    crew.advance()
    assert before >= 2 * len(forms) and built() == before
