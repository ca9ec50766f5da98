"""TeamLoRA on vLLM against the base model and vLLM's own LoRA of the same size, on one GPU.

LLaMA-2-7B's shapes with random weights, bfloat16; TeamLoRA with four experts of rank 32 on the feed-forward
linears, vLLM's LoRA of rank 128 on the same; MoELoRA with four experts where it is asked for
(``--methods``). Prompts of 256 random tokens, 128 tokens out, no prefix cache:
``batch`` (256 requests at once), ``single`` (one request), ``prefill`` (256 prompts, one token out). Engines
run in processes of their own (``efficiency.vllm_inference``), one after the other where they do not
fit on the card together; a warm-up of every measurement is left out. Ratios are tokens per second over the
base model's (medians of the rounds); above 1 is faster. ``--with hf`` adds our transformers engine with the
same TeamLoRA.

``--profile`` writes into a folder the kernels of decode steps and of a prefill, by total time, and how long
each step's Python took and waited for the GPU.
``--tensor-parallel N`` spreads every engine over N GPUs. ``--slots N`` puts N adapters into every batch, each
request by one in turn, for the plugin and for vLLM's own LoRA.
Needs a CUDA GPU and the extra ``vllm``; vLLM's own LoRA needs Triton.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import measurements
import torch

from cme_bench.engines.vllm.settings import require_vllm
from cme_bench.experiments.efficiency.hf_inference import hf_times
from cme_bench.experiments.efficiency.methods import all_methods
from cme_bench.experiments.efficiency.shapes import preset, targets, with_layers
from cme_bench.experiments.efficiency.vllm_inference import NATIVE, vllm_times
from cme_bench.experiments.efficiency.workloads import Times, Workloads
from cme_bench.models.load import choose_device

TEAM = "teamlora32"
NAMES = {"base": "base", TEAM: "teamlora", "moelora32_fused": "moelora", NATIVE: "lora_native", "hf": "hf"}
"""Methods, and what the result calls them."""
RANK, EXPERTS = 32, 4
PROMPT, NEW, BATCH = 256, 128, 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shape",
        choices=("llama-2-7b", "llama-3-8b", "llama-2-70b", "smollm2-135m", "tiny"),
        default="llama-2-7b",
    )
    parser.add_argument("--layers", type=int, help="decoder layers, instead of the shape's")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=BATCH, help="of batch and prefill")
    parser.add_argument("--with", dest="also", choices=("hf",), help="also measure our transformers engine")
    parser.add_argument(
        "--methods",
        default="base,teamlora,lora_native",
        help="which of vLLM's (moelora too, all its experts in one product); base is needed",
    )
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs of an engine")
    parser.add_argument("--slots", type=int, default=0, help="adapters mixed in every batch; 0: one")
    parser.add_argument("--graph-tokens", type=int, help="most tokens of a step with CUDA graphs")
    parser.add_argument("--own-cores", action="store_true", help="no two processes share a CPU core")
    parser.add_argument("--profile", type=Path, help="folder for kernel times")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, 8 requests, two rounds")
    parser.add_argument("--out", type=Path, help="file to write")
    args = parser.parse_args()
    if args.quick:
        args.shape, args.requests, args.rounds = "tiny", 8, 2
    config, workloads = with_layers(preset(args.shape), args.layers), Workloads(args.requests, PROMPT, NEW)
    names = {shown: name for name, shown in NAMES.items()}
    if args.profile:
        args.profile.mkdir(parents=True, exist_ok=True)
    found, paired = vllm_times(
        config,
        [names[shown] for shown in args.methods.split(",")],
        workloads,
        dtype="bfloat16",
        rounds=args.rounds,
        note=lambda line: print(line, flush=True),
        profile=args.profile,
        tensor_parallel=args.tensor_parallel,
        slots=args.slots,
        graph_tokens=args.graph_tokens,
        own_cores=args.own_cores,
    )
    if args.also:
        found |= {"hf": _hf(args, workloads)}
    report({NAMES[name]: times for name, times in found.items()}, workloads, args, paired=paired)


def _hf(args: argparse.Namespace, workloads: Workloads) -> Times:
    config, device = with_layers(preset(args.shape), args.layers), choose_device()
    team = {TEAM: all_methods(targets(config))[TEAM]}
    times = hf_times(
        config,
        team,
        workloads,
        dtype=torch.bfloat16,
        device=device,
        rounds=1,
        note=lambda line: print(line, flush=True),
    )
    return times[TEAM]


def report(found: dict[str, Times], workloads: Workloads, args: argparse.Namespace, *, paired: bool) -> None:
    tokens = {
        "batch": workloads.requests * NEW,
        "single": NEW,
        "prefill": workloads.requests * PROMPT,
    }
    rates = {
        engine: {name: tokens[name] / statistics.median(seconds) for name, seconds in times.items()}
        for engine, times in found.items()
    }
    metrics = {
        f"{engine}_{name}_ratio": rates[engine][name] / rates["base"][name]
        for engine in rates.keys() - {"base", "hf"}
        for name in tokens
    }
    if "lora_native" in rates and "teamlora" in rates:
        metrics |= {
            f"teamlora_{name}_over_lora_native": rates["teamlora"][name] / rates["lora_native"][name]
            for name in tokens
        }
    if "hf" in rates:
        metrics["teamlora_vllm_over_hf"] = rates["teamlora"]["batch"] / rates["hf"]["batch"]
    rounded = {key: round(value, 4) for key, value in metrics.items()}
    name = f"vllm_adapters_{args.slots}_slots" if args.slots else "vllm_adapters"
    line = measurements.line(name, rounded, cuda=torch.cuda.is_available())
    if args.out or not args.quick:
        settings = {
            "shape": args.shape,
            "requests": args.requests,
            "prompt": PROMPT,
            "new": NEW,
            "rank": RANK,
            "experts": EXPERTS,
            "tensor_parallel": args.tensor_parallel,
            "slots": args.slots,
            "graph_tokens": args.graph_tokens,
            "own_cores": args.own_cores,
            "paired": paired,
            "vllm": require_vllm(),
            "torch": torch.__version__,
        }
        results = {engine: {"seconds": times} for engine, times in found.items()}
        measurements.save(line, file=args.out, settings=settings, tokens_per_second=rates, results=results)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
