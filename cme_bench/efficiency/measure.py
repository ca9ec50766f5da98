"""One part of a measurement, from options to a JSON object with every round in it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from cme_bench.adapters.describe import describe
from cme_bench.efficiency.hf_inference import hf_times
from cme_bench.efficiency.methods import Method, all_methods
from cme_bench.efficiency.options import EfficiencyOptions
from cme_bench.efficiency.shapes import base_config, linear_sizes, targets
from cme_bench.efficiency.train_step import TrainBench, train_metrics, train_rounds
from cme_bench.efficiency.vllm_inference import NATIVE, plugin_spec, vllm_times
from cme_bench.efficiency.workloads import Times, Workloads, inference_metrics
from cme_bench.engines.vllm.settings import require_vllm
from cme_bench.models.load import choose_device
from cme_bench.provenance import commit, hardware, machine, versions
from cme_bench.runs.responder import count_parameters

BASE = "base"
HUNGRIEST = "moelora32_k8"
"""The method that needs the most memory."""
CPU_BATCH = 2
RATIOS = {
    "teamlora32_over_lora128": ("teamlora32", "lora128"),
    "teamlora32_over_lora128_lean": ("teamlora32", "lora128_lean"),
    "teamlora16_over_lora64": ("teamlora16", "lora64"),
    "teamlora32_over_hydralora32": ("teamlora32", "hydralora32"),
    "teamlora32_over_moelora32": ("teamlora32", "moelora32"),
    "teamlora32_over_moelora32_fused": ("teamlora32", "moelora32_fused"),
    "teamlora32_over_lora32": ("teamlora32", "lora32"),
    "moelora32_over_lora32": ("moelora32", "lora32"),
}
PER_EXPERTS = ("moelora32", "moelora32_fused")
"""TeamLoRA-32 is compared with these at 2, 4 and 8 experts."""
BENCH = {"train": "train_step", "hf": "inference_hf", "vllm": "inference_vllm"}
"""Part to the name of its result."""


def ratios() -> dict[str, tuple[str, str]]:
    """Metric name, without its ending, to the two methods."""
    found = dict(RATIOS)
    for other in PER_EXPERTS:
        for k, suffix in ((2, "_k2"), (4, ""), (8, "_k8")):
            found[f"teamlora32_over_{other}_k{k}"] = (f"teamlora32{suffix}", f"{other}{suffix}")
    return found


def measure(options: EfficiencyOptions, note: Callable[[str], None]) -> dict[str, Any]:
    """The single part of ``options``: ``bench``, ``hardware``, ``commit``, ``metrics``, ``methods`` (form,
    parameters), ``setup`` and all rounds.

    UsageError for an unknown model, and if vLLM is asked for and not installed.
    """
    (part,) = options.parts
    config = base_config(options)
    known = all_methods(targets(config))
    chosen = {name: known[name] for name in options.methods}
    device = choose_device()
    run = {"train": _train, "hf": _hf, "vllm": _vllm}[part]
    found = run(options, config, chosen, device, note)
    return {
        "bench": BENCH[part],
        "hardware": hardware(cuda=device.type == "cuda"),
        "commit": commit() or "unknown",
        "model": options.model,
        "weights": "random",
        **found,
        "methods": {name: {"form": method.form} | _size(method, config) for name, method in chosen.items()},
        "machine": machine(),
        "versions": versions(),
    }


def _size(method: Method, config: PretrainedConfig) -> dict[str, float]:
    """Parameters that the method adds, and percent of the base's."""
    if isinstance(method.how, PeftConfig):
        about = describe(method.how, config)
        return {"parameters": about.trainable_parameters, "percent": round(about.percent_of_base or 0.0, 4)}
    total = 0
    with torch.device("meta"):
        for d_in, d_out in linear_sizes(config).values():
            linear = nn.Linear(d_in, d_out, bias=False).requires_grad_(False)
            total += sum(p.numel() for p in method.how(linear).parameters() if p.requires_grad)
    return {"parameters": total, "percent": round(100 * total / count_parameters(config), 4)}


Found = dict[str, Any]


def _train(
    options: EfficiencyOptions,
    config: PretrainedConfig,
    chosen: Mapping[str, Method],
    device: torch.device,
    note: Callable[[str], None],
) -> Found:
    bench = TrainBench(config, options.seq, device)
    batch = options.batch or (
        bench.filling_batch(all_methods(targets(config))[HUNGRIEST].how) if bench.cuda else CPU_BATCH
    )
    rounds = train_rounds(
        bench,
        {name: method.how for name, method in chosen.items()},
        bench.tokens(batch),
        rounds=options.rounds,
        warmup=options.warmup,
        steps=options.steps,
        note=note,
    )
    setup = {"layers": config.num_hidden_layers, "batch": batch, "seq": options.seq}
    setup |= {"steps": options.steps, "warmup": options.warmup, "dtype": str(bench.dtype)[6:]}
    return {"metrics": train_metrics(rounds, ratios()), "setup": setup, "paired": True, "rounds": rounds}


def _hf(
    options: EfficiencyOptions,
    config: PretrainedConfig,
    chosen: Mapping[str, Method],
    device: torch.device,
    note: Callable[[str], None],
) -> Found:
    workloads, dtype = Workloads.of(options), _dtype(options, device)
    times = hf_times(
        config,
        {BASE: None, **chosen},
        workloads,
        dtype=getattr(torch, dtype),
        device=device,
        rounds=options.rounds,
        note=note,
    )
    return _inference(times, workloads, dtype, config, paired=True)


def _vllm(
    options: EfficiencyOptions,
    config: PretrainedConfig,
    chosen: Mapping[str, Method],
    device: torch.device,
    note: Callable[[str], None],
) -> Found:
    version = require_vllm()
    workloads, dtype = Workloads.of(options), _dtype(options, device)
    able = [name for name in chosen if plugin_spec(name, ["x"]) is not None]
    native = [NATIVE] if device.type == "cuda" else []  # it needs Triton
    for name in chosen.keys() - set(able):
        note(f"vLLM has no form of {name} ({chosen[name].form})")
    times, paired = vllm_times(
        config, [BASE, *able, *native], workloads, dtype=dtype, rounds=options.rounds, note=note
    )
    return _inference(times, workloads, dtype, config, paired=paired) | {"vllm": version}


def _inference(
    times: Mapping[str, Times], workloads: Workloads, dtype: str, config: PretrainedConfig, *, paired: bool
) -> Found:
    compared = ratios() | {f"{name}_over_{BASE}": (name, BASE) for name in times if name != BASE}
    setup = {"requests": workloads.requests, "prompt": workloads.prompt, "new": workloads.new}
    return {
        "metrics": inference_metrics(times, workloads, compared),
        "setup": setup | {"dtype": dtype, "layers": config.num_hidden_layers},
        "paired": paired,
        "seconds": {n: {w: _median(s) for w, s in own.items()} for n, own in times.items()},
        "rounds": dict(times),
    }


def _median(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds), 6)


def _dtype(options: EfficiencyOptions, device: torch.device) -> str:
    return options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
