"""Hidden states in float32 of 16-bit models of many families, against the same models wholly in float32."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine, tree_kernel, wide_states
from cme_bench.engines.hf.attention import AttentionCall
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.tree_kernel import Factors, Sight, plainly
from cme_bench.engines.hf.wide_states import why_narrow
from cme_bench.util import exact_logits, narrowing
from cme_bench.util.exact_logits import linear, product
from cme_bench.util.narrowing import Narrowed, Way, gated_plainly, narrowed_plainly
from tests.support.tiny_llama import random_llama
from tests.util.test_exact_logits import FAMILIES, build

HEAD = tuple(range(20, 40))
REQUESTS = [
    LoglikelihoodRequest(tuple(((*HEAD, 100 + q), (c, c + 1)) for c in range(5, 290, 40))) for q in range(4)
]
"""Questions with one header, so that it is kept and their choices are computed over it."""
MULTIPLIED = ("llama", "gemma2", "gpt2", "gptj", "qwen3", "mixtral")
"""Families whose products differ: scaled and soft-capped, of another layer, with biases, of experts."""
ROUNDS_ITSELF = {"mixtral", "mamba"}
"""Families with parts that only take 16 bits: fused experts, and a state-space layer's own casts."""


def scores(model: Any, tokenizer: PreTrainedTokenizerFast, **how: Any) -> list[float]:
    return answers(HFEngine(model, tokenizer, max_length=64, **how))


def answers(engine: HFEngine) -> list[float]:
    found = dict(engine.loglikelihood(REQUESTS))
    return [logprob for i in range(len(REQUESTS)) for logprob in found[i].logprobs]


def gap(one: list[float], other: list[float]) -> float:
    return statistics.fmean(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_of_the_rounding_is_that_of_attention(
    family: str, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(family)
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer, plain=True)
    alone = gap(exact, scores(model, toy_tokenizer, plain=True))
    shared = gap(exact, scores(model, toy_tokenizer))
    narrow = gap(exact, scores(model, toy_tokenizer, wide=False))
    if family in ROUNDS_ITSELF:
        assert shared < narrow
        return
    assert alone < 1e-5
    assert shared < narrow / 5
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_narrow_types(dtype: torch.dtype, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("llama", dtype)
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer)
    assert gap(exact, scores(model, toy_tokenizer, plain=True)) < 1e-5
    engine = HFEngine(model, toy_tokenizer)
    assert engine.describe()["states"] == "float32"
    off = HFEngine(model, toy_tokenizer, wide=False)
    assert off.describe()["states"] == f"{str(dtype).removeprefix('torch.')}: asked for"


ADAPTERS: dict[str, Any] = {
    "teamlora": TeamLoraConfig(r=4, num_experts=3, init="random", target_modules=["up_proj", "down_proj"]),
    "lora": peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"]),
    "dora": peft.LoraConfig(r=4, init_lora_weights=False, use_dora=True, target_modules=["up_proj"]),
    "embedding": peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["embed_tokens", "v_proj"]),
    "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "lokr": peft.LoKrConfig(r=4, init_weights=False, target_modules=["q_proj", "up_proj"]),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=3),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=3),
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_adapters_see_states_that_are_not_rounded(
    method: str, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = copy.deepcopy(ADAPTERS[method])
    config.task_type = "CAUSAL_LM"
    torch.manual_seed(2)
    model = peft.get_peft_model(build("llama"), config).eval()
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer)
    engine = HFEngine(model, toy_tokenizer, max_length=64)
    narrow = gap(exact, scores(model, toy_tokenizer, wide=False))
    assert gap(exact, answers(engine)) < narrow / (2 if method == "prefix" else 5)  # PEFT rounds prefixes
    assert engine.describe()["states"] == "float32"
    assert torch.backends.cuda.matmul.fp32_precision == "none"
    assert torch.get_float32_matmul_precision() == "highest"
    with model.disable_adapter():
        base = scores(build("llama"), toy_tokenizer)
        assert scores(model, toy_tokenizer) == pytest.approx(base, abs=2e-3)  # prompts' rows are alone


@pytest.mark.parametrize("family", ["llama", "gemma2", "gptj"])
def test_texts_are_those_of_float32_however_they_are_decoded(
    family: str, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(family)
    asked = [GenerateRequest((*HEAD, 100 + i), 12) for i in range(4)]
    asked += [GenerateRequest((30 + i, 31, 32), 12) for i in range(4)]
    wanted = texts(HFEngine(copy.deepcopy(model).float(), toy_tokenizer, plain=True), asked)
    ways: list[dict[str, Any]] = [{"plain": True}, {"static": False}, {"static": True}]
    for how in ways:
        assert texts(HFEngine(model, toy_tokenizer, max_length=64, **how), asked) == wanted


@pytest.mark.parametrize("static", [False, True])
def test_the_first_work_of_an_engine_that_is_told_all_other_verdicts(
    static: bool, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model, asked = build("llama"), [GenerateRequest((*HEAD, 100 + i), 4) for i in range(2)]
    verdicts = {"rowwise": None, "pads": True, "caches": True}
    engine = HFEngine(model, toy_tokenizer, static=static, verdicts=verdicts)
    assert HFEngine(model, toy_tokenizer, static=static).rowwise_because is None
    assert texts(engine, asked) == texts(HFEngine(model, toy_tokenizer, plain=True), asked)
    assert answers(HFEngine(model, toy_tokenizer, verdicts=verdicts)) == pytest.approx(
        scores(model, toy_tokenizer), abs=2e-3
    )


def texts(engine: HFEngine, asked: list[GenerateRequest]) -> list[str]:
    engine.limits.forward_tokens = 8  # so that short headers are kept
    found = dict(engine.generate(asked))
    return [found[i].text for i in range(len(asked))]


def test_float32_models_compute_as_ever(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    asked = scores(tiny_model, toy_tokenizer)
    assert asked == scores(tiny_model, toy_tokenizer, wide=False)
    assert "states" not in engine.describe()


def test_a_quantised_base_computes_as_before(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = build("llama")
    layer = model.model.layers[0].mlp.up_proj
    quantised = bitsandbytes.nn.Linear4bit(64, 96, bias=False, compute_dtype=torch.bfloat16)
    quantised.load_state_dict(layer.state_dict())
    model.model.layers[0].mlp.up_proj = quantised.to("cpu")
    engine = HFEngine(model, toy_tokenizer, max_length=64)
    assert answers(engine) == scores(model, toy_tokenizer, wide=False)
    assert engine.describe()["states"] == "bfloat16: a quantised base"


class Packed(nn.Module):
    """A quantised layer that is no subclass of torch's linear and has no weight, such as GPTQ's and HQQ's."""

    def __init__(self, tensor: str) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 96
        self.register_buffer(tensor, torch.zeros(8, 96, dtype=torch.int32))


@pytest.mark.parametrize("tensor", ["qweight", "W_q", "weight_packed"])
def test_layers_of_other_packages_are_seen_to_be_quantised(tensor: str) -> None:
    model = build("llama")
    assert why_narrow(model) is None
    model.model.layers[1].mlp.up_proj = Packed(tensor)
    assert why_narrow(model) == "a quantised base"


class Refuses(LlamaForCausalLM):
    """A model whose own code asks for the type of its weights."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if self.model.embed_tokens(torch.tensor([[1]])).dtype != self.dtype:
            raise TypeError("hidden states must be bfloat16")
        return output


def test_a_model_whose_code_refuses_wide_states_keeps_its_own(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = Refuses(random_llama(0).config).eval().bfloat16()
    engine = HFEngine(model, toy_tokenizer)
    assert answers(engine) == scores(model, toy_tokenizer, wide=False)
    assert "TypeError: hidden states must be bfloat16" in engine.describe()["states"]


@pytest.mark.parametrize("kind", [Refuses, LlamaForCausalLM], ids=["refuses", "takes"])
def test_whether_states_are_wide_is_tried_once_for_engines_that_follow(
    kind: Any, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, verdicts = kind(random_llama(0).config).eval().bfloat16(), dict[str, Any]()
    first = HFEngine(model, toy_tokenizer, verdicts=verdicts)
    found = answers(first)
    monkeypatch.setattr(CausalForward, "_why_not_wide", lambda _: pytest.fail("tried again"))
    second = HFEngine(model, toy_tokenizer, verdicts=verdicts)
    assert answers(second) == found
    assert second.describe()["states"] == first.describe()["states"]
    assert (second._forward.wide_layers is None) == (kind is Refuses)


def test_products_that_are_wrong_here_are_not_used(
    toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    before = scores(model, toy_tokenizer, wide=False)

    def negative(x: torch.Tensor, weight: torch.Tensor, *others: Any) -> torch.Tensor:
        return -product(x.to(weight.dtype), weight)

    monkeypatch.setattr(exact_logits, "wide_product", negative)
    monkeypatch.setattr(wide_states, "wide_product", negative)
    engine = HFEngine(model, toy_tokenizer, max_length=64)
    assert answers(engine) == before
    assert engine.describe()["states"] == "bfloat16: a trial gave other logits"


def test_states_beyond_float16_are_no_error(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:  # values beyond 65,504, brought back by what follows
            layer.self_attn.v_proj.weight.mul_(1e6)
            layer.self_attn.o_proj.weight.mul_(1e-6)
    assert torch.tensor(scores(model, toy_tokenizer)).isfinite().all()


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Products as a GPU's units compute them, by plain operations; the shapes of what was narrowed."""
    shapes: list[tuple[int, ...]] = []

    def counted(x: torch.Tensor, way: Way) -> Narrowed:
        shapes.append(tuple(x.shape))
        return narrowed_plainly(x, way)

    monkeypatch.setattr(exact_logits, "multiplies_halves", lambda x: True)
    monkeypatch.setattr(wide_states, "multiplies_halves", lambda x: True)
    monkeypatch.setattr(wide_states, "narrowed", counted)
    return shapes


@pytest.mark.parametrize("family", [*MULTIPLIED, "llama in float16"])
def test_the_products_of_a_gpu(
    family: str, toy_tokenizer: PreTrainedTokenizerFast, as_on_a_gpu: list[tuple[int, ...]]
) -> None:
    model = build(family) if family in FAMILIES else build("llama", torch.float16)
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer, plain=True)
    narrow = gap(exact, scores(model, toy_tokenizer, wide=False))
    assert not as_on_a_gpu
    closer = 1 if family in ROUNDS_ITSELF or family not in FAMILIES else 3
    engine = HFEngine(model, toy_tokenizer)
    assert gap(exact, answers(engine)) < narrow / closer
    assert engine.rowwise_because == HFEngine(model, toy_tokenizer, wide=False).rowwise_because


@pytest.mark.parametrize("method", [None, "lora", "teamlora"])
def test_layers_beside_each_other_narrow_what_they_share_once(
    method: str | None, as_on_a_gpu: list[tuple[int, ...]], toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build("llama")
    layers = model.config.num_hidden_layers
    if method is not None:
        config = copy.deepcopy(ADAPTERS[method])
        config.task_type = "CAUSAL_LM"
        torch.manual_seed(2)
        model = peft.get_peft_model(model, config).eval()
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer)
    engine = HFEngine(model, toy_tokenizer, max_length=64)
    assert gap(exact, answers(engine)) < gap(exact, scores(model, toy_tokenizer, wide=False)) / 3
    as_on_a_gpu.clear()
    with torch.inference_mode():
        engine._forward(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long), keep=1)
    assert len(as_on_a_gpu) == 4 * layers + 1


@pytest.mark.parametrize("told", [True, False])
def test_weights_that_change_are_multiplied_as_they_are(
    told: bool, as_on_a_gpu: list[tuple[int, ...]], toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build("llama")
    engine = HFEngine(model, toy_tokenizer, max_length=64)
    before, up = answers(engine), model.model.layers[0].mlp.up_proj
    if told:
        with torch.no_grad():
            up.weight.mul_(2)
    else:
        up.weight.data.mul_(2)  # as PEFT merges: torch does not tell of it
        engine = HFEngine(model, toy_tokenizer, max_length=64)
    after, exact = answers(engine), scores(copy.deepcopy(model).float(), toy_tokenizer)
    assert gap(after, exact) < gap(before, exact) / 20
    halves = engine._forward.wide_layers
    assert halves is not None
    assert all(part.weight.dtype == torch.bfloat16 for part in model.modules() if type(part) is nn.Linear)
    assert up in halves._halves


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_kernel_attends_to_wide_states_and_float16_is_kept(
    family: str, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the plain formula in the kernel's place; gemma2's scores are capped, which is not the kernel's."""
    seen: list[tuple[torch.dtype, torch.dtype | None]] = []

    def suits(call: AttentionCall, factors: Factors) -> bool:
        return factors is Factors.HALVES and call.softcap is None

    def attend(
        call: AttentionCall, sight: Sight, prefix: tuple[Tensor, Tensor] | None, factors: Factors
    ) -> Tensor:
        seen.append((call.query.dtype, None if prefix is None else prefix[0].dtype))
        kept = (call.key[:, :, :0], call.value[:, :, :0]) if prefix is None else prefix
        return plainly(call, sight.ends.numpy(), kept).float()

    monkeypatch.setattr(tree_kernel, "suits", suits)
    monkeypatch.setattr(tree_kernel, "attend", attend)
    model = build(family)
    engine = HFEngine(model, toy_tokenizer)
    engine.limits = dataclasses.replace(engine.limits, forward_tokens=1)
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer)
    assert gap(exact, answers(engine)) < gap(exact, scores(model, toy_tokenizer, wide=False)) / 5
    assert set(seen) == (
        set() if family == "gemma2" else {(torch.float32, None), (torch.float32, torch.float16)}
    )
    monkeypatch.setattr(tree_kernel, "suits", lambda *_: pytest.fail("rounded states are no matter of it"))
    scores(model, toy_tokenizer, wide=False)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_many_rows_of_a_gated_block_have_no_inner_states_in_float32(
    family: str,
    as_on_a_gpu: list[tuple[int, ...]],
    toy_tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called: list[int] = []
    given: list[torch.dtype] = []

    def counted(*parts: Any) -> Narrowed:
        called.append(len(parts[0]))
        return gated_plainly(*parts)

    def computed() -> list[float]:
        called.clear()
        return answers(HFEngine(model, toy_tokenizer, max_length=64))

    monkeypatch.setattr(narrowing, "_FEW_ROWS", 0)
    monkeypatch.setattr(wide_states, "gated", counted)
    model = build(family)
    found = computed()
    calls = len(called)
    assert bool(calls) == (family != "gemma2")  # whose gate is another
    layer = model.model.layers[0].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda _, states: given.append(states[0].dtype))
    heard = computed()
    assert torch.float32 in given
    assert len(called) == calls // 2  # of two layers
    hook.remove()
    hook = nn.modules.module.register_module_forward_pre_hook(lambda *_: None)
    assert computed() == pytest.approx(found, abs=1e-2)
    assert not called  # all layers are listened to
    hook.remove()
    with monkeypatch.context() as patch:
        patch.setattr(wide_states, "gated_blocks", lambda _: {})
        plain = computed()
    assert not called
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer)
    off = gap(exact, plain)
    assert gap(plain, found) <= off
    assert gap(exact, found) < 1.5 * off
    assert gap(exact, heard) < 1.5 * off


@torch.inference_mode()
def test_a_block_that_is_called_by_name_computes_by_its_own_code(
    as_on_a_gpu: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(narrowing, "_FEW_ROWS", 0)
    model = build("llama")
    block, x = model.model.layers[0].mlp, torch.randn(1, 8, model.config.hidden_size)
    with wide_states.WideStates(model)():
        by_place = block(x)
        monkeypatch.setattr(wide_states, "gated", lambda *_: pytest.fail("only states may be given"))
        by_name = block(x=x)
    assert by_place.dtype == by_name.dtype == torch.float32
    torch.testing.assert_close(by_place, by_name, rtol=1e-2, atol=1e-3)


def test_states_and_weights_beyond_float16_are_no_error(
    as_on_a_gpu: list[tuple[int, ...]], toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.mul_(1e7)
            layer.mlp.down_proj.weight.mul_(1e-7)
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer)
    assert gap(exact, scores(model, toy_tokenizer)) < gap(exact, scores(model, toy_tokenizer, wide=False)) / 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rows", [1, 37, 500])
def test_products_on_cuda_hold_more_than_the_weights_type(rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(rows, 4096), torch.randn(1000, 4096).bfloat16()
    wanted = x.double() @ weight.double().T
    with torch.no_grad():
        found = linear(x.cuda(), weight.cuda()).cpu()
    rounded = x.bfloat16().double() @ weight.double().T
    assert found.dtype == torch.float32
    assert (found.double() - wanted).abs().max() < (rounded - wanted).abs().max() / 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "qwen3", "mixtral"])
def test_on_cuda_too(family: str, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(family).cuda()
    exact = scores(copy.deepcopy(model).float(), toy_tokenizer)
    narrow = gap(exact, scores(model, toy_tokenizer, wide=False))
    assert gap(exact, scores(model, toy_tokenizer)) < narrow / (1 if family in ROUNDS_ITSELF else 5)
    asked = [GenerateRequest((*HEAD, 100 + i), 12) for i in range(4)]
    captured = texts(HFEngine(model, toy_tokenizer, max_length=64), asked)
    assert captured == texts(HFEngine(model, toy_tokenizer, max_length=64, static=False), asked)
