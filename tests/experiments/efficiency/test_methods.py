"""What is compared: the published loop is the same function as ours, and every method comes off again."""

from __future__ import annotations

import pytest
import torch
from peft import PeftConfig
from torch import nn
from transformers import LlamaForCausalLM

from cme_bench.adapters import MoeLoraConfig
from cme_bench.adapters.methods.moelora import PublishedMoeLora
from cme_bench.experiments.efficiency.measure import _size
from cme_bench.experiments.efficiency.methods import all_methods, attached
from cme_bench.experiments.efficiency.options import EfficiencyOptions, method_choices
from cme_bench.experiments.efficiency.shapes import linear_sizes, preset, targets, with_layers
from cme_bench.experiments.efficiency.vllm_inference import plugin_spec
from cme_bench.util.errors import UsageError

FFN = ("gate_proj", "up_proj", "down_proj")


def test_moelora_as_published_is_the_function_that_the_package_fuses() -> None:
    torch.manual_seed(0)
    base = nn.Linear(24, 40, bias=False)
    published = PublishedMoeLora(base, 4, 3)
    for parameter in published.parameters():
        nn.init.normal_(parameter, std=0.3)
    holder = nn.Sequential()
    holder.add_module("up_proj", base)
    config = MoeLoraConfig(r=4, alpha=8.0, num_experts=3, target_modules=["up_proj"])
    x = torch.randn(5, 24)
    expected = published(x)
    with attached(holder, config, FFN), torch.no_grad():
        layer = holder.up_proj
        layer.moelora_down["default"].copy_(torch.cat(list(published.down)))
        layer.moelora_up["default"].copy_(torch.cat(list(published.up), dim=1))
        layer.moelora_router["default"].copy_(published.router)
        assert torch.allclose(holder(x), expected, atol=1e-5)


def test_every_method_goes_on_and_comes_off() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(with_layers(preset("tiny"), 1)).eval().requires_grad_(False)
    ids = torch.arange(3, 9)[None]
    before = model(ids).logits
    names = [name for name, _ in model.named_parameters()]
    for method in all_methods(FFN).values():
        with attached(model, method.how, FFN) as parameters:
            assert (model(ids).logits - before).abs().max() > 1e-4, method.name
            assert all(p.requires_grad for p in parameters)
        assert torch.equal(model(ids).logits, before), method.name
        assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("name", all_methods(FFN))
def test_every_method_runs_on_a_bfloat16_base_outside_autocast(name: str) -> None:
    torch.manual_seed(0)
    config = with_layers(preset("tiny"), 1)
    model = LlamaForCausalLM(config).to(torch.bfloat16).requires_grad_(False)
    block = model.model.layers[0].mlp
    with attached(model, all_methods(FFN)[name].how, FFN):
        hidden = torch.randn(2, 3, config.hidden_size, dtype=torch.bfloat16)
        assert model.model.layers[0].mlp(hidden).dtype == torch.bfloat16
    assert model.model.layers[0].mlp is block


def test_sizes_are_those_of_the_adapters_equal_budgets_included() -> None:
    config = preset("llama-2-7b")
    known = all_methods(targets(config))
    sizes = {name: _size(known[name], config) for name in ("lora128", "moelora32", "teamlora32")}
    assert sizes["moelora32"] == _size(known["moelora32_fused"], config)
    added = sum(128 * (d_in + d_out) for d_in, d_out in linear_sizes(config).values())
    assert sizes["lora128"]["parameters"] == added
    routers = sum(4 * d_in for d_in, _ in linear_sizes(config).values())
    assert sizes["moelora32"]["parameters"] == added + routers
    assert sizes["teamlora32"]["parameters"] == added + routers + 16 * len(linear_sizes(config))


def test_forms_say_what_is_fused() -> None:
    known = all_methods(FFN)
    assert list(known) == list(method_choices())
    assert "loop" in known["moelora32"].form
    assert "fused" in known["moelora32_fused"].form
    assert not isinstance(known["moelora32"].how, PeftConfig)


def test_the_plugin_has_no_form_of_the_loop() -> None:
    assert plugin_spec("moelora32", ["m"]) is None
    assert plugin_spec("lora128_lean", ["m"]) is None
    team = plugin_spec("teamlora32_k8", ["m"])
    assert team is not None
    assert (team.rank, team.experts, team.interaction) == (32, 8, True)
    hydra = plugin_spec("hydralora32", ["m"])
    assert hydra is not None
    assert (hydra.latent, hydra.gated, hydra.interaction) == (32, 128, False)
    lora = plugin_spec("lora128", ["m"])
    assert lora is not None
    assert (lora.rank, lora.experts, lora.routed) == (128, 1, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods": ("teamlora33",)}, "unknown method 'teamlora33'; did you mean 'teamlora32"),
        ({"parts": ("training",)}, "unknown part 'training'; did you mean 'train'"),
        ({"rounds": 0}, "--rounds must be at least 1"),
        ({"new": 1}, "--new must be at least 2"),
    ],
)
def test_impossible_options_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        EfficiencyOptions(model="tiny", **changes)  # type: ignore[arg-type]
