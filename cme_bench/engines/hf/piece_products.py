"""Products of a float32 model's linear layers by bfloat16 pieces, as exact as float32's and faster on a GPU.

Most models are published in bfloat16, so that their weights are its numbers in a float32 run too
(:mod:`cme_bench.util.float32_pieces`). Their layers are lent another forward for the time of a model's. So is
the product of a routed adapter with A and the router, whose numbers are pieces too; adapters' other products
stay as they are. A trial on the device decides, once for an engine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from cme_bench.adapters.routing.inference import Matrices, narrow_product
from cme_bench.engines.hf.kept_weights import Kept, Once, Shelf, adapters_own, parent_of
from cme_bench.util.errors import first_line
from cme_bench.util.exact_logits import SameNumbers, all_replaced
from cme_bench.util.float32_pieces import BYTES, has_units, multiply, multiply_any, split, thirds, thrice

AS_ASKED, ONLY_A_GPU = "asked for", "only a GPU with units for bfloat16 gains"
NO_LAYERS, OTHER_NUMBERS = "no linear layers of torch's own", "no weights are bfloat16's numbers"
"""Why a model's products are plain float32; beside these, what goes wrong on a GPU is told."""
_WORTH = 1 << 27
"""Multiplications from which a GPU is faster with pieces; below, both take about the time of a start."""
_WORTH_THREE = 1 << 30
"""The same of three products and their sums."""
_FEW_ROWS, _MANY_WEIGHTS = 32, 1 << 24
"""Rows below which a GPU waits for the weights, and numbers from which reading half their bytes is faster."""
_ALIGNED = 8  # numbers of a row, 16 bytes in bfloat16: matrix units read no others fast
_TRIED_ROWS, _TRIED_COLUMNS = 512, 256
_FACTOR, _EXACT = 8.0, 2.0**-18
"""Most error of a trial: so many times that of float32's product, or a part of the numbers, if that is more.
Matrix units that sum in float32 make less than four times; TF32 makes a thousand times."""


def _agrees(repeated: Tensor | None, weight: Tensor) -> bool:
    return repeated is not None and torch.equal(repeated[:, : weight.shape[1]].float(), weight)


_shelf: Shelf[Tensor | None] = Shelf(thrice, _agrees, BYTES)
"""Layers' weights as pieces meet them, None where they are not bfloat16's numbers."""
_THIRDS = "thirds"
_right: set[tuple[str, torch.Size, torch.device]] = set()
"""Kinds of pieces, shapes of weights, and devices, whose trial went well."""


class PieceProducts:
    """The linear layers of ``model`` that multiply by pieces within a context.

    ``asked``: None where the device decides, as only a GPU gains; else whether to. Copies of the weights are
    made here, 6 bytes a number, and freed with it. ``plain_because``: why no layer does; None if some do.
    """

    def __init__(self, model: nn.Module, asked: bool | None) -> None:
        self._layers: dict[nn.Linear, Kept[Tensor | None]] = {}
        self._once: Once[Tensor] = Once()
        self._parents: dict[nn.Linear, str] = {} if asked is False else _candidates(model)
        self.plain_because = _why_not(model, asked) or self._begin()

    def _begin(self) -> str | None:
        """Know the layers that multiply by pieces; return why there are none."""
        if reason := _shelf.why_no_room(self._parents):
            return reason
        held = {layer: _shelf.held(layer) for layer in self._parents}
        held = {layer: found for layer, found in held.items() if found.made is not None}
        if not held:
            return OTHER_NUMBERS if self._parents else NO_LAYERS
        try:
            wrong = next(filter(None, itertools.starmap(_why_layer_wrong, held.items())), None)
        except Exception as error:  # a kernel's are of many kinds
            wrong = f"a trial failed ({type(error).__name__}: {first_line(error)})"
        if wrong is None:
            self._layers = held
        return wrong

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Compute so within the context; the model is as it was afterwards."""
        if not self._layers:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(_summed_in_float32())
            stack.callback(self._once.forget)
            stack.callback(narrow_product.reset, narrow_product.set(self._narrow))
            lent = [(layer, SameNumbers(self._linear, layer, kept)) for layer, kept in self._layers.items()]
            stack.enter_context(all_replaced(lent))
            yield

    def _linear(self, layer: nn.Linear, kept: Kept[Tensor | None], x: Tensor) -> Tensor:
        """Return what ``layer`` computes; as its own forward does where pieces gain nothing."""
        rows = x.numel() // max(1, x.shape[-1])
        repeated = kept.of(layer.weight) if _suits(x) and _pays(rows, layer.weight) else None
        if repeated is None:
            return nn.functional.linear(x, layer.weight, layer.bias)
        pieces = self._once.of(self._parents[layer], x, lambda: split(x.reshape(-1, x.shape[-1])))
        out = multiply(pieces, repeated)
        if layer.bias is not None:
            out += layer.bias
        return out.view(*x.shape[:-1], layer.out_features)

    def _narrow(self, x: Tensor, found: Matrices) -> Tensor | None:
        """Return the narrow product of a routed adapter, whose numbers may have all digits of float32."""
        d = x.shape[-1]
        fits = found.made_of is not None and found.rows.dtype == torch.float32 and d % _ALIGNED == 0
        few = x.is_cuda and x.numel() // d * found.rows.numel() < _WORTH_THREE
        if few or not (fits and _suits(x)):
            return None
        if _THIRDS not in found.kept:
            parts = thirds(found.rows)
            right = _why_wrong(found.rows, lambda states: multiply_any(split(states), parts), _THIRDS) is None
            found.kept[_THIRDS] = parts if right else None
        if found.kept[_THIRDS] is None:
            return None
        pieces = self._once.found(x)
        return multiply_any(split(x.reshape(-1, d)) if pieces is None else pieces, found.kept[_THIRDS])


def _why_not(model: nn.Module, asked: bool | None) -> str | None:
    if asked is not None:
        return None if asked else AS_ASKED
    devices = {parameter.device for parameter in model.parameters()}
    return None if devices and all(map(has_units, devices)) else ONLY_A_GPU


def _candidates(model: nn.Module) -> dict[nn.Linear, str]:
    """Return torch's linear layers in float32 that are the base model's, with what each is part of."""
    own = adapters_own(model)
    found = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module not in own and "forward" not in module.__dict__:
            plain = type(module.weight) is nn.Parameter and module.weight.dtype == torch.float32
            if plain and module.in_features % _ALIGNED == 0:
                found[module] = parent_of(name)
    return found


def _suits(x: Tensor) -> bool:
    autocast = torch.is_autocast_enabled(x.device.type)
    return x.dtype == torch.float32 and not torch.is_grad_enabled() and not autocast


def _pays(rows: int, weight: Tensor) -> bool:
    if not (rows and weight.is_cuda):
        return rows > 0
    numbers = weight.numel()
    return rows * numbers >= _WORTH if rows >= _FEW_ROWS else numbers >= _MANY_WEIGHTS


@contextmanager
def _summed_in_float32() -> Iterator[None]:
    """Let cuBLAS reduce no part of a sum in bfloat16, which torch allows it by default."""
    part = torch.backends.cuda.matmul
    before = part.allow_bf16_reduced_precision_reduction
    part.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        part.allow_bf16_reduced_precision_reduction = before


def _why_layer_wrong(layer: nn.Linear, kept: Kept[Tensor | None]) -> str | None:
    if (repeated := kept.of(layer.weight)) is None:
        return None
    return _why_wrong(layer.weight, lambda x: multiply(split(x), repeated), "")


@torch.no_grad()
def _why_wrong(weight: Tensor, multiplied: Callable[[Tensor], Tensor], kind: str) -> str | None:
    """Return how far a product by pieces is from float64's, if float32's is much nearer; ``kind``: of pieces.

    Products of one kind and shape are tried once.
    """
    if (kind, weight.shape, weight.device) in _right:
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_TRIED_ROWS, weight.shape[1], generator=generator)
    x = (x * torch.randn(x.shape, generator=generator).exp()).to(
        weight.device
    )  # some are large, as in states
    columns = torch.linspace(0, len(weight) - 1, min(_TRIED_COLUMNS, len(weight)), device=x.device).long()
    wanted = x.double() @ weight[columns].double().T
    with _summed_in_float32():
        both = multiplied(x), nn.functional.linear(x, weight)
    error, own = (_rms(found[:, columns].double() - wanted) / _rms(wanted) for found in both)
    if not error <= max(_FACTOR * own, _EXACT):
        return f"a trial's error was {error:.1e} of the numbers, float32's {own:.1e}"
    _right.add((kind, weight.shape, weight.device))
    return None


def _rms(numbers: Tensor) -> float:
    return max(float(numbers.square().mean().sqrt()), 1e-300)
