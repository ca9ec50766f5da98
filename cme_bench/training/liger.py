"""Liger's kernels for norms, gated activations and positions (arXiv 2410.10989), optional.

Its loss is left out: :mod:`cme_bench.training.loss` takes the targets alone, which is less work.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from transformers import PreTrainedModel

from cme_bench.util.errors import UsageError


def check_liger(device: torch.device, config: Any) -> None:
    """Raise UsageError, in one sentence, where ``--liger`` cannot be honoured."""
    if device.type != "cuda":
        raise UsageError("--liger: its kernels run on a GPU, and there is none; leave it out")
    if find_spec("liger_kernel") is None:
        raise UsageError("--liger needs the package liger-kernel: pip install 'cme-bench[liger]'")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN

    if config.model_type not in KNOWN:
        raise UsageError(f"--liger: Liger has no kernels for {config.model_type}; leave it out")


def use_liger(model: PreTrainedModel) -> None:
    """Let a model compute norms, gated activations and positions by Liger's kernels."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance as apply

    apply(model=model, cross_entropy=False, fused_linear_cross_entropy=False)
