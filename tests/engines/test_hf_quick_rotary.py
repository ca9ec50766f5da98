"""Rotary positions by one kernel: functions that are known by their numbers, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from cme_bench.engines.hf import quick_rotary
from cme_bench.engines.hf.quick_rotary import QuickRotary, turn_plainly


def states(rows: int = 2, tokens: int = 7, heads: int = 6, size: int = 16) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = (rows, tokens, heads, size), (rows, tokens, 2, size), *[(rows, tokens, size)] * 2
    query, key, cos, sin = (torch.randn(shape, generator=generator) for shape in shapes)
    return query.transpose(1, 2), key.transpose(1, 2), cos, sin


@pytest.mark.parametrize("module", [modeling_llama, modeling_qwen3])
def test_the_plain_formula_is_the_models_own(module: Any) -> None:
    own = module.apply_rotary_pos_emb
    assert quick_rotary._is_rotary(own)
    for one, other in zip(own(*states()), turn_plainly(*states()), strict=True):
        assert torch.equal(one, other)


def test_what_turns_otherwise_keeps_its_own() -> None:
    def halved(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return turn_plainly(query, key, cos / 2, sin)

    assert not quick_rotary._is_rotary(halved)
    assert not quick_rotary._is_rotary(modeling_gptj.apply_rotary_pos_emb)


def test_a_model_is_lent_it_for_a_while(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, ids = modeling_llama.apply_rotary_pos_emb, torch.arange(3, 15)[None]
    calls: list[torch.Size] = []

    def counted(*given: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(given[0].shape)
        return turn_plainly(*given)

    monkeypatch.setattr(quick_rotary, "turn", counted)
    quick = QuickRotary(tiny_model)
    with torch.no_grad():
        wanted = tiny_model(ids).logits
        with quick():
            assert torch.equal(tiny_model(ids).logits, wanted)
            assert not calls, "a CPU has no kernel"
            monkeypatch.setattr(quick_rotary, "suits", lambda *_: True)
            assert torch.equal(tiny_model(ids).logits, wanted)
            assert len(calls) == tiny_model.config.num_hidden_layers
        with pytest.raises(ZeroDivisionError), quick():
            raise ZeroDivisionError
    assert modeling_llama.apply_rotary_pos_emb is own


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_kernel_turns_to_the_last_digit() -> None:
    with torch.no_grad():
        assert quick_rotary._turns(torch.device("cuda", 0))
        given = [x.cuda() for x in states()]
        assert quick_rotary.suits(*given)
        assert not quick_rotary.suits(*(x.bfloat16() for x in given))
