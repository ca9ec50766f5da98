"""Greedy decoding, one prompt at a time by ``model.generate``, and all of an engine's answers in order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from cme_bench.engines import GenerateRequest, GenerateResponse
from cme_bench.engines.hf import HFEngine


def generate_all(engine: HFEngine, requests: Sequence[GenerateRequest]) -> list[GenerateResponse]:
    found = list(engine.generate(requests))
    assert sorted(index for index, _ in found) == list(range(len(requests)))
    return [response for _, response in sorted(found, key=lambda pair: pair[0])]


def tokens_alone(model: Any, request: GenerateRequest) -> list[int]:
    """New tokens by ``model.generate``, the end token included."""
    prompt = torch.tensor([request.prompt])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
    )
    return list(output[0, prompt.shape[1] :].tolist())


def ends_often(model: Any, request: GenerateRequest) -> tuple[Any, int]:
    """A copy of ``model`` whose end token is the fourth that it generates for ``request``."""
    model = copy.deepcopy(model)
    end = tokens_alone(model, request)[3]
    model.generation_config.eos_token_id = [end, 271]
    return model, end
