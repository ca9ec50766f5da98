"""The ways in which a training runs: chosen by options, device and environment before a model is loaded."""

from __future__ import annotations

import os

import torch

from cme_bench.training.options import BatchOrder, TrainOptions
from cme_bench.training.ranks import Ranks
from cme_bench.util.errors import UsageError

MANNER = "CME_BENCH_TRAIN"
"""Environment variable for those who measure: words of MANNERS, joined by "+"; "trainer" alone is
transformers' Trainer."""
MANNERS = {
    "trainer": "transformers' Trainer",
    "padded": "rows of one example",
    "packs": "rows of a fixed number of tokens",
    "varlen": "attention by where examples begin",
    "compile": "each decoder layer compiled",
    "graph": "forward and backward pass replayed as a CUDA graph",
}
_LAUNCHED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Ways of accelerate's to share out a model, as its launcher names them."""
ON_GPU = frozenset({"packs", "varlen", "graph"})
"""What is done on a GPU unless the variable says otherwise; on a CPU nothing of it."""


def manner(device: torch.device) -> frozenset[str]:
    """Return the words of MANNERS that hold for a device. UsageError for an unknown one."""
    said = os.environ.get(MANNER, "").strip()
    if not said:
        return ON_GPU if device.type == "cuda" else frozenset()
    words = frozenset(said.split("+"))
    if unknown := words - MANNERS.keys():
        raise UsageError(
            f"{MANNER}={said}: unknown {', '.join(sorted(unknown))} (known: {', '.join(MANNERS)})"
        )
    if "trainer" in words:
        raise UsageError(f"{MANNER}={said}: trainer stands alone")
    if "graph" in words and device.type != "cuda":
        raise UsageError(f"{MANNER}={said}: graph is for a CUDA GPU")
    return words


def needs_trainer(options: TrainOptions) -> str | None:
    """Return why a training needs transformers' Trainer, as far as options say; None if it needs it not."""
    for name in _LAUNCHED:
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true"):
            return f"accelerate's {name.replace('_', ' ')}"
    if Ranks.here().count > 1 and torch.cuda.is_available() and _means_cpu():
        return "accelerate's CPUs"
    if options.device_map is not None:
        return "--device-map"
    return "as asked" if os.environ.get(MANNER) == "trainer" else None


def _means_cpu() -> bool:
    """Return whether accelerate was told to leave GPUs alone."""
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")


def packs_are_free(options: TrainOptions) -> bool:
    """Return whether options leave it to the device whether examples are packed."""
    return options.pack is None and options.pack_tokens is None


def batch_order(options: TrainOptions, device: torch.device, begun: str | None = None) -> BatchOrder:
    """Return how examples are put into batches: as the options say; even in packs on a GPU.

    ``begun``: of a training in the same folder. One that began at random, as all did once, goes on so; one
    of several processes goes on in the order that it has, which once was by length.
    """
    if options.batches != "auto":
        return options.batches
    if device.type != "cuda" or options.pack is not None or needs_trainer(options) is not None:
        return "similar"
    packs = "packs" in manner(device) if packs_are_free(options) else options.pack_tokens
    by_length = Ranks.here().count > 1 and begun not in (None, "random", "even")
    mixed: BatchOrder = "random" if begun == "random" else "even"
    return mixed if packs and not by_length else "similar"
