"""Inference by our transformers engine: every method in turn on one base model with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from cme_bench.engines.base import GenerateRequest
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.experiments.efficiency.methods import Measurable, attached
from cme_bench.experiments.efficiency.shapes import targets
from cme_bench.experiments.efficiency.workloads import Ask, Times, Workloads, in_turn, timed_round

WARM_TOKENS = 4


class _NoText:
    """A tokenizer for token ids only."""

    eos_token_id = None

    def decode(self, tokens: object, skip_special_tokens: bool = True) -> str:
        return ""


def hf_times(
    config: PretrainedConfig,
    methods: Mapping[str, Measurable | None],
    workloads: Workloads,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    note: Callable[[str], None],
) -> dict[str, Times]:
    """Return seconds by method and workload; None is the base model. In each round every method is put on the
    same base and warmed up before it is timed; every second round goes backwards."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None
    times: dict[str, Times] = {name: {w: [] for w in workloads.asked} for name in methods}
    for number in range(rounds):
        for name in in_turn(methods, number):
            method = methods[name]
            on = nullcontext() if method is None else attached(model, method.how, targets(config))
            with on:
                ask = _ask(model, config, workloads)
                ask(1, WARM_TOKENS, -1)
                for workload, seconds in timed_round(ask, workloads, number).items():
                    times[name][workload].append(seconds)
        note(f"transformers, round {number + 1} of {rounds}")
    return times


def _ask(model: Any, config: PretrainedConfig, workloads: Workloads) -> Ask:
    engine = HFEngine(model, _NoText())

    def ask(n: int, new: int, seed: int) -> float:
        requests = [GenerateRequest(tuple(ids), new) for ids in workloads.prompts(n, seed, config.vocab_size)]
        started = time.perf_counter()
        made = sum(response.n_tokens for _, response in engine.generate(requests))
        seconds = time.perf_counter() - started
        assert made == n * new, f"{made} tokens instead of {n * new}"
        return seconds

    return ask
