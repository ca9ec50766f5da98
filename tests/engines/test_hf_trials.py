"""Architectures that share no prefix, ignore padding or have no cache: slower ways with the right numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.hf import engine as engine_module
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.sharing import why_rowwise
from cme_bench.engines.hf.trials import caches, pads
from cme_bench.util.errors import CmeError

KINDS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, True, True),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, True, True),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, True, False),
    "rwkv": ({"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}, False, False),
    "openai-gpt": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, True, False),
    "roberta": (
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        False,
        True,
    ),
    "trocr": (
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
        False,
        True,
    ),
}
"""Kind: what makes it small, whether it heeds padding, whether its cache is transformers' own."""
ROWS = tuple((tuple(range(3, 3 + n)), (40 + n, 50)) for n in (17, 12, 5, 9))


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    known = AutoConfig.for_model(kind)
    sizes = {"vocab_size": 280, "initializer_range": 0.2, "init_std": 0.2, "is_decoder": True}
    settings = {k: v for k, v in {**sizes, **KINDS[kind][0]}.items() if hasattr(known, k)}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()


@torch.inference_mode()
def plain_score(model: PreTrainedModel, context: tuple[int, ...], continuation: tuple[int, ...]) -> float:
    logits = model(input_ids=torch.tensor([context + continuation]), use_cache=False).logits[0]
    wanted = logits.log_softmax(-1)[len(context) - 1 : -1]
    return float(wanted.gather(1, torch.tensor(continuation)[:, None]).sum())


@torch.inference_mode()
def plain_greedy(model: PreTrainedModel, prompt: tuple[int, ...], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_texts_are_those_of_single_rows(kind: str, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = model_of(kind)
    _, heeds_padding, own_cache = KINDS[kind]
    forward = CausalForward(model, torch.device("cpu"))
    assert (pads(forward), caches(forward)) == (heeds_padding, own_cache)
    engine = HFEngine(model, toy_tokenizer, max_length=64)
    assert engine.rowwise_because is not None
    for index, response in engine.loglikelihood([LoglikelihoodRequest((row,)) for row in ROWS]):
        assert response.logprobs[0] == pytest.approx(plain_score(model, *ROWS[index]), abs=1e-4)
    asked = [GenerateRequest(context, 5, ()) for context, _ in ROWS]
    for index, answer in engine.generate(asked):
        expected = plain_greedy(model, ROWS[index][0], 5)
        ends = [expected.index(end) for end in (271, model.generation_config.eos_token_id) if end in expected]
        expected = expected[: min(ends, default=len(expected))]
        assert answer.text == toy_tokenizer.decode(expected, skip_special_tokens=True)


def test_a_trial_that_fails_is_a_reason_and_not_an_error() -> None:
    reason = why_rowwise(CausalForward(model_of("falcon"), torch.device("cpu")), 64)
    assert str(reason).startswith("a trial failed (TypeError: ")


@pytest.mark.parametrize(
    "trial", [lambda f: why_rowwise(f, 64), pads, caches], ids=["shares", "pads", "caches"]
)
def test_memory_that_runs_out_in_a_trial_is_an_error(
    trial: Any, tiny_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CausalForward(tiny_model, torch.device("cpu"))
    attend = type(tiny_model.model.layers[0].self_attn).forward

    def fail(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        shared = getattr(self.config, "_attn_implementation", "") == "cme_tree"
        if (
            shared
            or (trial is pads and hidden_states.shape[0] > 1)
            or kwargs.get("past_key_values") is not None
        ):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return attend(self, hidden_states, **kwargs)

    monkeypatch.setattr(type(tiny_model.model.layers[0].self_attn), "forward", fail)
    with pytest.raises(CmeError, match="out of memory"):
        trial(forward)


@pytest.mark.parametrize("kind", ["falcon", "mamba", "rwkv"])
def test_what_a_trial_found_serves_the_next_engine(
    kind: str, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, verdicts = model_of(kind), dict[str, Any]()
    asked = [LoglikelihoodRequest((row,)) for row in ROWS]
    texts = [GenerateRequest(row[0], 3, ()) for row in ROWS]

    def answers() -> list[Any]:
        engine = HFEngine(model, toy_tokenizer, verdicts=verdicts)
        return [*sorted(engine.loglikelihood(asked)), *sorted(engine.generate(texts))]

    first = answers()
    assert "rowwise" in verdicts
    for trial in ("why_rowwise", "pads", "caches"):
        monkeypatch.setattr(f"cme_bench.engines.hf.engine.{trial}", lambda *_: pytest.fail("tried again"))
    assert answers() == first


def test_what_a_model_is_made_of_is_found_once_for_all_its_engines(
    toy_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, verdicts = model_of("bloom"), dict[str, Any]()
    first = HFEngine(model, toy_tokenizer, verdicts=verdicts)
    found = first.alone_because, first._work, first.limits
    alone = HFEngine(model, toy_tokenizer)
    assert (alone.alone_because, alone._work, alone.limits) == found
    for name in ("base_size", "why_alone"):
        monkeypatch.delattr(engine_module, name)
    monkeypatch.delattr(engine_module.Work, "of")
    second = HFEngine(model, toy_tokenizer, verdicts=verdicts)
    assert (second.alone_because, second._work, second.limits) == found
