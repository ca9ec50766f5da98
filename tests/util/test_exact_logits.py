"""Float32 logits of 16-bit models of many families, against a slow reference that upcasts the product."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.hf.wide_states import WideStates
from cme_bench.harness.lm_eval_model import EngineLM
from cme_bench.util import exact_logits as module
from cme_bench.util.exact_logits import exact_logits, is_rounded, linear
from cme_bench.util.precision import full_float32
from tests.support.tiny_llama import random_llama

PROMPT = tuple(range(20, 31))
ONE, OTHER = 7, 11
"""Tokens that are made to tie; neither is in the prompt, whose embeddings may be the output layer's rows."""

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "llama_tied": ("Llama", GROUPED | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2", GROUPED | {"head_dim": 16, "final_logit_softcapping": 30.0}),
    "gemma3": ("Gemma3Text", GROUPED | {"head_dim": 16}),
    "cohere": ("Cohere", GROUPED | {"logit_scale": 0.0625}),
    "granite": ("Granite", GROUPED | {"logits_scaling": 8.0}),
    "gpt2": ("GPT2", SIZES | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt_neox": ("GPTNeoX", SIZES),
    "gptj": ("GPTJ", SIZES | {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 16}),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED | {"head_dim": 16}),
    "phi": ("Phi", SIZES),
    "mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4}),
    "opt": ("OPT", SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("Bloom", {"vocab_size": 300, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mamba": ("Mamba", SIZES),
    "stablelm": ("StableLm", GROUPED),
}
AFTER: dict[str, Callable[[Tensor], Tensor]] = {
    "gemma2": lambda logits: 30.0 * torch.tanh(logits / 30.0),
    "cohere": lambda logits: logits * 0.0625,
    "granite": lambda logits: logits / 8.0,
}
"""What a family's forward does after its output layer."""


def build(family: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    name, sizes = FAMILIES[family]
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)  # norms and biases too: nothing is one or zero
    return model.to(dtype)


def hidden_states(model: Any, ids: tuple[int, ...], *, wide: bool = False) -> Tensor:
    """What enters the output layer, [tokens, width]; ``wide``: as the engine computes it."""
    seen: list[Tensor] = []
    head = getattr(model, "get_base_model", lambda: model)().get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad(), exact_logits(model), WideStates(model)() if wide else nullcontext():
        model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))
    hook.remove()
    return seen[-1][0]


def reference(model: Any, family: str, ids: tuple[int, ...]) -> Tensor:
    """Logits [tokens, vocabulary]: the engine's hidden states, all that follows in float32."""
    head = model.get_output_embeddings()
    bias = None if head.bias is None else head.bias.float()
    with torch.no_grad():
        states = hidden_states(model, ids, wide=True).float()
        logits = nn.functional.linear(states, head.weight.float(), bias)
    return AFTER.get(family, lambda same: same)(logits)


def plain_logits(model: Any, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def make_tie(model: Any) -> None:
    """Give ONE and OTHER logits that differ by less than a step of bfloat16, the second being the higher."""
    head = model.get_output_embeddings()
    last = hidden_states(model, PROMPT)[-1]
    with torch.no_grad():
        row = (24.0 * last.float() / last.float().pow(2).sum()).to(head.weight.dtype)
        head.weight[ONE] = head.weight[OTHER] = row
        place = int(last.abs().argmax())  # one step of one weight, away from zero: some hundredths of a logit
        head.weight[OTHER, place] = torch.nextafter(row[place], 1e9 * row[place])
        if head.bias is not None:
            head.bias[ONE] = head.bias[OTHER] = 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_an_unrounded_output_layer(
    family: str, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = build(family)
    before = plain_logits(model, PROMPT)
    answer = (40, 41, 5)
    table = reference(model, family, PROMPT + answer[:-1]).log_softmax(-1)
    wanted = sum(float(table[len(PROMPT) - 1 + i, token]) for i, token in enumerate(answer))
    engine = HFEngine(model, toy_tokenizer, plain=True, max_length=64)
    [(_, found)] = engine.loglikelihood([LoglikelihoodRequest(((PROMPT, answer),))])
    assert found.logprobs[0] == pytest.approx(wanted, abs=1e-3)
    assert engine.describe()["logits"] == "float32"
    assert torch.equal(plain_logits(model, PROMPT), before), "the model is as it was"
    assert not any("forward" in part.__dict__ for part in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_ties_in_bfloat16_is_told_apart(family: str, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build(family)
    make_tie(model)
    rounded = plain_logits(model, PROMPT)[-1]
    assert rounded[ONE] == rounded[OTHER], "a tie, which the first would win"
    request = LoglikelihoodRequest(((PROMPT, (ONE,)), (PROMPT, (OTHER,))))
    for plain in (True, False):
        engine = HFEngine(model, toy_tokenizer, plain=plain, max_length=64)
        [(_, found)] = engine.loglikelihood([request])
        assert found.logprobs[1] > found.logprobs[0] + 1e-5


def test_greedy_decoding_tells_them_apart_too(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("llama")
    make_tie(model)
    with torch.no_grad():  # both far above all others
        model.lm_head.weight[[i for i in range(300) if i not in (ONE, OTHER)]] *= 1e-2
    for plain in (True, False):
        engine = HFEngine(model, toy_tokenizer, plain=plain)
        asked = [GenerateRequest(PROMPT, 1), GenerateRequest((*PROMPT[:-1], 60), 1)]
        texts = {index: response.text for index, response in engine.generate(asked)}
        assert texts[0] == toy_tokenizer.decode([OTHER])


def lora_on_the_head(model: Any) -> Any:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["lm_head", "q_proj"], init_lora_weights=False
    )
    return peft.get_peft_model(model, config).eval()


def a_trained_head(model: Any) -> Any:
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        adapted.get_base_model().lm_head.modules_to_save["default"].weight.mul_(1.5)
    return adapted


@torch.no_grad()
@pytest.mark.parametrize("adapt", [lora_on_the_head, a_trained_head])
def test_adapters_on_the_output_layer_count(
    adapt: Callable[[Any], Any], toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(5)
    model = adapt(build("llama"))
    head = model.get_base_model().get_output_embeddings()
    x = hidden_states(model, PROMPT, wide=True)[-1].float()
    if adapt is lora_on_the_head:
        down, up = head.lora_A["default"].weight.float(), head.lora_B["default"].weight.float()
        logits = head.base_layer.weight.float() @ x + head.scaling["default"] * (up @ (down @ x))
    else:
        logits = head.modules_to_save["default"].weight.float() @ x
    wanted = logits.log_softmax(-1)
    rows = tuple((PROMPT, (token,)) for token in range(0, 300, 7))
    engine = HFEngine(model, toy_tokenizer, plain=True)
    [(_, found)] = engine.loglikelihood([LoglikelihoodRequest(rows)])
    assert found.logprobs == pytest.approx([float(wanted[token]) for token in range(0, 300, 7)], abs=1e-3)
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_an_adapter_that_returns_its_inputs_type(toy_tokenizer: PreTrainedTokenizerFast) -> None:
    config = peft.LoKrConfig(task_type="CAUSAL_LM", r=4, target_modules=["lm_head"], init_weights=False)
    model = peft.get_peft_model(build("llama"), config).eval()
    engine = HFEngine(model, toy_tokenizer, plain=True)
    [(_, found)] = engine.loglikelihood([LoglikelihoodRequest(((PROMPT, (ONE,)),))])
    assert engine.describe()["logits"] == "float32"
    wide = copy.deepcopy(model).float()
    head = wide.get_base_model().lm_head
    wanted = head(hidden_states(model, PROMPT, wide=True)[-1:].float()).log_softmax(-1)[0, ONE]
    assert found.logprobs[0] == pytest.approx(float(wanted.detach()), abs=1e-2)


class Casts(LlamaForCausalLM):
    """A model whose own forward rounds its logits."""

    back = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits.bfloat16()
        if self.back:
            output.logits = output.logits.float()
        return output


@pytest.mark.parametrize("back", [False, True])
def test_a_model_that_rounds_all_the_same_is_found_out(
    toy_tokenizer: PreTrainedTokenizerFast, back: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Casts(random_llama(0).config).eval().bfloat16()
    model.back = back
    engine = HFEngine(model, toy_tokenizer, plain=True)
    EngineLM(engine, toy_tokenizer)._loglikelihood_tokens([(None, PROMPT, (ONE,))])
    assert engine.describe()["logits"] == "bfloat16"
    assert "the model rounds its own logits to bfloat16" in caplog.text


def test_float32_models_compute_as_ever(tiny_model: LlamaForCausalLM) -> None:
    before = plain_logits(tiny_model, PROMPT)
    with exact_logits(tiny_model), torch.no_grad():
        assert torch.equal(tiny_model(torch.tensor([PROMPT])).logits[0], before)


def test_a_lower_precision_of_float32_products_is_put_aside(tiny_model: LlamaForCausalLM) -> None:
    before = plain_logits(tiny_model, PROMPT)
    parts = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    torch.set_float32_matmul_precision("medium")
    try:
        asked = [part.fp32_precision for part in parts]
        with exact_logits(tiny_model), torch.no_grad():
            assert [part.fp32_precision for part in parts] == ["ieee", "ieee"]
            assert not torch.backends.cuda.matmul.allow_tf32  # raises where torch's two settings differ
            assert torch.equal(tiny_model(torch.tensor([PROMPT])).logits[0], before)
        assert [part.fp32_precision for part in parts] == asked
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    with full_float32():
        assert torch.get_float32_matmul_precision() == "highest"


def test_a_precision_asked_for_by_the_newer_setting_alone_is_put_aside_too() -> None:
    part = torch.backends.cuda.matmul
    part.fp32_precision = "tf32"
    try:
        with full_float32():
            assert part.fp32_precision == "ieee"
            assert not part.allow_tf32
        assert part.fp32_precision == "tf32"
    finally:
        part.fp32_precision = "none"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at_once", [1 << 21, 5 * 64])
def test_products_and_their_gradients(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_UPCAST_NUMBERS", at_once)  # many pieces, the last of them smaller
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 64, dtype=dtype), torch.randn(33, 64, dtype=dtype)
    bias = torch.randn(33, dtype=dtype)
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    outer = torch.randn(2, 3, 33)
    found, wanted = linear(*inputs), nn.functional.linear(*wide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-5)
    grads = torch.autograd.grad(found, inputs, outer)
    for got, want in zip(grads, torch.autograd.grad(wanted, wide, outer.double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-2, atol=0.1)


def test_other_names_for_a_product(tiny_model: LlamaForCausalLM) -> None:
    model = copy.deepcopy(tiny_model).bfloat16()
    weight = model.lm_head.weight
    exact = hidden_states(model, PROMPT).float() @ weight.float().T
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda x: x @ weight.T,
        lambda x: torch.matmul(x, weight.T),
        lambda x: torch.addmm(torch.zeros_like(weight[:, 0]), x[0], weight.T)[None],
        lambda x: x[0].mm(weight.T)[None],
        lambda x: torch.matmul(x, weight.T[None]),
        lambda x: nn.functional.linear(input=x, weight=weight),  # PEFT's trainable tokens
        lambda x: torch.matmul(x, other=weight.T),
    ]
    for way in ways:
        model.lm_head.forward = way
        with exact_logits(model), torch.no_grad():
            logits = model(torch.tensor([PROMPT])).logits[0]
        assert not is_rounded(logits, torch.bfloat16)
        torch.testing.assert_close(logits, exact, rtol=1e-6, atol=1e-5)
        assert model.lm_head.forward is way


def test_autocast_keeps_its_inputs_and_loses_no_sum(tiny_model: LlamaForCausalLM) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16), exact_logits(tiny_model), torch.no_grad():
        x = hidden_states(tiny_model, PROMPT)
        logits = tiny_model(torch.tensor([PROMPT])).logits[0]
    exact = x.bfloat16().float() @ tiny_model.lm_head.weight.bfloat16().float().T
    torch.testing.assert_close(logits, exact, rtol=1e-6, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_on_cuda(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(257, 4096, dtype=dtype), torch.randn(1003, 4096, dtype=dtype)
    found = linear(x.cuda(), weight.cuda()).cpu()
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T, rtol=1e-5, atol=1e-3)
