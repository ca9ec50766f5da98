"""TeamLoRA on vLLM against the base model and vLLM's own LoRA of the same size, on one GPU.

LLaMA-2-7B's shapes with random weights, bfloat16; TeamLoRA with four experts of rank 32 on the feed-forward
linears, vLLM's LoRA of rank 128 on the same. Prompts of 256 random tokens, 128 tokens out, no prefix cache:
``batch`` (256 requests at once), ``single`` (one request), ``prefill`` (256 prompts, one token out). Every
engine has the card to itself, in a process of its own, one after the other in one call; a warm-up of every
measurement is left out. Ratios are tokens per second over the base model's (medians of the rounds); above 1
is faster. ``--with hf`` adds our transformers engine with the same TeamLoRA on 256 requests.

``--profile`` writes the kernels of a decode step and of a prefill, by total time, beside the result.
Needs a CUDA GPU and the extra ``vllm``; vLLM's own LoRA needs Triton.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cme_bench import provenance
from cme_bench.vllm_plugin.file import write_adapter
from cme_bench.vllm_plugin.spec import WORKER, GatedSpec

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "bench"
SHAPES = {
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
}
ENGINES = ("base", "teamlora", "lora_native")
RANK, EXPERTS = 32, 4
TARGETS = ("gate_proj", "up_proj", "down_proj")
PROMPT, NEW, BATCH = 256, 128, 256


def write_model(folder: Path, shape: str) -> None:
    """config.json only: the weights are vLLM's random ones."""
    from transformers import LlamaConfig

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def module_sizes(shape: str) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of every adapted linear."""
    sizes = SHAPES[shape]
    hidden, wide = sizes["hidden_size"], sizes["intermediate_size"]
    return {
        f"model.layers.{layer}.mlp.{name}": (wide, hidden) if name == "down_proj" else (hidden, wide)
        for layer in range(sizes["num_hidden_layers"])
        for name in TARGETS
    }


def team_spec(shape: str) -> GatedSpec:
    modules = tuple(sorted(module_sizes(shape)))
    return GatedSpec("teamlora", RANK, EXPERTS, 2.0, False, True, None, modules)


def write_teamlora(file: Path, shape: str) -> None:
    import torch

    torch.manual_seed(0)
    spec = team_spec(shape)
    tensors = {
        f"{module}.{part}": torch.randn(size) * 0.02
        for module, (d_in, d_out) in module_sizes(shape).items()
        for part, size in spec.shapes(d_in, d_out).items()
    }
    write_adapter(file, spec, tensors)


def write_lora(folder: Path, shape: str) -> None:
    """A LoRA of the same size, as PEFT saves it."""
    import torch
    from peft import LoraConfig
    from safetensors.torch import save_file

    torch.manual_seed(0)
    rank = RANK * EXPERTS
    folder.mkdir()
    tensors = {}
    for module, (d_in, d_out) in module_sizes(shape).items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = (torch.randn(rank, d_in) * 0.02).bfloat16()
        tensors[f"base_model.model.{module}.lora_B.weight"] = (torch.randn(d_out, rank) * 0.02).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), task_type="CAUSAL_LM")
    config.save_pretrained(folder)


# ---- the worker: one engine


def start(engine: str, model: Path, files: Path, shape: str, prompts: int) -> tuple[Any, Any]:
    """``(LLM, LoRA request or None)``."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    arguments: dict[str, Any] = {
        "model": str(model),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "dtype": "bfloat16",
        "max_model_len": 2 * (PROMPT + NEW),
        "max_num_seqs": prompts,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": 0.92,
        "disable_log_stats": True,
        "seed": 0,
    }
    if engine == "teamlora":
        arguments["hf_overrides"] = {"quantization_config": team_spec(shape).to_block()}
        arguments["worker_extension_cls"] = WORKER
    if engine == "lora_native":
        arguments |= {"enable_lora": True, "max_lora_rank": RANK * EXPERTS, "max_loras": 1}
    llm = LLM(**arguments)
    if engine == "teamlora":
        llm.collective_rpc("load_gated_adapter", args=(str(files / "team.safetensors"),))
    request = LoRARequest("lora", 1, str(files / "lora")) if engine == "lora_native" else None
    return llm, request


def random_prompts(n: int, seed: int, vocabulary: int) -> list[dict[str, list[int]]]:
    import random

    source = random.Random(seed)
    return [{"prompt_token_ids": [source.randrange(3, vocabulary) for _ in range(PROMPT)]} for _ in range(n)]


def vllm_rates(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every round, by measurement."""
    from vllm import SamplingParams

    llm, request = start(args.worker, args.model, args.files, args.shape, args.requests)
    vocabulary = SHAPES[args.shape]["vocab_size"]

    def ask(n: int, new: int, seed: int) -> float:
        params = SamplingParams(max_tokens=new, temperature=0.0, ignore_eos=True, detokenize=False)
        prompts = random_prompts(n, seed, vocabulary)
        started = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False, lora_request=request)
        seconds = time.perf_counter() - started
        assert all(len(output.outputs[0].token_ids) == new for output in outputs)
        return seconds

    asked = {"single": (1, NEW), "prefill": (args.requests, 1), "batch": (args.requests, NEW)}
    found = rounds_of({name: lambda seed, a=a: ask(*a, seed) for name, a in asked.items()}, args.rounds)
    if args.profile:
        profile(llm, ask, args)
    return found


def rounds_of(measurements: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Every measurement once to warm up, then ``rounds`` times, in turn."""
    found: dict[str, list[float]] = {name: [] for name in measurements}
    for turn in range(rounds + 1):
        for name, run in measurements.items():
            seconds = run(1000 + turn)
            if turn:
                found[name].append(seconds)
    return found


def profile(llm: Any, ask: Callable[[int, int, int], float], args: argparse.Namespace) -> None:
    """Kernels by total time: one request's decoding, and a prefill."""
    for name, (n, new) in {"single": (1, 32), "prefill": (args.requests, 1)}.items():
        rows = llm.collective_rpc(_profiled_start)
        ask(n, new, 7)
        [rows] = llm.collective_rpc(_profiled_stop)
        file = args.profile / f"profile-{args.worker}-{name}.json"
        file.write_text(json.dumps(rows, indent=1) + "\n")


def _profiled_start(worker: Any) -> None:
    import torch

    worker.bench_profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    worker.bench_profiler.start()


def _profiled_stop(worker: Any) -> list[dict[str, Any]]:
    import torch

    torch.cuda.synchronize()
    worker.bench_profiler.stop()
    rows = [
        {"kernel": event.key[:120], "calls": event.count, "microseconds": round(event.device_time_total, 1)}
        for event in worker.bench_profiler.key_averages()
        if event.device_time_total
    ]
    return sorted(rows, key=lambda row: -row["microseconds"])[:30]


def hf_rates(args: argparse.Namespace) -> dict[str, list[float]]:
    """Our transformers engine with TeamLoRA on the same shapes and requests."""
    import torch
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from cme_bench.adapters import TeamLoraConfig
    from cme_bench.engines.base import GenerateRequest
    from cme_bench.engines.hf.engine import HFEngine

    class NoText:
        """A tokenizer for token ids only."""

        eos_token_id = None

        def decode(self, tokens: object, skip_special_tokens: bool = True) -> str:
            return ""

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model), dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None
    config = TeamLoraConfig(r=RANK, num_experts=EXPERTS, init="random", task_type="CAUSAL_LM")
    engine = HFEngine(get_peft_model(model, config), NoText())  # type: ignore[arg-type]
    vocabulary = SHAPES[args.shape]["vocab_size"]

    def ask(seed: int) -> float:
        prompts = random_prompts(args.requests, seed, vocabulary)
        requests = [GenerateRequest(tuple(p["prompt_token_ids"]), NEW) for p in prompts]
        started = time.perf_counter()
        answers = [response for _, response in engine.generate(requests)]
        seconds = time.perf_counter() - started
        assert sum(answer.n_tokens for answer in answers) == NEW * args.requests
        return seconds

    warm = [GenerateRequest(tuple(random_prompts(1, 1, vocabulary)[0]["prompt_token_ids"]), 8)]
    list(engine.generate(warm))
    return {"batch": [ask(1000)]}


# ---- the comparison


def run_worker(engine: str, args: argparse.Namespace, model: Path, files: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", engine, "--model", str(model), "--files", str(files)]
    command += ["--shape", args.shape, "--rounds", str(args.rounds), "--requests", str(args.requests)]
    if args.profile and engine != "hf":
        command += ["--profile", str(args.profile)]
    answer = files / f"{engine}.json"
    environment = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} | os.environ
    started = time.perf_counter()
    subprocess.run([*command, "--answer", str(answer)], check=True, env=environment, cwd=ROOT)
    found: dict[str, Any] = json.loads(answer.read_text())
    shown = {name: round(statistics.median(seconds), 3) for name, seconds in found["seconds"].items()}
    print(f"{engine:12s} {shown} s   ({time.perf_counter() - started:.0f} s in all)", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=tuple(SHAPES), default="llama-2-7b")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=BATCH, help="of batch and prefill")
    parser.add_argument("--with", dest="also", choices=("hf",), help="also measure our transformers engine")
    parser.add_argument("--profile", type=Path, help="folder for kernel times")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, 8 requests, two rounds")
    parser.add_argument("--out", type=Path, help="file to write")
    for name in ("--worker", "--model", "--files", "--answer"):
        parser.add_argument(name, type=str if name == "--worker" else Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        seconds = hf_rates(args) if args.worker == "hf" else vllm_rates(args)
        args.answer.write_text(json.dumps({"seconds": seconds}))
        return
    if args.quick:
        args.shape, args.requests, args.rounds = "tiny", 8, 2
    with tempfile.TemporaryDirectory() as scratch:
        files = Path(scratch)
        write_model(files / "model", args.shape)
        write_teamlora(files / "team.safetensors", args.shape)
        write_lora(files / "lora", args.shape)
        engines = [*ENGINES, *([args.also] if args.also else [])]
        found = {engine: run_worker(engine, args, files / "model", files) for engine in engines}
    report(found, args)


def report(found: dict[str, dict[str, Any]], args: argparse.Namespace) -> None:
    tokens = {"batch": args.requests * NEW, "single": NEW, "prefill": args.requests * PROMPT}
    rates = {
        engine: {
            name: tokens[name] / statistics.median(seconds) for name, seconds in result["seconds"].items()
        }
        for engine, result in found.items()
    }
    metrics = {
        f"{engine}_{name}_ratio": rates[engine][name] / rates["base"][name]
        for engine in ("teamlora", "lora_native")
        for name in tokens
    }
    if "hf" in rates:
        metrics["teamlora_vllm_over_hf"] = rates["teamlora"]["batch"] / rates["hf"]["batch"]
    import torch
    import vllm

    line = {
        "bench": "vllm_adapters",
        "hardware": provenance.hardware(cuda=torch.cuda.is_available()),
        "commit": provenance.commit() or "unknown",
        "metrics": {key: round(value, 4) for key, value in metrics.items()},
    }
    file = args.out or (None if args.quick else RESULTS / f"vllm_adapters-{line['hardware']}.json")
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = line | {
            "settings": {
                "shape": args.shape,
                "requests": args.requests,
                "prompt": PROMPT,
                "new": NEW,
                "rank": RANK,
                "experts": EXPERTS,
                "vllm": vllm.__version__,
                "torch": torch.__version__,
            },
            "tokens_per_second": rates,
            "results": found,
        }
        file.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
