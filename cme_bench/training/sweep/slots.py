"""Adapters of any PEFT method side by side on one base: its products are computed once for all their rows.

An adapter is put on the base as PEFT puts it, and its layers are taken off again. Each linear layer of the
base then hands each adapter's layer the rows that are its own (:mod:`~cme_bench.training.sweep.shared`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.utils import set_seed
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from cme_bench.training.fresh import put_fresh
from cme_bench.training.replay import static_shapes
from cme_bench.util.errors import UsageError


class GivenOutput(nn.Module):
    """Stand for the base layer below one adapter's layer: return the output that is computed already.

    Whatever else a method reads is the shared layer's, as its weight (DoRA).
    """

    def __init__(self, shared: nn.Module) -> None:
        super().__init__()
        self._shared = (shared,)  # no submodule: the base's weights are not the adapter's
        self.output: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the shared layer."""
        return getattr(self.__dict__["_shared"][0], name)

    def forward(self, x: Tensor) -> Tensor:
        """Return the shared layer's output for ``x``, once."""
        if self.output is None:
            raise RuntimeError("an adapter's layer was called that was given no output of its base layer")
        output, self.output = self.output, None
        return output


class Slot:
    """One adapter on the shared base, as PEFT makes it from ``seed``.

    ``model``: its PeftModel, whose layers are on the base only while :meth:`mounted` is open. ``layers``: by
    the name of what they adapt, each with a :class:`GivenOutput` below it. ``whole_blocks``: some layers
    adapt whole blocks, and compute the block themselves.
    """

    def __init__(self, base: PreTrainedModel, config: PeftConfig, *, seed: int) -> None:
        set_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's advice on settings that are ours to choose
            self.model: PeftModel = put_fresh(base, config)
        del base.peft_config  # else PEFT takes the next adapter for a second one of this model
        self.config = config
        self.layers: dict[str, Any] = {
            name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)
        }
        self._base = base
        self._adapted = {name: layer.base_layer for name, layer in self.layers.items()}
        self._refuse_other_tensors()
        self._below = {name: _below(module) for name, module in self._adapted.items()}
        self.whole_blocks = not all(isinstance(below, GivenOutput) for below in self._below.values())
        self._put(self._adapted, self._below)

    @property
    def static(self) -> bool:
        """Return whether the shapes of what its layers compute hang on the batch's shape alone."""
        return static_shapes(self.layers.values())

    def _refuse_other_tensors(self) -> None:
        own = {id(p) for layer in self.layers.values() for p in layer.parameters()}
        own -= {id(p) for module in self._adapted.values() for p in module.parameters()}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in own:
                raise UsageError(
                    f"{name} is trained too, and is no adapter's; use cme-bench train for this one"
                )

    def _put(self, on_base: Mapping[str, nn.Module], below: Mapping[str, nn.Module]) -> None:
        for name, layer in self.layers.items():
            layer.base_layer = below[name]
            self._base.set_submodule(name, on_base[name])

    @contextmanager
    def mounted(self) -> Iterator[PeftModel]:
        """Put the layers on the base, which carries no other, as PEFT's ``get_peft_model`` left them."""
        self._put(self.layers, self._adapted)
        try:
            yield self.model
        finally:
            self._put(self._adapted, self._below)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by layer and name in it."""
        return {
            f"{name}.{inner}": parameter
            for name, layer in self.layers.items()
            for inner, parameter in layer.named_parameters()
            if parameter.requires_grad
        }


def _below(adapted: nn.Module) -> nn.Module:
    """Return what an adapter's layer gets for its base layer: a linear's output, or the block as it is."""
    if not list(adapted.children()):
        return GivenOutput(adapted)
    block = copy.copy(adapted)
    block._modules = dict(adapted._modules)  # the linears in it stay the base's own
    return block
