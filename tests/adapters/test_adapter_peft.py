"""The methods inside PEFT and transformers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, PeftType, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from cme_bench import adapters
from cme_bench.adapters import AdapterError, balance_tape, no_decay_names, record_router, registry
from cme_bench.adapters.shared.layer import AdapterLinear
from cme_bench.adapters.shared.targets import ATTENTION, FFN
from cme_bench.util.errors import UsageError
from tests.support.adapter_cases import CONFIGS, ROUTED, Make, tiny_llama


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    return {key: p for key, p in model.named_parameters() if key.endswith(f".{name}")}


def test_registering_twice_changes_nothing() -> None:
    members = list(PeftType)
    for method in registry.methods():
        registry.register(method.name, method.config_class, method.model_class)
    importlib.reload(adapters)
    assert list(PeftType) == members
    assert PeftType("TEAMLORA") is PeftType.TEAMLORA
    assert {m.upper() for m in adapters.METHODS} <= {m.value for m in PeftType}


@pytest.mark.parametrize("method", CONFIGS)
def test_new_adapter_equals_base_bit_for_bit(method: str, base: LlamaForCausalLM, ids: Tensor) -> None:
    wanted = base(ids).logits
    model = get_peft_model(base, CONFIGS[method](r=3))
    if method == "mixlora":  # a weighted sum of equal blocks
        torch.testing.assert_close(model(ids).logits, wanted, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(model(ids).logits, wanted)


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("name", ["default", "other"])
def test_saved_and_reloaded_bit_for_bit(
    method: str, name: str, adapted: Make, ids: Tensor, tmp_path: Path
) -> None:
    model = adapted(method).eval()
    wanted = model(ids).logits
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert all(key.rpartition(".")[2].startswith(f"{method}_") for key in keys)
    assert not any("lora_A" in key or "lora_B" in key for key in keys)
    fresh = tiny_llama()
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(fresh, tmp_path, adapter_name=name)
    assert torch.equal(again(ids).logits, wanted)
    again.save_pretrained(tmp_path / "again")
    written = tmp_path / "again" / (name if name != "default" else "") / "adapter_model.safetensors"
    assert written.read_bytes() == (tmp_path / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("method", CONFIGS)
def test_auto_classes_load_it(method: str, base: LlamaForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, CONFIGS[method](r=3, init="random", task_type="CAUSAL_LM")).eval()
    wanted = model(ids).logits
    model.save_pretrained(tmp_path / "adapter")
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(auto(ids).logits, wanted)
    lean = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", low_cpu_mem_usage=True).eval()
    assert torch.equal(lean(ids).logits, wanted)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    plain.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(plain(ids).logits, wanted)


def test_config_is_saved_whole_and_in_a_fixed_order(adapted: Make, tmp_path: Path) -> None:
    model = adapted(
        "teamlora",
        scaling="alpha/(k*r)",
        normalize_omega=True,
        omega_times_k=True,
        dropout=0.1,
        dropout_place="latent",
        balance_coefficient=0.01,
        collaboration=False,
    )
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == ["down_proj", "gate_proj", "up_proj"]
    read = CONFIGS["teamlora"].from_pretrained(tmp_path)
    for key in ("scaling", "normalize_omega", "omega_times_k", "dropout", "dropout_place", "collaboration"):
        assert getattr(read, key) == saved[key] == getattr(model.peft_config["default"], key)


@pytest.mark.parametrize("method", CONFIGS)
def test_several_adapters_switch_disable_delete(
    method: str, adapted: Make, base: LlamaForCausalLM, ids: Tensor
) -> None:
    plain = base(ids).logits
    model = adapted(method).eval()
    first = model(ids).logits
    model.add_adapter("second", CONFIGS[method](r=2, init="random", target_modules=["down_proj", "q_proj"]))
    assert torch.equal(model(ids).logits, first)
    model.set_adapter("second")
    second = model(ids).logits
    assert not torch.equal(second, first)
    assert all(p.requires_grad for p in adapter_tensors(model, "second").values())
    assert not any(p.requires_grad for p in adapter_tensors(model, "default").values())
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, plain)
    model.base_model.set_adapter(["default", "second"])
    assert not torch.equal(model(ids).logits, second)
    model.set_adapter("default")
    assert torch.equal(model(ids).logits, first)
    model.delete_adapter("second")
    assert not adapter_tensors(model, "second")
    assert torch.equal(model(ids).logits, first)
    assert torch.equal(model.unload()(ids).logits, plain)


def test_each_adapter_is_saved_alone(adapted: Make, tmp_path: Path) -> None:
    model = adapted("teamlora")
    model.add_adapter("second", CONFIGS["teamlora"](r=2, init="random"))
    model.save_pretrained(tmp_path)
    first, second = (
        load_file(tmp_path / "adapter_model.safetensors"),
        load_file(tmp_path / "second" / "adapter_model.safetensors"),
    )
    assert first.keys() == second.keys()
    assert {t.shape[0] for k, t in first.items() if k.endswith("_down")} == {12}
    assert {t.shape[0] for k, t in second.items() if k.endswith("_down")} == {8}


@pytest.mark.parametrize("method", CONFIGS)
def test_generation_with_and_without_cache(method: str, adapted: Make, ids: Tensor) -> None:
    model = adapted(method).eval()
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))
    with model.disable_adapter():
        assert not torch.equal(cached, model.generate(input_ids=ids, **settings))


@pytest.mark.parametrize("method", ROUTED)
def test_merging_a_routed_adapter_says_why_not(method: str, adapted: Make) -> None:
    model = adapted(method)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(UsageError, match="every token") as raised:
            merge()
        assert method in str(raised.value) and "\n" not in str(raised.value)
        assert isinstance(raised.value, ValueError)
    layer = next(m for m in model.modules() if isinstance(m, AdapterLinear))
    with pytest.raises(AdapterError, match="every token"):
        layer.merge()


def test_moslora_merges_and_unmerges(adapted: Make, ids: Tensor) -> None:
    model = adapted("moslora", mixer_init="orthogonal").eval()
    wanted = model(ids).logits
    with model.disable_adapter():
        plain = model(ids).logits
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(ids).logits, wanted, atol=1e-5, rtol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(model(ids).logits, wanted, atol=1e-5, rtol=1e-5)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, plain, atol=1e-5, rtol=1e-5)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, AdapterLinear) for m in merged.modules())
    torch.testing.assert_close(merged(ids).logits, wanted, atol=1e-5, rtol=1e-5)


def test_moslora_safe_merge_refuses_what_is_not_finite(adapted: Make) -> None:
    model = adapted("moslora")
    next(iter(adapter_tensors(model, "default").values())).data.fill_(float("nan"))
    with pytest.raises(AdapterError, match="NaNs detected in the merged weights"):
        model.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("method", CONFIGS)
def test_gradient_checkpointing_changes_no_gradient(method: str, adapted: Make, ids: Tensor) -> None:
    """With the balance loss, whose gradient must survive the recomputation; dropout is on."""
    fields = {} if method == "moslora" else {"balance_coefficient": 0.5}
    model = adapted(method, dropout=0.2, **fields).train()
    model.enable_input_require_grads()
    parameters = adapter_tensors(model, "default")
    mask = torch.ones_like(ids)
    mask[1, :2] = 0

    def gradients(balance: bool) -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(5)
        if balance:
            with balance_tape(model) as tape:
                loss = model(ids, attention_mask=mask, labels=ids).loss + tape.loss()
                loss.backward()  # inside the tape, so that the recomputation happens under it
        else:
            model(ids, attention_mask=mask, labels=ids).loss.backward()
        return [p.grad.clone() for p in parameters.values()]

    routed = method in ROUTED
    plain = gradients(routed)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for mine, wanted in zip(gradients(routed), plain, strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-7, rtol=1e-5)
    if routed:
        without = dict(zip(parameters, gradients(False), strict=True))
        routers = [name for name in parameters if "_router" in name]
        index = list(parameters)
        assert any(not torch.equal(without[name], plain[index.index(name)]) for name in routers)


def test_reentrant_checkpointing_is_refused_by_the_balance_loss(adapted: Make, ids: Tensor) -> None:
    model = adapted("teamlora").train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with balance_tape(model) as tape:
        model(ids, labels=ids)
        with pytest.raises(AdapterError, match="use_reentrant=False"):
            tape.loss()


def test_balance_loss_by_hand(adapted: Make, ids: Tensor) -> None:
    model = adapted(
        "teamlora", num_experts=3, balance_coefficient=0.5, target_modules=["layers.0.mlp.up_proj"]
    ).eval()
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with balance_tape(model) as tape:
        model(ids, attention_mask=mask)
        with torch.no_grad():
            model(ids)  # an evaluation in between is left out
        loss = tape.loss()
    hook.remove()
    omega = layer.routing(seen[0][mask.bool()], "default").omega
    wanted = 0.5 * (omega.mean(0) - 1 / 3).square().mean()
    torch.testing.assert_close(loss, wanted)
    assert layer.routing_listeners == ()


def test_router_statistics_leave_padding_out(adapted: Make, ids: Tensor) -> None:
    model = adapted("teamlora", num_experts=3).eval()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with record_router(model) as record:
        model(input_ids=ids, attention_mask=mask)
    stats = record.stats()
    assert len(stats) == 6  # three linears in each of two layers
    assert {s.tokens for s in stats} == {9}
    with record_router(model) as alone:
        model(input_ids=ids[:1])
        positions = torch.arange(3).unsqueeze(0)
        model(input_ids=ids[1:, 3:], position_ids=positions)
    for mine, wanted in zip(stats, alone.stats(), strict=True):
        assert mine.layer == wanted.layer and mine.tokens == wanted.tokens
        assert sum(mine.phi) == pytest.approx(1.0) and sum(mine.top1) == pytest.approx(1.0)
        assert mine.phi == pytest.approx(wanted.phi, abs=1e-5)
        assert mine.omega == pytest.approx(wanted.omega, abs=1e-5)
        assert mine.entropy == pytest.approx(wanted.entropy, abs=1e-5)
        assert 0 < mine.entropy <= torch.log(torch.tensor(3.0)) + 1e-6
    assert any(s.phi != pytest.approx(s.omega) for s in stats)


def test_router_statistics_while_generating(adapted: Make, ids: Tensor) -> None:
    model = adapted("moelora").eval()
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    with record_router(model) as record:
        model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=3, min_new_tokens=3)
    # 12 prompt tokens less 2 of padding, then two steps of two new tokens; the last token is never read.
    assert {s.tokens for s in record.stats()} == {14}


def test_recomputed_layers_are_heard_once(adapted: Make, ids: Tensor) -> None:
    """Gradient checkpointing runs every layer again inside backward; the statistics count each token once."""
    model = adapted("teamlora").train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with record_router(model) as record, balance_tape(model) as tape:
        model(ids, labels=ids).loss.backward()
        assert {s.tokens for s in record.stats()} == {ids.numel()}
        assert len(tape._heard) == 6


def test_recording_needs_a_router(adapted: Make) -> None:
    with pytest.raises(AdapterError, match="no routed adapter"), record_router(adapted("moslora")):
        pass


@pytest.mark.parametrize("method", CONFIGS)
def test_bfloat16_base_with_float32_adapter(
    method: str, adapted: Make, base: LlamaForCausalLM, ids: Tensor, tmp_path: Path
) -> None:
    base.to(torch.bfloat16)
    model = adapted(method).eval()
    assert {p.dtype for p in adapter_tensors(model, "default").values()} == {torch.float32}
    wanted = model(ids).logits
    assert wanted.dtype == torch.bfloat16
    model(ids, labels=ids).loss.backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32
        for p in adapter_tensors(model, "default").values()
    )
    model.save_pretrained(tmp_path)
    for lean in (False, True):
        fresh = tiny_llama().to(torch.bfloat16)
        again = PeftModel.from_pretrained(fresh, tmp_path, low_cpu_mem_usage=lean)
        for key, tensor in adapter_tensors(again, "default").items():
            assert torch.equal(tensor, adapter_tensors(model, "default")[key])
        assert torch.equal(again(ids).logits, wanted)


@pytest.mark.parametrize("method", CONFIGS)
def test_the_start_does_not_depend_on_the_base_dtype(method: str) -> None:
    """Parameters are float32 from the first; told to keep the base's type, PEFT rounds them once."""

    def start(dtype: torch.dtype, autocast: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(11)
        config = CONFIGS[method](r=3, init="random")
        model = get_peft_model(tiny_llama().to(dtype), config, autocast_adapter_dtype=autocast)
        return adapter_tensors(model, "default")

    wanted = start(torch.float32, True)
    cast, kept = start(torch.bfloat16, True), start(torch.bfloat16, False)
    for name, tensor in wanted.items():
        assert torch.equal(cast[name], tensor)
        assert torch.equal(kept[name], tensor.to(torch.bfloat16))


class Int8Linear(nn.Linear):
    """In the manner of bitsandbytes: integer weights, a forward of its own, floating-point output."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.factor = linear.weight.detach().abs().max() / 127
        quantised = (linear.weight.detach() / self.factor).round().to(torch.int8)
        self.weight = nn.Parameter(quantised, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.factor)


@pytest.mark.parametrize("method", CONFIGS)
def test_quantised_linears_fall_through(
    method: str, adapted: Make, base: LlamaForCausalLM, ids: Tensor
) -> None:
    for layer in base.model.layers:
        layer.mlp.up_proj = Int8Linear(layer.mlp.up_proj)
    plain = base(ids).logits
    model = adapted(method).eval()
    assert not torch.equal(model(ids).logits, plain)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, plain)
    if method == "moslora":
        with pytest.raises(AdapterError, match="quantised"):
            model.merge_adapter()


@pytest.mark.parametrize("architecture", sorted(FFN))
@pytest.mark.parametrize("attention", [False, True])
def test_default_targets(architecture: str, attention: bool) -> None:
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {**small, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20, "pad_token_id": 0}
    config = AutoConfig.for_model(
        architecture, **({"text_config": sizes} if architecture == "gemma3" else sizes)
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(model, CONFIGS["teamlora"](r=2, target_attention=attention))
    names = {name for name, m in model.named_modules() if isinstance(m, AdapterLinear)}
    wanted = set(FFN[architecture]) | set(ATTENTION[architecture] if attention else ())
    assert {end for end in wanted if any(name.endswith(f".{end}") for name in names)} == wanted
    assert all(name.endswith(tuple(f".{end}" for end in wanted)) for name in names)


def test_targets_can_be_named(adapted: Make) -> None:
    model = adapted("teamlora", target_modules=r".*layers\.1\..*(q_proj|down_proj)")
    names = [name for name, m in model.named_modules() if isinstance(m, AdapterLinear)]
    assert [name.split("layers.")[1] for name in names] == ["1.self_attn.q_proj", "1.mlp.down_proj"]


def test_interaction_matrices_are_kept_from_decay(adapted: Make) -> None:
    model = adapted("teamlora")
    names = no_decay_names(model)
    assert len(names) == 6
    assert all(name.endswith("teamlora_interaction.default") for name in names)
