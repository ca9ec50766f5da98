"""Logits in float32 from a model whose weights and hidden states have 16 bits.

A bfloat16 logit between 16 and 32 has steps of 0.125, so choices tie that do not tie. The product behind it
is summed in float32 and only then rounded, so keeping the sum costs nothing but its bytes. Nothing else of
the model's forward changes: scaling, soft-capping and biases stay its own, computed in float32 too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cme_bench.util.narrowing import Half, Narrowed, Way, narrowed
from cme_bench.util.precision import full_float32

NARROW = (torch.bfloat16, torch.float16)
"""Types in which a logit has too few digits."""
_UPCAST_NUMBERS = 1 << 21
"""Weights upcast at a time, 8 MiB in float32: they are multiplied while a CPU's cache holds them."""
_QUANTISED = frozenset({"Params4bit", "Int8Params"})
"""Weight classes of bitsandbytes, whose layers round what they return; HQQ's have no weight but ``W_q``."""


@contextmanager
def exact_logits(model: nn.Module) -> Iterator[None]:
    """Make the output layer of ``model`` give float32 for the block, and round no product of float32 numbers.

    ``model`` is a causal language model or an adapter's wrapper around one; adapters on the output layer
    count as part of it. It is as before afterwards. Quantised output layers are dequantised at every call.
    """
    head = output_layer(model)
    with ExitStack() as stack:
        stack.enter_context(full_float32())
        if head is not None:
            for layer in head.modules():
                if hasattr(layer, "W_q") or type(getattr(layer, "weight", None)).__name__ in _QUANTISED:
                    stack.enter_context(replaced(layer, _dequantised(layer)))
            stack.enter_context(replaced(head, _in_float32(head)))
        yield


def output_layer(model: nn.Module) -> nn.Module | None:
    """Return the module that maps hidden states to logits, with the adapters on it; None if none is named."""
    unwrap: Any = getattr(model, "get_base_model", None)
    found: Any = getattr(model if unwrap is None else unwrap(), "get_output_embeddings", lambda: None)()
    return found if isinstance(found, nn.Module) else None


def is_rounded(logits: Tensor, dtype: torch.dtype) -> bool:
    """Return whether ``logits`` of a model in ``dtype`` were rounded to it, whatever their type is now."""
    if dtype not in NARROW:
        return False
    return logits.dtype != torch.float32 or torch.equal(logits, logits.to(dtype).float())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x weight^T + bias`` summed and kept in float32; ``x`` is [..., d], ``weight`` [n, d].

    Under autocast both are first cast as it would cast them. Gradients have the inputs' types. Without
    gradients an ``x`` of float32 may meet a weight of 16 bits, of which no copy is made.
    """
    weight = _plain(weight)
    if is_mixed(x, weight):
        mixed = wide_product(x.reshape(-1, x.shape[-1]), weight).reshape(*x.shape[:-1], len(weight))
        return mixed if bias is None else mixed + bias
    x, weight = _alike(x, weight)
    with _autocast_off(x):
        if x.dtype not in NARROW:
            return nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        product: Tensor = _Product.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
        product = product.reshape(*x.shape[:-1], len(weight))
        return product if bias is None else product + bias.float()


class _Product(torch.autograd.Function):
    """``x w^T`` of 16-bit matrices [rows, d] and [n, d], as float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        with _autocast_off(x):
            outer = outer.to(x.dtype)
            grad_x = outer @ weight if ctx.needs_input_grad[0] else None
            grad_weight = outer.T @ x if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x weight^T`` as float32, of [rows, d] and [n, d] in one 16-bit type.

    CUDA gives its accumulator. Elsewhere the weights are upcast, a few rows at a time: a copy of them would
    take their memory twice more, and be out of date once an adapter changes them.
    """
    if x.is_cuda and torch.version.hip is None:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    wide = x.float()
    step = max(1, _UPCAST_NUMBERS // weight.shape[1])
    if len(weight) <= step:
        return wide @ weight.float().T
    out = torch.empty(len(x), len(weight), device=x.device)
    for start in range(0, len(weight), step):
        out[:, start : start + step] = wide @ weight[start : start + step].float().T
    return out


def wide_product(
    x: Tensor, weight: Tensor, half: Half | None = None, narrow: Callable[[Tensor, Way], Narrowed] = narrowed
) -> Tensor:
    """Return ``x weight^T`` as float32, of float32 [rows, d] and [n, d] in a 16-bit type.

    CUDA multiplies 16-bit matrices, to which ``narrow`` brings ``x``: many rows in float16, which holds 11
    bits, few rows as two numbers each (:mod:`cme_bench.util.narrowing`). bfloat16 weights are brought to
    float16 for many rows, at every call unless ``half`` holds them.
    """
    if not multiplies_halves(x):
        return product(x, weight)
    way = Way.of(len(x), weight.dtype, half=half is not None)
    if way.dtype == weight.dtype:
        half = Half(weight)
    elif half is None:
        half = Half.at_once(weight)
    found = narrow(x, way)
    return found.restored(product(found.parts, half.numbers), half.scale)


def multiplies_halves(x: Tensor) -> bool:
    """Return whether float32 ``x`` meets 16-bit weights on matrix units that multiply 16 bits only."""
    return x.is_cuda and torch.version.hip is None


def is_mixed(x: Tensor, weight: Tensor) -> bool:
    """Return whether ``wide_product`` multiplies these."""
    wanted = x.dtype == torch.float32 and weight.dtype in NARROW
    return wanted and not _autocast_on(x) and not torch.is_grad_enabled()


class Float32Products(TorchFunctionMode):
    """Within, products of 16-bit matrices are float32, by whatever name a layer calls for them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        ours, names = _PRODUCTS[func]
        others = dict(kwargs or {})
        given = [*args, *(others.pop(name) for name in names[len(args) :] if name in others)]
        if others:  # an output to write to, a factor: nobody's output layer has them
            return func(*args, **(kwargs or {}))
        return ours(*given)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    if b.dim() == 2 and a.dim() > 0:
        return linear(a, b.T)
    a, b = _alike(a, b)
    with _autocast_off(a):
        return a.float() @ b.float() if a.dtype in NARROW else a @ b


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return linear(a, b.T, bias)


_PRODUCTS: dict[Any, tuple[Callable[..., Tensor], tuple[str, ...]]] = {
    nn.functional.linear: (linear, ("input", "weight", "bias")),
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), (_matmul, ("input", "other"))),
    **dict.fromkeys((torch.mm, Tensor.mm), (_matmul, ("input", "mat2"))),
    **dict.fromkeys((torch.addmm, Tensor.addmm), (_addmm, ("input", "mat1", "mat2"))),
}
"""The replacement of a function, and the names of its arguments in their order."""


def _in_float32(head: nn.Module) -> Callable[..., Any]:
    forward = head.forward

    def wrapped(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with Float32Products():
            logits = forward(x, *args, **kwargs)
            if logits.dtype in NARROW and hasattr(head, "base_layer"):
                logits = forward(x.float(), *args, **kwargs)  # an adapter that returns what it was given
            return logits

    return wrapped


def _dequantised(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    from peft.utils.integrations import dequantize_module_weight

    def forward(x: Tensor) -> Tensor:
        return linear(x, dequantize_module_weight(layer).to(x.dtype), getattr(layer, "bias", None))

    return forward


class SameNumbers(functools.partial[Tensor]):
    """A forward lent to a linear layer (:func:`replaced`) that computes what the layer's own does.

    Who multiplies with such a layer's weight itself is right too, but gains nothing.
    """


class WideNumbers(functools.partial[Tensor]):
    """A forward lent to a linear layer of 16 bits, which returns a float32 tensor of the caller's own for a
    float32 input."""


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let ``module`` compute by ``forward`` for the block; a forward that was set on it (by accelerate, say)
    comes back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def all_replaced(forwards: Sequence[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Do what ``replaced`` does for many modules, in a tenth of the time."""
    before = [(module.__dict__, module.__dict__.get("forward")) for module, _ in forwards]
    try:
        for module, forward in forwards:
            module.__dict__["forward"] = forward
        yield
    finally:
        for own, forward in reversed(before):
            if forward is None:
                del own["forward"]
            else:
                own["forward"] = forward


def _plain(weight: Tensor) -> Tensor:
    """Return ``weight`` itself, or the numbers that a quantised tensor class stands for."""
    return weight if type(weight).dequantize is Tensor.dequantize else weight.dequantize()


def _alike(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in autocast's type where it is on, else in the wider of the two."""
    if _autocast_on(x) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
    else:
        dtype = torch.promote_types(x.dtype, weight.dtype)
    return x.to(dtype), weight.to(dtype)


def _autocast_on(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def _autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    return torch.autocast(x.device.type, enabled=False) if _autocast_on(x) else nullcontext()
