"""Hidden states in float32 of a model whose weights have 16 bits.

A hidden state of 8 digits is rounded some fifteen times a layer, and most of what bfloat16 adds to a score
comes from there. In here what lies between products is float32, from the embeddings on: sums, norms, gates,
positions. A product still multiplies with the 16-bit weights, is summed in float32 and not rounded. The
model's own code computes all of it; its layers are lent other products for the time of a forward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from cme_bench.adapters.shared.quantised import is_quantised_linear
from cme_bench.engines.hf.gated_blocks import GatedBlock, gated_blocks, is_heard
from cme_bench.engines.hf.kept_weights import Kept, Once, Shelf, adapters_own, parent_of
from cme_bench.util.exact_logits import (
    NARROW,
    Float32Products,
    WideNumbers,
    all_replaced,
    is_mixed,
    linear,
    multiplies_halves,
    output_layer,
    product,
    wide_product,
)
from cme_bench.util.narrowing import Half, Narrowed, Way, gated, halved, narrowed

_wide: ContextVar[bool] = ContextVar("cme_wide_states", default=False)


class WideStates:
    """The layers of a model, and what they compute by while its hidden states are float32.

    ``model`` is a causal language model in 16 bits, or an adapter's wrapper around one; ``part`` is what of
    it computes so, by default all. Its output layer is that of
    :func:`~cme_bench.util.exact_logits.exact_logits`. Adapters compute with hidden states that are not
    rounded, in the type of their own weights. ``no_halves_because``: why bfloat16 weights are brought to
    float16 at every product; None if they are kept so, or no device asks for it.
    """

    def __init__(self, model: nn.Module, part: nn.Module | None = None) -> None:
        self._once: Once[Narrowed] = Once()
        parents = {layer: parent_of(name) for name, layer in model.named_modules()}
        head = output_layer(model)
        others = set() if head is None else set(head.modules())
        layers = [module for module in (model if part is None else part).modules() if module not in others]
        self._halves, self.no_halves_because = _halves({*layers, *others} - adapters_own(model))
        self._layers: list[tuple[nn.Module, Callable[..., Any]]] = []
        blocks = gated_blocks(layers) if any(map(_is_on_units, layers)) else {}
        for module in (*layers, *others):
            block = blocks.get(module)
            if block is not None and all(map(_is_plain, block)):
                given = module, module.forward, block, parents.get(block.gate, "")
                self._layers.append((module, functools.partial(self._gated, *given)))
            elif _is_plain(module):
                self._layers.append((module, WideNumbers(self._linear, module, parents.get(module, ""))))
            elif module not in others and (forward := _forward(module)) is not None:
                self._layers.append((module, forward))

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Keep hidden states in float32 within the context; the model is as it was afterwards."""
        token = _wide.set(True)
        try:
            with all_replaced(self._layers):
                yield
        finally:
            self._once.forget()
            _wide.reset(token)

    def _linear(self, layer: nn.Linear, parent: str, x: Tensor) -> Tensor:
        """Return what ``layer`` computes, in float32; layers beside each other narrow their input once."""
        weight = layer.weight
        if not is_mixed(x, weight):
            return linear(x, weight, layer.bias)
        kept = self._halves.get(layer)

        def narrow(rows: Tensor, way: Way) -> Narrowed:
            return self._once.of((parent, way), x, lambda: narrowed(rows, way))

        rows = x.reshape(-1, x.shape[-1])
        out = wide_product(rows, weight, None if kept is None else kept.of(weight), narrow)
        if layer.bias is not None:
            out += layer.bias
        return out.view(*x.shape[:-1], len(weight))

    def _gated(
        self,
        module: nn.Module,
        own: Callable[..., Any],
        block: GatedBlock,
        parent: str,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """Return what a block computes, in float32, its inner states as factors only; by ``own`` where it is
        given more than states, or few rows of them, or somebody listens to a layer of ``module``."""
        x = args[0] if len(args) == 1 and not kw else None
        found = self._by_factors(block, parent, x) if isinstance(x, Tensor) and not is_heard(module) else None
        return own(*args, **kw) if found is None else found

    def _by_factors(self, block: GatedBlock, parent: str, x: Tensor) -> Tensor | None:
        """Return what ``block`` computes from float32 ``x`` [..., d]; None where it has no such factors."""
        rows = x.reshape(-1, x.shape[-1])
        weights = [layer.weight for layer in block]
        if not all(is_mixed(x, weight) for weight in weights):
            return None
        kept = [self._halves.get(layer) for layer in block]
        halves = [Half(w) if half is None else half.of(w) for w, half in zip(weights, kept, strict=True)]
        way = Way.of(len(rows), weights[0].dtype, half=None not in kept)
        same = all(half.numbers.dtype == way.dtype for half in halves)
        if not (way.pieces == 1 and same and halves[0].scale is None and halves[1].scale is None):
            return None
        found = self._once.of((parent, way), x, lambda: narrowed(rows, way))
        gate, up = (product(found.parts, half.numbers) for half in halves[:2])
        inner = gated(gate, up, found.scales, way)
        del gate, up
        return inner.restored(product(inner.parts, halves[2].numbers), halves[2].scale).view(x.shape)


_shelf: Shelf[Half] = Shelf(Half.of, Half.is_of, torch.float16.itemsize)


def _halves(layers: Iterable[nn.Module]) -> tuple[dict[nn.Linear, Kept[Half]], str | None]:
    """Return the bfloat16 weights of ``layers`` in float16, where products need them so, or why there is no
    room for them."""
    found = [layer for layer in layers if _is_plain(layer) and layer.weight.dtype == torch.bfloat16]
    found = [layer for layer in found if multiplies_halves(layer.weight)]
    reason = _shelf.why_no_room(found)
    return ({} if reason else {layer: _shelf.held(layer) for layer in found}), reason


def for_attention(states: Tensor) -> Tensor:
    """Return queries, keys or values as attention of ours takes them: wide ones in float16.

    GPUs have fast kernels for 16 bits only, and keys are kept for long. float16 has eight times the digits of
    bfloat16; what is beyond its range, which no model was seen to need, becomes its largest number.
    """
    if _wide.get() and states.dtype == torch.float32:
        return halved(states)
    return states


def why_narrow(model: nn.Module) -> str | None:
    """Return why hidden states keep the type of the weights; None if they may be float32."""
    if any(_is_quantised_layer(module) for module in model.modules()):
        return "a quantised base"
    return None


def _is_quantised_layer(module: nn.Module) -> bool:
    if hasattr(module, "base_layer"):  # an adapter's, which has the base's sizes
        return False
    weight = getattr(module, "weight", None)
    packed = isinstance(weight, Tensor) and not (weight.is_floating_point() and weight.dtype.itemsize > 1)
    return packed or is_quantised_linear(module)


def _forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return by what ``module`` computes from wide hidden states; None where its own forward serves."""
    narrow = any(_is_narrow(own) for own in (*module._parameters.values(), *module._buffers.values()))
    if isinstance(module, nn.Embedding) and narrow:
        return _widened(module.forward)
    if hasattr(module, "base_layer"):
        return _within(_as_tf32, _adapter_forward(module))
    return _within(_WideProducts, module.forward) if narrow else None


def _adapter_forward(layer: nn.Module) -> Callable[..., Any]:
    """Return by what an adapter's layer computes: its own forward, if it only calls the base's layer and all
    else is float32. PEFT's layers may multiply with the base's weight themselves."""
    from cme_bench.adapters.shared.layer import AdapterLinear
    from cme_bench.adapters.shared.lora_inference import quick_forward

    base = getattr(layer, "base_layer", None)
    of_base = set() if base is None else set(base.parameters())
    wide = all(own.dtype == torch.float32 for own in set(layer.parameters()) - of_base)
    if isinstance(layer, AdapterLinear) and wide:
        return layer.forward
    return quick_forward(layer, _within(_WideProducts, layer.forward))


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module is torch's own linear layer of 16 bits, with a forward of its own."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    return type(module.weight) is nn.Parameter and _is_narrow(module.weight)


def _is_on_units(module: nn.Module) -> bool:
    return _is_plain(module) and multiplies_halves(module.weight)


def _is_narrow(own: Tensor | None) -> bool:
    return own is not None and own.dtype in NARROW


def _widened(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapped(*args: Any, **kwargs: Any) -> Tensor:
        found = forward(*args, **kwargs)
        return found.float() if found.dtype in NARROW else found

    return wrapped


def _within(
    products: Callable[[], AbstractContextManager[Any]], forward: Callable[..., Any]
) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with products():
            return forward(*args, **kwargs)

    return wrapped


@contextmanager
def _as_tf32() -> Iterator[None]:
    """Let a GPU multiply an adapter's float32 numbers as TF32, of 11 bits like float16: many times as fast,
    and eight times as exact as bfloat16. A process that has chosen a precision of its own keeps it."""
    part = torch.backends.cuda.matmul
    free = part.fp32_precision == "none"
    try:
        if free:
            part.allow_tf32 = True  # torch's older and newer settings must agree
        yield
    finally:
        if free:
            part.allow_tf32 = False
            part.fp32_precision = "none"


class _WideProducts(Float32Products):
    """Within, what torch computes of one type only takes wide hidden states and narrow weights."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _OF_ONE_TYPE:
            args, kwargs = _promoted(args, kwargs or {})
        elif func in _OF_NARROW:
            args, kwargs = _narrowed(args, kwargs or {})
        return super().__torch_function__(func, types, args, kwargs)


def _floats(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[torch.dtype]:
    given = (*args, *kwargs.values())
    return {value.dtype for value in given if isinstance(value, Tensor) and value.is_floating_point()}


def _promoted(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments in the widest type among them."""
    types = _floats(args, kwargs)
    return _cast(args, kwargs, functools.reduce(torch.promote_types, types) if len(types) > 1 else None)


def _narrowed(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments in the weights' type, which such a kernel asks for."""
    types = _floats(args, kwargs)
    return _cast(args, kwargs, next(iter(types & set(NARROW)), None) if len(types) > 1 else None)


def _cast(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: torch.dtype | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def cast(value: Any) -> Any:
        known = dtype is not None and isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if known else value

    return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}


_OF_ONE_TYPE: frozenset[Any] = frozenset(
    {
        nn.functional.layer_norm,
        nn.functional.rms_norm,
        nn.functional.group_norm,
        torch.conv1d,
        torch.bmm,
        Tensor.bmm,
        torch.baddbmm,
        Tensor.baddbmm,
    }
)
_OF_NARROW: frozenset[Any] = frozenset(
    getattr(place, name)
    for place, name in ((nn.functional, "grouped_mm"), (torch, "_grouped_mm"))
    if hasattr(place, name)
)
"""Products of several experts at once, which round their results too."""
