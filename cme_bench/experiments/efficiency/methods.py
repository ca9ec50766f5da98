"""The forms of adapter methods that are measured, and how each is put on a model and taken off.

A form is a PEFT config, or wraps each linear where no package has it. ``moelora32`` is MoELoRA as published,
a loop over experts; ``moelora32_fused`` is this package's. "_k2", "_k8": number of experts, each of rank 32;
without a suffix there are 4. ``lora128_lean`` is LoRA without PEFT's cast of the input to float32, the
fastest we know, for those who suspect the yardstick. Rank and alpha: alpha = 2 r.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, get_peft_model
from torch import nn

from cme_bench.adapters.decay import no_decay_names
from cme_bench.adapters.registry import How, Method, Wrap, methods


@dataclass(frozen=True, slots=True)
class Measurable:
    """A form of a method, on named linears. ``how``: how it is put on a model; ``form``: how it computes, in
    words that stand beside every number of it; ``method``: what it is a form of."""

    name: str
    how: How
    form: str
    method: Method


def all_methods(targets: Sequence[str]) -> dict[str, Measurable]:
    """Return every form that a method registers, on the linears with these names."""
    return {
        one.name: Measurable(one.name, one.how(list(targets)), one.form, method)
        for method in methods()
        for one in method.measured
    }


@contextmanager
def attached(model: nn.Module, how: How, targets: Sequence[str]) -> Iterator[list[nn.Parameter]]:
    """Put the adapter on the model for the block; yield its parameters, which are random."""
    torch.manual_seed(1)
    if isinstance(how, PeftConfig):
        tuned = get_peft_model(model, how)
        undo: Callable[[], Any] = tuned.unload
    else:
        undo = functools.partial(_put_back, _wrap_all(model, how, targets))
    try:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        kept = no_decay_names(model)  # their start is their meaning, as M's ones on the diagonal
        for name, parameter in named:
            if name not in kept:
                nn.init.normal_(parameter, std=0.02)
        yield [parameter for _, parameter in named]
    finally:
        undo()


def _wrap_all(model: nn.Module, wrap: Wrap, targets: Sequence[str]) -> list[tuple[nn.Module, str, nn.Linear]]:
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if name in targets and isinstance(child, nn.Linear)
    ]
    for parent, name, linear in found:
        setattr(parent, name, wrap(linear))
    return found


def _put_back(replaced: list[tuple[nn.Module, str, nn.Linear]]) -> None:
    for parent, name, linear in replaced:
        setattr(parent, name, linear)
