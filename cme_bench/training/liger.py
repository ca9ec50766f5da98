"""Liger's kernels for gated activations, positions and norms (arXiv 2410.10989), optional.

Its loss is left out: :mod:`cme_bench.training.loss` takes the targets alone, which is less work. So are its
norms where torch's equal the model's: Liger's backward pass makes the gradient of a weight that is frozen.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedModel

from cme_bench.training.norms import fuse_norms
from cme_bench.util.errors import UsageError


def check_liger(device: torch.device, config: Any) -> None:
    """Raise UsageError, in one sentence, where ``--liger`` cannot be honoured."""
    if device.type != "cuda":
        raise UsageError("--liger: its kernels run on a GPU, and there is none; leave it out")
    if find_spec("liger_kernel") is None:
        raise UsageError("--liger needs the package liger-kernel: pip install 'cme-bench[liger]'")
    if not _known(config):
        raise UsageError(f"--liger: Liger has no kernels for {config.model_type}; leave it out")


def fuse_base(
    model: PreTrainedModel, dtype: torch.dtype, device: torch.device, *, liger: bool | None
) -> None:
    """Let a frozen model compute by fewer kernels, equal to its own up to rounding.

    ``liger``: whether Liger's are among them; None for in bfloat16 on a GPU, where they are installed and
    know the model.
    """
    narrow = dtype == torch.bfloat16 and device.type == "cuda"
    if liger is None:
        liger = narrow and find_spec("liger_kernel") is not None and _known(model.config)
    fused = fuse_norms(model) if narrow else 0
    if liger:
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance as apply

        module = sys.modules[type(model).__module__]
        _REPLACED.append((module, dict(vars(module))))
        apply(model=model, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=not fused)


_REPLACED: list[tuple[ModuleType, dict[str, Any]]] = []
"""transformers' modules in which Liger replaced classes and functions, and what they held before."""


@contextmanager
def models_restored() -> Iterator[None]:
    """Give transformers' modules back, after the block, what Liger replaced in them: for models of later."""
    try:
        yield
    finally:
        while _REPLACED:
            module, before = _REPLACED.pop()
            vars(module).update(before)


def _known(config: Any) -> bool:
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    return config.model_type in KNOWN
