"""Beginning a sweep before its rows are drawn: its base is loaded, and its kernels are built."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from cme_bench.models.load import choose_device, choose_dtype
from cme_bench.runs.progress import Listener
from cme_bench.training import record
from cme_bench.training.options import TrainOptions
from cme_bench.training.shared import Shared, settings_key
from cme_bench.training.sweep.rehearsal import build_kernels
from cme_bench.training.train import frozen_base, possible
from cme_bench.training.warm import warm_up
from cme_bench.util.building import build_early
from cme_bench.util.early import Early
from cme_bench.util.errors import UsageError
from cme_bench.util.phases import phase


def begin(
    options: Sequence[TrainOptions], listener: Listener, shared: Shared
) -> Early[PreTrainedModel] | None:
    """Check the settings of all adapters, then begin to load their base; None where it is not sure that one
    of them is to be trained.

    UsageError for settings that are impossible.
    """
    for one in options:
        refuse(one, options[0])
    found = [possible(one, listener, shared) for one in options]
    new = [number for number, one in enumerate(options) if not (one.out / record.FILE).exists()]
    if not new:
        return None
    first, asked, device = found[new[0]], options[new[0]], choose_device()
    dtype = choose_dtype(asked.dtype, first.config, device)
    configs = {settings_key(found[number].adapter): found[number].adapter for number in new}

    @phase("weights")
    def loaded() -> PreTrainedModel:
        """Load the base; only then build kernels: while a model is loaded, torch's usual dtype is its own."""
        model = frozen_base(first.base, dtype, device, asked)
        build_kernels(
            list(configs.values()),
            device,
            bf16=dtype == torch.bfloat16,
            beside=lambda: warm_up(model, first.adapter, dtype),
        )
        return model

    return build_early(loaded)


def refuse(one: TrainOptions, first: TrainOptions) -> None:
    """Raise UsageError for what a sweep, or a sweep with the ``first``, cannot do."""
    for name in ("device_map", "checkpointing"):
        if getattr(one, name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{one.out.name}: {flag} is for a training of its own (cme-bench train)")
    for name in ("dtype", "quantize", "liger"):
        if getattr(one, name) != getattr(first, name):
            raise UsageError(f"{one.out.name}: --{name} is the base's, which all adapters share")
