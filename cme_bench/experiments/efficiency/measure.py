"""One part of a measurement, from options to a JSON object with every round in it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import PretrainedConfig

from cme_bench.adapters.describe import describe
from cme_bench.engines.vllm.settings import require_vllm
from cme_bench.experiments.efficiency.hf_inference import hf_times
from cme_bench.experiments.efficiency.methods import Measurable, all_methods
from cme_bench.experiments.efficiency.options import EfficiencyOptions
from cme_bench.experiments.efficiency.shapes import base_config, linear_sizes, targets
from cme_bench.experiments.efficiency.train_step import TrainBench, train_metrics, train_rounds
from cme_bench.experiments.efficiency.vllm_inference import NATIVE, plugin_spec, vllm_times
from cme_bench.experiments.efficiency.workloads import Times, Workloads, inference_metrics
from cme_bench.models.load import choose_device, count_parameters
from cme_bench.util.provenance import commit, hardware, machine, versions

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
    """Return the two methods of each ratio, by metric name without its ending."""
    pairs = dict(RATIOS)
    for other in PER_EXPERTS:
        for k, suffix in ((2, "_k2"), (4, ""), (8, "_k8")):
            pairs[f"teamlora32_over_{other}_k{k}"] = (f"teamlora32{suffix}", f"{other}{suffix}")
    return pairs


def measure(options: EfficiencyOptions, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure the single part of ``options``: ``bench``, ``hardware``, ``commit``, ``metrics``, ``methods``
    (form, parameters), ``setup`` and all rounds.

    UsageError for an unknown model, and if vLLM is asked for and not installed.
    """
    (part,) = options.parts
    config = base_config(options)
    known = all_methods(targets(config))
    chosen = {name: known[name] for name in options.methods}
    device = choose_device()
    run = {"train": _train, "hf": _hf, "vllm": _vllm}[part]
    found = run(_Asked(options, config, chosen, device, note))
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


def _size(method: Measurable, config: PretrainedConfig) -> dict[str, float]:
    """Return the parameters that the method adds, and their percentage of the base's."""
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """The input of a part's measurement; ``methods`` are those of ``options``."""

    options: EfficiencyOptions
    config: PretrainedConfig
    methods: Mapping[str, Measurable]
    device: torch.device
    note: Callable[[str], None]

    @property
    def dtype(self) -> str:
        return self.options.dtype or ("bfloat16" if self.device.type == "cuda" else "float32")


def _train(asked: _Asked) -> Found:
    options, config = asked.options, asked.config
    bench = TrainBench(config, options.seq, asked.device)
    batch = options.batch or (
        bench.filling_batch(all_methods(targets(config))[HUNGRIEST].how) if bench.cuda else CPU_BATCH
    )
    rounds = train_rounds(
        bench,
        {name: method.how for name, method in asked.methods.items()},
        bench.tokens(batch),
        rounds=options.rounds,
        warmup=options.warmup,
        steps=options.steps,
        note=asked.note,
    )
    setup = {"layers": config.num_hidden_layers, "batch": batch, "seq": options.seq}
    setup |= {"steps": options.steps, "warmup": options.warmup, "dtype": str(bench.dtype)[6:]}
    return {"metrics": train_metrics(rounds, ratios()), "setup": setup, "paired": True, "rounds": rounds}


def _hf(asked: _Asked) -> Found:
    workloads = Workloads.of(asked.options)
    times = hf_times(
        asked.config,
        {BASE: None, **asked.methods},
        workloads,
        dtype=getattr(torch, asked.dtype),
        device=asked.device,
        rounds=asked.options.rounds,
        note=asked.note,
    )
    return _inference(asked, times, workloads, paired=True)


def _vllm(asked: _Asked) -> Found:
    version = require_vllm()
    workloads = Workloads.of(asked.options)
    able = [name for name in asked.methods if plugin_spec(name, ["x"]) is not None]
    native = [NATIVE] if asked.device.type == "cuda" else []  # it needs Triton
    for name in asked.methods.keys() - set(able):
        asked.note(f"vLLM has no form of {name} ({asked.methods[name].form})")
    times, paired = vllm_times(
        asked.config,
        [BASE, *able, *native],
        workloads,
        dtype=asked.dtype,
        rounds=asked.options.rounds,
        note=asked.note,
    )
    return _inference(asked, times, workloads, paired=paired) | {"vllm": version}


def _inference(asked: _Asked, times: Mapping[str, Times], workloads: Workloads, *, paired: bool) -> Found:
    compared = ratios() | {f"{name}_over_{BASE}": (name, BASE) for name in times if name != BASE}
    setup = {"requests": workloads.requests, "prompt": workloads.prompt, "new": workloads.new}
    return {
        "metrics": inference_metrics(times, workloads, compared),
        "setup": setup | {"dtype": asked.dtype, "layers": asked.config.num_hidden_layers},
        "paired": paired,
        "seconds": {n: {w: _median(s) for w, s in own.items()} for n, own in times.items()},
        "rounds": dict(times),
    }


def _median(seconds: Sequence[float]) -> float:
    return round(statistics.median(seconds), 6)
