"""Whether an adapter method of somebody else keeps its word: a token's update depends on that token alone.

Sharing prefixes, batches and a cache rests on it. Every adapted linear is tried with random rows: tokens
beside others, and the same tokens by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cme_bench.engines.hf.trials import MODEL_ERRORS
from cme_bench.util.devices import computing_device
from cme_bench.util.errors import first_line

_TOKENS = ((0, 0), (0, 2), (1, 1))
"""(row, place) of the tokens that are tried by themselves."""
_OF_UPDATE = {4: 1e-3, 2: 2e-2}
_OF_OUTPUT = {4: 1e-5, 2: 2e-2}
"""By bytes of a number: the most that an update may differ, as a share of updates and of outputs."""


@torch.no_grad()
def why_not_per_token(model: nn.Module, dtype: torch.dtype) -> str | None:
    """Return why tokens cannot share a forward, from a trial of every adapted linear; None if they can."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    from cme_bench.adapters.shared.linears import features, is_linear

    source = torch.Generator().manual_seed(0)
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        base: Any = layer.get_base_layer()
        if not is_linear(base) and not hasattr(base, "in_features"):
            continue
        x = torch.randn(2, 3, features(base)[0], generator=source).to(computing_device(base), dtype)
        try:
            if _differs(layer, base, x):
                return f"in a trial, {name} gave a token another update beside other tokens than by itself"
        except MODEL_ERRORS as err:
            return f"a trial of {name} failed ({type(err).__name__}: {first_line(err)})"
    return None


def _differs(layer: nn.Module, base: nn.Module, x: Tensor) -> bool:
    """Whether updates of tokens of ``x``, (2, 3, d_in), differ by more than rounding."""
    together, output = _update(layer, base, x)
    size = 4 if output.element_size() > 2 else 2
    allowed = _OF_UPDATE[size] * together.abs().max() + _OF_OUTPUT[size] * output.float().abs().max()
    for row, place in _TOKENS:
        alone, _ = _update(layer, base, x[row : row + 1, place : place + 1])
        if not (alone[0, 0] - together[row, place]).abs().max() <= allowed:  # NaN differs
            return True
    return False


def _update(layer: nn.Module, base: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    output: Tensor = base(x)
    return layer(x).float() - output.float(), output
