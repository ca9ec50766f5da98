"""MixLoRA on the feed-forward block of every family: a start that changes nothing, and shared prefixes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import get_peft_model

from cme_bench.adapters import MixLoraConfig
from cme_bench.engines import LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from tests.engines.conftest import MakeIds, Reference


def test_on_every_family(
    family_model: Any, toy_tokenizer: Any, make_ids: MakeIds, reference: Reference
) -> None:
    ids = torch.tensor([make_ids(12)])
    with torch.no_grad():
        plain = family_model(ids).logits
        model: Any = get_peft_model(copy.deepcopy(family_model), MixLoraConfig(r=2, num_experts=4)).eval()
        torch.testing.assert_close(model(ids).logits, plain, atol=1e-4, rtol=1e-4)
        for name, parameter in model.named_parameters():
            if "mixlora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
        assert (model(ids).logits - plain).abs().max() > 0.01
    context = make_ids(10)
    asked = [
        LoglikelihoodRequest(((context, (5, 6)), (context, (7,)))),
        LoglikelihoodRequest(((make_ids(3), (9,)),)),
    ]
    engine = HFEngine(model, toy_tokenizer)
    for index, response in engine.loglikelihood(asked):
        assert response.logprobs == pytest.approx(reference(model, asked[index]).logprobs, abs=1e-4)
    assert engine.alone_because is None
