"""MixLoRA: gradients, the balance loss, what its router is heard to say, and adapters side by side."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM

from cme_bench.adapters import MixLoraConfig, balance_tape, record_router
from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.methods.mixlora import MixLoraBlock
from cme_bench.adapters.routing.feed_forward import FeedForward
from tests.support.adapter_cases import Make, tiny_llama


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(5, 4), nn.Linear(5, 4)
        self.down_proj = nn.Linear(4, 5)
        self.act_fn = nn.SiLU()


GATED = FeedForward(("gate_proj", "up_proj"), "down_proj")


def test_gradcheck_in_float64() -> None:
    config = MixLoraConfig(r=2, alpha=3.0, num_experts=3, init="random", router_init_range=1.0)
    block = MixLoraBlock(Block().double(), GATED, ["gate_proj", "down_proj"], "default", config)
    parameters = [p for n, p in block.named_parameters() if "mixlora_" in n and p.requires_grad]
    assert len(parameters) == 5 and {p.dtype for p in parameters} == {torch.float64}
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: block(x), (x, *parameters))


def test_every_parameter_has_a_gradient_however_few_tokens_there_are(adapted: Make) -> None:
    model = adapted("mixlora", num_experts=6, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    model.train()
    model(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    routers = [p for n, p in model.named_parameters() if "mixlora_router" in n]
    assert routers and all(p.grad.abs().max() > 0 for p in routers)


def reference_loss(heard: list[Tensor], masks: list[Tensor], top_k: int) -> float:
    """Mixtral's loss as MoE-PEFT computes it: all layers' tokens in one table, a loop over tokens."""
    k = heard[0].shape[-1]
    chosen, likely, tokens = [0.0] * k, [0.0] * k, 0
    for phi, mask in zip(heard, masks, strict=True):
        for row, counts in zip(phi.reshape(-1, k).tolist(), mask.reshape(-1).tolist(), strict=True):
            if counts:
                tokens += 1
                for expert in sorted(range(k), key=lambda e: -row[e])[:top_k]:
                    chosen[expert] += 1
                likely = [total + own for total, own in zip(likely, row, strict=True)]
    return k * sum(c / tokens * p / tokens for c, p in zip(chosen, likely, strict=True))


def test_the_balance_loss_is_mixtrals(adapted: Make, ids: Tensor) -> None:
    model = adapted("mixlora", num_experts=4, router_init_range=1.0, balance_coefficient=0.5)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    heard: list[Tensor] = []
    for block in (m for m in model.modules() if isinstance(m, MixLoraBlock)):
        block.routing_listeners += (lambda _, routing: heard.append(routing.phi.detach()),)
    with balance_tape(model) as tape:
        model(input_ids=ids, attention_mask=mask)
        loss = tape.loss()
    assert len(heard) == 2
    assert float(loss) == pytest.approx(0.5 * reference_loss(heard, [mask, mask], 2), abs=1e-6)
    assert not torch.isclose(loss, 0.5 * torch.tensor(reference_loss(heard[:1], [mask], 2)), atol=1e-4)
    loss.backward()
    routers = [p for n, p in model.named_parameters() if "mixlora_router" in n]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in routers)


def test_the_router_is_recorded_by_block(adapted: Make, ids: Tensor) -> None:
    model = adapted("mixlora", num_experts=4, top_k=2).eval()
    with record_router(model) as record:
        model(ids)
    assert [s.layer for s in record.stats()] == ["model.layers.0.mlp", "model.layers.1.mlp"]
    for stats in record.stats():
        assert stats.tokens == ids.numel() and sum(stats.omega) == pytest.approx(1, abs=1e-6)
        assert max(stats.omega) <= 1 and stats.omega != stats.phi


def test_two_active_adapters_add_what_each_changes(base: LlamaForCausalLM) -> None:
    settings: dict[str, Any] = {"r": 2, "num_experts": 3, "init": "random", "target_modules": ["up_proj"]}
    model: Any = get_peft_model(base, MixLoraConfig(**settings)).eval()
    model.add_adapter("second", MixLoraConfig(**{**settings, "top_k": 1}))
    block = model.get_base_model().model.layers[0].mlp
    x = torch.randn(1, 4, 24)
    plain = block.base_layer(x)
    wanted = plain + sum(block.mixture(x, name) - plain for name in ("default", "second"))
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(block(x), wanted)


def test_jitter_is_of_training_alone(adapted: Make, ids: Tensor) -> None:
    model = adapted("mixlora", jitter_noise=0.5).eval()
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


def test_what_mixlora_cannot_adapt() -> None:
    with pytest.raises(AdapterError, match="names no linear of a feed-forward block"):
        get_peft_model(tiny_llama(), MixLoraConfig(target_modules=["q_proj"]))
    opt = OPTConfig(
        vocab_size=20,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
    )
    with pytest.raises(AdapterError, match="does not know the feed-forward block of the architecture 'opt'"):
        get_peft_model(OPTForCausalLM(opt), MixLoraConfig(target_modules=["fc1"]))
    with pytest.raises(AdapterError, match=r"top_k must lie in 1 to num_experts \(4\), got 5"):
        MixLoraConfig(top_k=5)


def test_only_the_named_layers_become_mixtures() -> None:
    config = MixLoraConfig(
        target_modules=["down_proj", "o_proj"], layers_to_transform=[1], exclude_modules=["o_proj"]
    )
    model = get_peft_model(copy.deepcopy(tiny_llama()), config)
    names = {n.rpartition(".default")[0] for n, _ in model.named_parameters() if "mixlora_" in n}
    prefix = "base_model.model.model.layers.1.mlp.mixlora_"
    assert names == {f"{prefix}{part}" for part in ("router", "down_proj_down", "down_proj_up")}
