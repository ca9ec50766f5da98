"""How much longer the transformers engine scores with a TeamLoRA than without, in turn, on one base.

Random weights of LLaMA-2-7B's shapes (eight layers, as every layer is alike) and of SmolLM2's, in bfloat16 on
CUDA; four experts of rank 32 on the feed-forward. Rows share nothing, so that all of it is prefill.
``teamlora_prefill_over_base`` is the ratio of the medians, ``small_`` before it that of SmolLM2's shapes.
On a CPU both shapes are small, and the numbers say only that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import measurements
from transformers import PretrainedConfig

from cme_bench.experiments.efficiency.shapes import preset, with_layers

EXPERTS, RANK = 4, 32
SHAPES: dict[str, tuple[str, int | None]] = {"": ("llama-2-7b", 8), "small_": ("smollm2-135m", None)}
"""Presets, and layers of them."""


def random_model(config: PretrainedConfig, device: str, dtype: Any) -> Any:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype)
    return model.eval()


def write_base(folder: Path, config: PretrainedConfig, device: str, dtype: Any, tokenizer_of: str) -> Any:
    """Write a base of these shapes with the tokenizer of ``tokenizer_of``, and return its model."""
    from transformers import AutoTokenizer

    from cme_bench.models.checkpoint import resolve_model

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(tokenizer_of).path)
    config.vocab_size = -(-len(tokenizer) // 64) * 64
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = random_model(config, device, dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def with_teamlora(model: Any, rank: int) -> Any:
    import torch
    from peft import get_peft_model

    from cme_bench.adapters import TeamLoraConfig

    adapted = get_peft_model(model, TeamLoraConfig(r=rank, num_experts=EXPERTS, task_type="CAUSAL_LM"))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    return adapted.requires_grad_(False).eval()  # as an adapter that was loaded


def rows(count: int, length: int, vocabulary: int) -> list[Any]:
    from cme_bench.engines.base import LoglikelihoodRequest

    drawn = random.Random(0)
    texts = [tuple(drawn.choices(range(vocabulary), k=length)) for _ in range(count)]
    return [LoglikelihoodRequest(((text, (1,)),)) for text in texts]


def seconds(engine: Any, asked: list[Any]) -> float:
    started = time.perf_counter()
    assert sum(1 for _ in engine.loglikelihood(asked)) == len(asked)
    return time.perf_counter() - started


def ratio(config: PretrainedConfig, args: argparse.Namespace, device: str, dtype: Any) -> dict[str, Any]:
    """Score with and without the adapter in turn, by one engine each, once before the clock runs."""
    import torch

    from cme_bench.engines.hf import HFEngine

    base = random_model(config, device, dtype)
    models = {"base": base, "teamlora": with_teamlora(random_model(config, device, dtype), args.rank)}
    asked = rows(args.rows, args.length, config.vocab_size)
    tokenizer: Any = _NoTokenizer()
    taken: dict[str, list[float]] = {name: [] for name in models}
    engines = {name: HFEngine(model, tokenizer) for name, model in models.items()}  # which try once
    for number in range(args.rounds + 1):
        for name, found in taken.items():
            found.append(seconds(engines[name], asked))
        if number == 0:
            for found in taken.values():
                found.clear()
    medians = {name: statistics.median(found) for name, found in taken.items()}
    del base, models, engines
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return {"ratio": medians["teamlora"] / medians["base"], "seconds": taken}


class _NoTokenizer:
    """Scoring needs none."""

    eos_token_id = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=RANK)
    parser.add_argument("--quick", action="store_true", help="tiny shapes, one round, no file")
    args = parser.parse_args()
    import torch

    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    shapes = SHAPES
    if args.quick or not cuda:
        args.rows, args.length = 8, 64
        shapes = dict.fromkeys(SHAPES, ("tiny", None))
    args.rounds = 1 if args.quick else args.rounds
    found = {
        name: ratio(with_layers(preset(shape), layers), args, device, dtype)
        for name, (shape, layers) in shapes.items()
    }
    metrics = {f"{name}teamlora_prefill_over_base": round(one["ratio"], 3) for name, one in found.items()}
    line = measurements.line("hf_adapters", metrics, cuda=cuda)
    if not args.quick:
        measured = {name or "large": one["seconds"] for name, one in found.items()}
        measurements.save(line, rounds=measured, settings=vars(args))
    print(json.dumps(line))


if __name__ == "__main__":
    main()
