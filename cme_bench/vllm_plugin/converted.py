"""Weights in another type than the model's are converted on the GPU.

vLLM copies each weight of a file into the model as it is. Where its type is another, as in float32 of a
bfloat16 checkpoint, torch converts it on the CPU first, into memory that is new each time: most of the time
in which a small model is loaded. Both convert alike.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

GPU = "cuda"
LARGEST = 1 << 28
"""Bytes of the largest weight that is on the GPU twice meanwhile."""
_MARK = "_cme_bench_converts"


def install() -> None:
    """Make this process's vLLM load so. Raises ImportError or AttributeError where its loader is another."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    given = DefaultModelLoader.get_all_weights
    if hasattr(given, _MARK):
        return

    @functools.wraps(given)
    def get_all_weights(self: Any, config: Any, model: Any, *args: Any) -> Iterator[tuple[str, Any]]:
        parameter = next(model.parameters(), None)
        for name, weight in given(self, config, model, *args):
            yield name, weight if parameter is None else placed(weight, parameter)

    setattr(get_all_weights, _MARK, True)
    DefaultModelLoader.get_all_weights = get_all_weights


def placed(weight: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """Return ``weight``, on the device of a model's ``parameter`` if it is to be converted to its type."""
    both = weight.is_floating_point() and parameter.is_floating_point()
    if not both or weight.dtype == parameter.dtype or parameter.device.type != GPU or weight.nbytes > LARGEST:
        return weight
    return weight.to(parameter.device)
