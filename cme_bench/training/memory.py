"""Whether a training step fits in a GPU's memory without gradient checkpointing: measured, not looked up.

What autograd keeps for a token is counted in a forward pass over a few tokens of the very model, so it holds
for any architecture and adapter. It grows with the tokens of a batch; the rest is known by shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cme_bench.adapters.shared.recompute import TRANSPARENT
from cme_bench.training.loss import CHUNK_NUMBERS

PROBED = 64
"""Tokens of the larger of the two passes in which kept bytes are counted."""
SHARE = 0.85
"""Share of the free memory that a step may take; the rest is for fragments and what an estimate misses."""
_OPTIMIZER = 4
"""Gradient, two moments, and at most as much again for copies in the products' dtype, for each trained
number."""
_LOGITS = 3
"""Logits of a chunk, their softmax and its gradient."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether layers are computed a second time in the backward pass, and why, in words."""

    checkpointing: bool
    reason: str

    @property
    def line(self) -> str:
        """Say it in one line."""
        return f"gradient checkpointing: {'on' if self.checkpointing else 'off'} ({self.reason})"


def decide(
    model: nn.Module, *, asked: bool | None, tokens: int, autocast: bool, free: int | None, whole: bool
) -> Decision:
    """Return whether to use gradient checkpointing.

    Args:
        model: With its adapter, on its device.
        asked: What the user says; None to decide.
        tokens: Of the largest batch, padding included.
        autocast: Whether the forward pass runs in bfloat16.
        free: Bytes of the device's memory that are free; None on a CPU.
        whole: The model lies on the device, as it is; of one that is shared out there is no estimate.
    """
    if asked is not None:
        return Decision(asked, f"--{'' if asked else 'no-'}checkpointing")
    if free is None:
        return Decision(False, "on a CPU")
    if not whole:
        return Decision(True, "several GPUs; --no-checkpointing is faster where it fits")
    needed = step_bytes(model, tokens=tokens, autocast=autocast)
    said = f"a step of {tokens:,} tokens keeps about {gib(needed)} without it, {gib(free)} are free"
    return Decision(needed > SHARE * free, said)


def step_bytes(model: nn.Module, *, tokens: int, autocast: bool) -> int:
    """Return the bytes that a step needs beside the model: activations, gradients, moments, a chunk of
    logits."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return _OPTIMIZER * trained + tokens * kept_bytes(model, autocast=autocast) + _LOGITS * 4 * CHUNK_NUMBERS


def kept_bytes(model: nn.Module, *, autocast: bool) -> int:
    """Return the bytes that autograd keeps for each token of a forward pass, beyond what it keeps whatever
    their number, as weights in another dtype.

    Random states are as before.
    """
    device = next(model.parameters()).device
    decoder: Any = model.get_base_model().base_model  # type: ignore[operator]  # PEFT: the transformers model

    def forward(tokens: int) -> None:
        decoder(input_ids=torch.zeros((1, tokens), dtype=torch.int64, device=device), use_cache=False)

    return kept_by(forward, _tensors(model), device=device, autocast=autocast)


def kept_by(
    forward: Callable[[int], None], held: Iterable[Tensor], *, device: torch.device, autocast: bool
) -> int:
    """Return the bytes that autograd keeps in ``forward``, of so many tokens, for each of them.

    ``held``: tensors whose memory is no part of it, as weights. torch's random states are as before.
    """
    weights = {_memory(each) for each in held}
    few, many = (
        _kept(forward, tokens, weights, device=device, autocast=autocast) for tokens in (PROBED // 2, PROBED)
    )
    return -(-(many - few) // (PROBED - PROBED // 2))


def _kept(
    forward: Callable[[int], None], tokens: int, weights: set[int], *, device: torch.device, autocast: bool
) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        """Count a tensor, and hand it back."""
        memory = _memory(tensor)
        if memory not in weights and tensor.device == device:
            kept[memory] = tensor.untyped_storage().nbytes()
            held.append(tensor.detach())  # else its memory is given to the next, which then is not counted
        return tensor

    setattr(keep, TRANSPARENT, True)
    held: list[Tensor] = []
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(device.type, torch.bfloat16, enabled=autocast),
    ):
        forward(tokens)
    held.clear()  # the graph holds the hooks, and they hold this
    return sum(kept.values())


def _tensors(model: nn.Module) -> Iterable[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a GPU, with what torch holds of it unused; None for another device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def gib(count: float) -> str:
    """Return a number of bytes in GiB, for people."""
    return f"{count / 2**30:.1f} GiB"
