"""Checkpoints of a training: what transformers' Trainer saves, and the trained numbers exactly as they were.

PEFT's adapter files are made for use, not for going on: AdaLoRA's lose pruned ranks and importance scores.
So every checkpoint also has ``trainable.pt``: all trained parameters, and AdaLoRA's allocation state. A
checkpoint counts once ``trainer_state.json``, which is written last, is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import torch
from peft import PeftModel

TRAINABLE = "trainable.pt"
_ALLOCATOR = ("ipt", "exp_avg_ipt", "exp_avg_unc")


def save_trainable(model: PeftModel, folder: Path) -> None:
    """Write every trained parameter, bit for bit, and AdaLoRA's state if there is one."""
    state: dict[str, Any] = {"parameters": {n: p.detach().cpu() for n, p in _trained(model).items()}}
    state |= allocation(model)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / TRAINABLE)


@torch.no_grad()
def load_trainable(model: PeftModel, folder: Path) -> None:
    """Put what ``save_trainable`` wrote back into a model of the same shape."""
    device = next(model.parameters()).device
    state = torch.load(folder / TRAINABLE, map_location=device, weights_only=True)
    parameters = _trained(model)
    for name, value in state["parameters"].items():
        parameters[name].copy_(value)
    restore_allocation(model, state)


def allocation(model: PeftModel) -> dict[str, Any]:
    """Return AdaLoRA's allocation state; nothing for every other method."""
    if (allocator := rank_allocator(model)) is None:
        return {}
    parts = {part: getattr(allocator, part) for part in _ALLOCATOR}
    return {"allocator": parts, "rank_pattern": allocator.peft_config.rank_pattern}


def restore_allocation(model: PeftModel, state: Mapping[str, Any]) -> None:
    """Put what :func:`allocation` returned back."""
    if (allocator := rank_allocator(model)) is not None:
        for part, value in state["allocator"].items():
            setattr(allocator, part, value)
        allocator.peft_config.rank_pattern = state["rank_pattern"]


def rank_allocator(model: PeftModel) -> Any:
    """Return AdaLoRA's rank allocator; None for every other method."""
    return getattr(model.base_model, "rankallocator", None)


def _trained(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def last_checkpoint(folder: Path, *, processes: int = 1) -> tuple[Path | None, int]:
    """Return the newest whole checkpoint in ``folder`` and its step; (None, 0) if there is none."""
    whole: dict[int, Path] = {}
    for checkpoint in folder.glob("checkpoint-*"):
        step = checkpoint.name.removeprefix("checkpoint-")
        if step.isdigit() and _is_whole(checkpoint, processes):
            whole[int(step)] = checkpoint
    newest = max(whole, default=0)
    return whole.get(newest), newest


def _is_whole(checkpoint: Path, processes: int) -> bool:
    random = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
    if not all(
        (checkpoint / name).is_file() for name in (TRAINABLE, "optimizer.pt", "scheduler.pt", *random)
    ):
        return False
    try:
        orjson.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False
    return True
