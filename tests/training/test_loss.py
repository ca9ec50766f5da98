"""The chunked loss on target rows against the plain formula on all logits."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaForCausalLM

from cme_bench.training import loss as loss_module
from cme_bench.training.loss import output_head, target_loss
from cme_bench.util.errors import UsageError

X = -100


def reference_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum over labelled places t of log p(label_t | before t), from the logits of all places."""
    total = torch.zeros((), dtype=logits.dtype)
    for row in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[row, t] != X:
                total = total - logits[row, t - 1].log_softmax(-1)[labels[row, t]]
    return total


def batch() -> dict[str, Tensor]:
    torch.manual_seed(3)
    ids = torch.randint(0, 256, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.clone()
    labels[:, :4] = X
    labels[mask == 0] = X
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def lora(model: torch.nn.Module) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["up_proj"], init_lora_weights=False)
    return get_peft_model(copy.deepcopy(model), config)


def gemma2() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
    )
    return Gemma2ForCausalLM(config)


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("which", ["llama", "gemma2"])
def test_loss_and_gradients_equal_the_formula(
    tiny_model: LlamaForCausalLM, which: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lora(tiny_model if which == "llama" else gemma2())
    inputs = batch()
    trained = [p for p in model.parameters() if p.requires_grad]
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    expected = reference_nll(logits.double(), inputs["labels"])
    wanted = torch.autograd.grad(0.25 * expected, trained)
    monkeypatch.setattr(loss_module, "CHUNK_NUMBERS", 300 * chunk)
    with target_loss(model.get_base_model()):
        output = model(**inputs, weight=0.25)
    assert torch.allclose(output.nll.double(), expected, rtol=1e-6)
    assert torch.allclose(output.loss, 0.25 * output.nll)
    for got, want in zip(torch.autograd.grad(output.loss, trained), wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    again = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert torch.equal(again, logits)  # the model's own forward is back


@pytest.mark.parametrize("trained", [False, True])
def test_a_bfloat16_model_learns_from_logits_that_are_not_rounded(
    tiny_model: LlamaForCausalLM, trained: bool
) -> None:
    model = copy.deepcopy(tiny_model).bfloat16()
    model.lm_head.requires_grad_(trained)
    inputs = batch()
    with torch.no_grad():
        seen = model.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        logits = seen.last_hidden_state.double() @ model.lm_head.weight.double().T
    wanted = reference_nll(logits, inputs["labels"])
    with target_loss(model):
        output = model(**inputs)
    assert float(output.nll) == pytest.approx(float(wanted), rel=1e-5)
    output.loss.backward()
    assert model.model.norm.weight.grad.dtype == torch.bfloat16
    assert (model.lm_head.weight.grad is not None) == trained


def test_a_trained_head_gets_its_gradient(tiny_model: LlamaForCausalLM) -> None:
    model = copy.deepcopy(tiny_model)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    inputs = batch()
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    (wanted,) = torch.autograd.grad(reference_nll(logits, inputs["labels"]), [model.lm_head.weight])
    with target_loss(model):
        (got,) = torch.autograd.grad(model(**inputs).loss, [model.lm_head.weight])
    assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_source_tokens_do_not_matter_to_the_loss(tiny_model: LlamaForCausalLM) -> None:
    inputs = batch()
    other = {name: value.clone() for name, value in inputs.items()}
    other["labels"][:, 0] = 7  # nothing precedes the first token, so it cannot be learnt
    with target_loss(tiny_model), torch.no_grad():
        assert tiny_model(**other).nll == tiny_model(**inputs).nll
        other["labels"][:, 4] = X
        assert tiny_model(**other).nll < tiny_model(**inputs).nll


def test_adaloras_regulariser_passes_through(tiny_model: LlamaForCausalLM) -> None:
    config = AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=3, target_r=2, total_step=10, target_modules=["up_proj"]
    )
    model = get_peft_model(copy.deepcopy(tiny_model), config)
    with target_loss(model.get_base_model()):
        output = model(**batch(), weight=0.0)
    assert output.loss > 0


def test_an_unknown_treatment_of_logits_is_refused(tiny_model: LlamaForCausalLM) -> None:
    model = copy.deepcopy(tiny_model)
    own = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.forward = forward
    with pytest.raises(UsageError, match="LlamaForCausalLM changes its logits"):
        output_head(model)
