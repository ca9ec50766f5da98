"""A model that is lent for an evaluation, and comes back as it was: for the training that goes on with it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

_CONTENTS = (
    "_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks",
    "_backward_pre_hooks", "_non_persistent_buffers_set",
)  # fmt: skip
"""Collections of a module that are changed in place."""


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """While open, ``model`` may be used; afterwards it and all random states are as before.

    That holds of every module's attributes (mode, hooks, buffers, which adapter is active), of what has
    gradients, of the configuration, and of the generators of torch, numpy and Python. Within, autocast is
    off, and a forward that a trainer put over the model's own is taken away. No tensor is copied.
    """
    modules = [(module, dict(vars(module)), _contents(module)) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    configs = [(config, dict(vars(config))) for config in _configs(model)]
    try:
        with _random_states(), _no_autocast():
            for module, _, _ in modules:
                _without_trainer(module)
                _not_repacked(module)
            yield
    finally:
        for module, attributes, contents in modules:
            _restore(vars(module), attributes)
            for name, content in contents.items():
                _restore_content(getattr(module, name), content)
        for parameter, flag in gradients:
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for config, attributes in configs:
            _restore(vars(config), attributes)


def _contents(module: nn.Module) -> dict[str, Any]:
    return {name: type(held)(held) for name in _CONTENTS if (held := vars(module).get(name)) is not None}


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    """Make the changed entries what they were; most did not change."""
    for name in [name for name in now if name not in before]:
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _restore_content(now: Any, before: Any) -> None:
    same = list(now) == list(before)
    if same and (isinstance(now, set) or all(now[key] is before[key] for key in before)):
        return
    now.clear()
    now.update(before)


def _configs(model: nn.Module) -> list[Any]:
    """Return the configurations of a model and of its parts, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        for name in ("config", "generation_config"):
            config = vars(module).get(name)
            if config is not None and hasattr(config, "__dict__"):
                found[id(config)] = config
    return list(found.values())


def _without_trainer(module: nn.Module) -> None:
    """Take away what training puts over a forward: accelerate's autocast, our loss, a compiled one."""
    over = vars(module).get("forward")
    accelerated = "_original_forward" in vars(module)
    if over is not None and (accelerated or getattr(over, "of_training", False)):
        del module.forward
    if vars(module).get("_compiled_call_impl") is not None:
        module._compiled_call_impl = None


def _not_repacked(module: nn.Module) -> None:
    """Keep a 4-bit layer of bitsandbytes from repacking its weight, and rounding its scales, at a forward on
    a CPU; one that is repacked already stays so."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    if "support_avx512bf16_for_cpu" in vars(module) and not getattr(state, "packing_format_for_cpu", False):
        vars(module)["support_avx512bf16_for_cpu"] = False


@contextmanager
def _no_autocast() -> Iterator[None]:
    with ExitStack() as stack:
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _random_states() -> Iterator[None]:
    python, arrays, host = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(host)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
