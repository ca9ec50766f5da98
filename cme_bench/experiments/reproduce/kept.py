"""Adapters that are published with their weights, in half the room, so that anyone can evaluate them."""

from __future__ import annotations

from pathlib import Path

from cme_bench.adapters.files import WEIGHTS_FILE
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.util.files import write_bytes

TRAINING_FILES = ("adapter_config.json", "cme_training.json", "loss.csv")
"""What is carried of every training."""
FILES = (*TRAINING_FILES, WEIGHTS_FILE)
"""What is carried and published of a kept adapter."""
SEED = 0
"""The seed whose adapter is kept."""


def is_kept(recipe: Recipe, row: str, seed: int) -> bool:
    """Tell whether an adapter is published with its weights."""
    return row in recipe.kept and seed == SEED


def halve(folder: Path) -> None:
    """Round the float32 weights of an adapter to bfloat16, in their file.

    It is done before the adapter is evaluated: the published one then has the published scores.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save

    file = folder / WEIGHTS_FILE
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    rounded = {k: t.bfloat16() if t.dtype == torch.float32 else t for k, t in tensors.items()}
    write_bytes(file, save(rounded, metadata))
