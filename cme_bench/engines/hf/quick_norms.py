"""RMS norms of float32 states by torch's one kernel, where a model's own code takes six.

No family is named: a norm is known by what it computes from some numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cme_bench.engines.hf.kept_weights import Kept, state_of
from cme_bench.util.exact_logits import NARROW, all_replaced

_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_TYPES = (torch.float32, *NARROW)
_TOLERANCE = 4e-6


class QuickNorms:
    """The RMS norms of ``model``, and what they compute by within a context, of states that are float32.

    Weights may have 16 bits.
    """

    def __init__(self, model: nn.Module) -> None:
        found = ((norm, _epsilon(norm)) for norm in model.modules())
        self._norms = [
            (norm, functools.partial(_forward, norm, epsilon, norm.forward, Kept(_weight(norm), _wide)))
            for norm, epsilon in found
            if epsilon is not None and _is_rms_norm(norm, epsilon)
        ]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute so within the context; the model is as it was afterwards."""
        with all_replaced(self._norms):
            yield


def _epsilon(norm: nn.Module) -> float | None:
    """Return the epsilon of what may be an RMS norm; None for other modules."""
    parts = [*norm.named_parameters(), *norm.named_buffers(), *norm.named_children()]
    if "RMSNorm" not in type(norm).__name__ or [name for name, _ in parts] != ["weight"]:
        return None
    weight = norm.weight
    plain = isinstance(weight, Tensor) and weight.dim() == 1 and weight.dtype in _TYPES
    found = (getattr(norm, name, None) for name in _EPSILONS)
    epsilon = next((value for value in found if isinstance(value, float)), None)
    return epsilon if plain and "forward" not in norm.__dict__ else None


_tried: WeakKeyDictionary[nn.Module, tuple[float, tuple[int, int, int], bool]] = WeakKeyDictionary()
"""Of a norm: its epsilon and the state of its weight when it was tried, and whether it is one."""


def _is_rms_norm(norm: nn.Module, epsilon: float) -> bool:
    """Return whether ``norm`` computes what torch's RMS norm does; tried once for every state of it."""
    weight = _weight(norm)
    state = (id(weight), *state_of(weight))
    found = _tried.get(norm)
    if found is None or found[:2] != (epsilon, state):
        found = _tried[norm] = (epsilon, state, _computes_rms_norm(norm, epsilon))
    return found[2]


@torch.no_grad()
def _computes_rms_norm(norm: nn.Module, epsilon: float) -> bool:
    """Return whether ``norm`` gives what torch's RMS norm does, of large numbers and of some for which
    epsilon counts."""
    generator, weight = torch.Generator().manual_seed(0), _weight(norm)
    x = torch.randn(6, len(weight), generator=generator)
    x = (x * torch.tensor([1e2, 1.0, 1.0, 1e-2, 1e-3, 1e-4])[:, None]).to(weight.device)
    try:
        wanted = norm.forward(x)  # whoever listens to the layer need not hear of it
    except Exception:  # it takes more than states
        return False
    found = _rms_norm(_wide(weight), epsilon, x)
    return isinstance(wanted, Tensor) and torch.allclose(found, wanted, _TOLERANCE, _TOLERANCE)


def _forward(
    norm: nn.Module,
    epsilon: float,
    own: Callable[..., Tensor],
    weight: Kept[Tensor],
    x: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    plain = not (args or kwargs) and x.dtype == torch.float32
    return _rms_norm(weight.of(_weight(norm)), epsilon, x) if plain else own(x, *args, **kwargs)


def _rms_norm(weight: Tensor, epsilon: float, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], weight, epsilon)


def _weight(norm: nn.Module) -> nn.Parameter:
    return norm.get_parameter("weight")


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().float()
