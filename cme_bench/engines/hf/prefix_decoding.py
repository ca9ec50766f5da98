"""Decoding a batch whose rows share a prefix: its keys and values are held once, whatever the batch."""

from __future__ import annotations

import contextlib
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cme_bench.engines.hf.attention import AttentionCall, additive, fold, merge
from cme_bench.engines.hf.attention_hook import UnsupportedAttentionError, attention_of
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.tree_attention import KeptPrefix

_MaskKey: TypeAlias = tuple[int | None, int, torch.dtype, torch.device]
"""Window, groups, type and device of a layer's queries."""


class PrefixSession:
    """Decode rows after the first ``prefix`` tokens of ``kept``. A :class:`generate.DecodingSession`."""

    def __init__(self, forward: CausalForward, kept: KeptPrefix, prefix: int) -> None:
        self._forward = forward
        self._kept = kept
        self._prefix = prefix
        self._after: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # [rows, key heads, seen, head size]
        self._mask = torch.empty(0)
        self._masks: dict[_MaskKey, tuple[Tensor, int, Tensor | None]] = {}
        self.device = forward.device

    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As the protocol says; ``mask`` does not cover the prefix."""
        self._mask = mask
        self._masks.clear()
        seeing = contextlib.nullcontext() if self._after else self._forward.seeing(ids)
        with seeing, attention_of(self._forward, self._attend):
            logits = self._forward.uncached(ids, self._positions(ids.shape[1]), 1)
        return logits[:, -1]

    def can_select(self, kept: int) -> bool:
        return True

    def select(self, kept: Tensor) -> None:
        for module, (keys, values) in self._after.items():
            own = kept.to(keys.device)
            self._after[module] = keys[own], values[own]

    def _positions(self, n: int) -> Tensor:
        """Return [rows, n], the positions of the newest tokens."""
        return self._prefix + (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -n:]

    def _attend(self, call: AttentionCall) -> Tensor:
        query, groups = call.query, call.groups
        rows, heads, n, _ = query.shape
        if call.key.shape[2] != n:
            raise UnsupportedAttentionError("the model does not attend to exactly the tokens it was fed")
        key, value = self._keep(call)
        after_mask, first, prefix_mask = self._masks_for(call.window, groups, n, query)
        after, after_lse = call.attend(fold(query, groups), key, value, mask=after_mask)
        after, after_lse = after.reshape(rows, heads, n, -1), after_lse.reshape(rows, heads, n)
        if not self._prefix:
            return after.transpose(1, 2)
        seen, lse = self._over_prefix(call, first, prefix_mask)
        return merge(seen.reshape(after.shape), lse.reshape(after_lse.shape), after, after_lse).transpose(
            1, 2
        )

    def _over_prefix(self, call: AttentionCall, first: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return attention over the prefix from token ``first``, [rows, key heads, groups * n, ...]."""
        query, groups = call.query, call.groups
        rows, heads, n, _ = query.shape
        keys, values = (states[:, :, first:] for states in self._prefix_of(call.module))
        flat = fold(query, groups).transpose(0, 1).reshape(1, heads // groups, rows * groups * n, -1)
        seen, lse = call.attend(flat, keys, values, mask=mask)
        seen = seen.reshape(heads // groups, rows, groups * n, -1).transpose(0, 1)
        return seen, lse.reshape(heads // groups, rows, groups * n).transpose(0, 1)

    def _keep(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the tokens fed; return all that are kept after the prefix."""
        pair = (call.key, call.value)
        if call.module in self._after:
            before = self._after[call.module]
            pair = torch.cat((before[0], pair[0]), 2), torch.cat((before[1], pair[1]), 2)
        self._after[call.module] = pair
        return pair

    def _prefix_of(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return keys and values of the prefix, each [1, key heads, prefix, size]."""
        return self._kept.head(module, self._prefix)

    def _masks_for(
        self, window: int | None, groups: int, n: int, states: Tensor
    ) -> tuple[Tensor, int, Tensor | None]:
        """Return ``(mask after the prefix, first token of it that is seen, mask of the prefix from there)``.

        The masks are [rows, 1, groups * n, seen] and [rows * groups * n, kept from there]; the second one is
        None if everything from there on is seen.
        """
        device, dtype = states.device, states.dtype
        key = (window, groups, dtype, device)
        if key not in self._masks:
            seen = self._mask.shape[1]
            index = torch.arange(seen, device=device)
            query = index[-n:, None]
            after = (self._mask.to(device)[:, None, :] > 0) & (index <= query)  # [rows, n, seen]
            if window is not None:
                after &= query - index < window
            after |= index == query  # padding sees itself, so that its softmax is defined
            first, prefix_mask = 0, None
            if window is not None and self._prefix + seen > window:
                first = min(max(0, self._prefix - window + 1), self._prefix - 1)
                kept = torch.arange(first, self._prefix, device=device)
                near = self._positions(n).to(device)[:, :, None] - kept < window  # [rows, n, kept]
                prefix_mask = additive(near, dtype).repeat(1, groups, 1).flatten(0, 1)
            self._masks[key] = additive(after, dtype).repeat(1, groups, 1)[:, None], first, prefix_mask
        return self._masks[key]
