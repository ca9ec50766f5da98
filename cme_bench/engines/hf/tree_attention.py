"""Attention of a pack: every token sees the kept prefix, its own ancestors in the pack, and itself.

The model is fed one row, ``[1, n]``. Two parts are computed and merged by their log-sum-exp:

* queries over the kept keys of the prefix: a plain product, no mask, no copy of the keys whatever the batch;
* queries over their own unit (:mod:`cme_bench.engines.hf.unit_attention`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cme_bench.engines.hf import tree_kernel
from cme_bench.engines.hf.attention import AttentionCall, additive, fold, merge
from cme_bench.engines.hf.attention_hook import UnsupportedAttentionError
from cme_bench.engines.hf.unit_attention import UnitAttention, bands, launch_pairs
from cme_bench.engines.hf.wide_states import for_attention
from cme_bench.engines.packs import Pack


class KeptPrefix:
    """Keep keys and values of the prefix in work, by attention module; each [1, key heads, tokens, size]."""

    def __init__(self) -> None:
        self._kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def head(self, module: nn.Module, tokens: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of the first ``tokens``."""
        keys, values = self._kept[module]
        return keys[:, :, :tokens], values[:, :, :tokens]

    def free(self, module: nn.Module) -> None:
        """Keep nothing of a module."""
        self._kept.pop(module, None)

    def extend(self, module: nn.Module, tokens: int, keys: Tensor, values: Tensor) -> None:
        """Keep the first ``tokens`` and what follows; what was there beyond them is freed."""
        if tokens:
            before = self.head(module, tokens)
            keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
        else:
            keys, values = keys.clone(), values.clone()
        self._kept[module] = keys, values

    @contextmanager
    def all_or_nothing(self, packs: Sequence[Pack]) -> Iterator[None]:
        """Keep what was kept before if the forward of ``packs`` fails: layers got to different ones.

        One pack needs no such care: what it sees is kept in every layer.
        """
        if len(packs) == 1:
            yield
            return
        before = self._kept.copy()
        try:
            yield
        except BaseException:
            self._kept = before
            raise


class PackAttention:
    """Compute the attention of one pack, every layer on its own device.

    ``windows``: of every call so far; with them a model is checked. ``kernel``: what a kernel of our own may
    compute it by (:mod:`cme_bench.engines.hf.tree_kernel`), if any. Wide states are kept in float16.
    """

    def __init__(
        self, pack: Pack, kept: KeptPrefix, device: torch.device, *, kernel: tree_kernel.Factors | None = None
    ) -> None:
        self.pack = pack
        self.kept = kept
        self.windows: list[int | None] = []
        self._device = device
        self._kernel = kernel
        self._sights: dict[torch.device, tree_kernel.Sight] = {}
        self._units: list[UnitAttention] = []
        self._positions: dict[torch.device, Tensor] = {}
        self._prefix_masks: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, call: AttentionCall) -> Tensor:
        """Return [1, n, heads, head size]."""
        cached = self.pack.cached
        check_fed(call, self.pack.n_tokens)
        self.windows.append(call.window)
        out = None if self._kernel is None else self._by_kernel(call, self._kernel)
        if out is None:
            call = _narrow(call)
            out = self._in_parts(call).transpose(1, 2)
        if self.pack.keep:
            call = _narrow(call)
            self.kept.extend(call.module, cached, call.key, call.value)
        return out

    def _by_kernel(self, call: AttentionCall, factors: tree_kernel.Factors) -> Tensor | None:
        """Return the attention [1, n, heads, head size] of our kernel; None where it does not compute it."""
        cut = call.window is not None and int(self.pack.positions.max()) >= call.window
        if cut or not tree_kernel.suits(call, factors):
            return None
        device = call.query.device
        if device not in self._sights:
            self._sights[device] = tree_kernel.Sight.of(self.pack, device)
        prefix = self.kept.head(call.module, self.pack.cached) if self.pack.cached else None
        return tree_kernel.attend(call, self._sights[device], prefix, factors)

    def _in_parts(self, call: AttentionCall) -> Tensor:
        """Return [1, heads, n, head size]: the units' own keys and the prefix, merged."""
        cached, query = self.pack.cached, call.query
        out, lse = self._within_units(call)
        if cached:
            keys, values = self.kept.head(call.module, cached)
            first, mask = self._prefix_mask(call.window, call.groups, query)
            seen, seen_lse = call.attend(
                fold(query, call.groups), keys[:, :, first:], values[:, :, first:], mask=mask
            )
            out = merge(seen.reshape(out.shape), seen_lse.reshape(lse.shape), out, lse)
        return out

    def _within_units(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Return ``(out, lse)`` [1, heads, n, ...] and [1, heads, n], each token over its own unit."""
        if not self._units:
            units = self.pack.units
            divided = bands(np.diff(self.pack.starts), launch_pairs(call))
            self._units = [UnitAttention(units[first:last], self._device) for first, last in divided]
        if len(self._units) == 1:
            return self._units[0](call, call.query, call.key, call.value)
        sizes = [units.n_tokens for units in self._units]
        states = (torch.split(part, sizes, 2) for part in (call.query, call.key, call.value))
        found = [attend(call, *own) for attend, *own in zip(self._units, *states, strict=True)]
        outs, lses = zip(*found, strict=True)
        return torch.cat(outs, 2), torch.cat(lses, 2)

    def _positions_on(self, device: torch.device) -> Tensor:
        if device not in self._positions:
            self._positions[device] = torch.from_numpy(self.pack.positions).to(device)
        return self._positions[device]

    def _prefix_mask(self, window: int | None, groups: int, query: Tensor) -> tuple[int, Tensor | None]:
        """Return the first kept token that is seen, and a mask [groups * n, kept from there] or None."""
        cached = self.pack.cached
        first = 0 if window is None else max(0, cached - window + 1)
        if window is None or int(self.pack.positions.max()) < window:
            return 0, None
        if first >= cached:  # a window of one token: nothing kept is seen, and one key keeps softmax defined
            first = cached - 1
        key = (window, groups, query.dtype, query.device)
        if key not in self._prefix_masks:
            kept = torch.arange(first, cached, device=query.device)
            seen = self._positions_on(query.device)[:, None] - kept < window
            self._prefix_masks[key] = additive(seen, query.dtype).repeat(groups, 1)
        return first, self._prefix_masks[key]


class SequenceAttention:
    """Compute the attention of packs that follow each other in one row, each by its own of ``parts``."""

    takes_wide = True
    """States come as the model has them (:mod:`cme_bench.engines.hf.attention_hook`)."""

    def __init__(self, parts: Sequence[PackAttention]) -> None:
        self._parts = parts

    @property
    def windows(self) -> list[int | None]:
        """Return the windows of every call so far."""
        return self._parts[0].windows

    def __call__(self, call: AttentionCall) -> Tensor:
        """Return [1, n, heads, head size]."""
        if len(self._parts) == 1:
            return self._parts[0](call)
        sizes = [part.pack.n_tokens for part in self._parts]
        check_fed(call, sum(sizes))
        states = (torch.split(part, sizes, 2) for part in (call.query, call.key, call.value))
        found = [
            attend(replace(call, query=query, key=key, value=value))
            for attend, query, key, value in zip(self._parts, *states, strict=True)
        ]
        return torch.cat(found, 1)


def _narrow(call: AttentionCall) -> AttentionCall:
    """Return a call whose states are as attention other than our kernels' takes them."""
    query, key, value = (for_attention(part) for part in (call.query, call.key, call.value))
    return call if query is call.query else replace(call, query=query, key=key, value=value)


def check_fed(call: AttentionCall, tokens: int) -> None:
    """Raise UnsupportedAttentionError if a layer attends to others than so many tokens of one row."""
    if call.key.shape[0] != 1 or call.key.shape[2] != tokens or call.query.shape[2] != tokens:
        raise UnsupportedAttentionError("the model does not attend to exactly the tokens it was fed")
