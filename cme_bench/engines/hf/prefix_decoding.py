"""Decoding a batch whose rows share a prefix: its keys and values are held once, whatever the batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.tree_attention import (
    Asked,
    Path,
    UnsupportedAttentionError,
    additive,
    attention_of,
    fold,
    merge,
)


class PrefixSession:
    """Rows after the first ``prefix`` tokens of ``path``. A :class:`generate.DecodingSession`."""

    def __init__(self, forward: CausalForward, path: Path, prefix: int) -> None:
        self._forward = forward
        self._path = path
        self._prefix = prefix
        self._own: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # [rows, key heads, seen, head size]
        self._mask = torch.empty(0)
        self._masks: dict[tuple[int | None, int, torch.dtype], tuple[Tensor, int, Tensor | None]] = {}
        self.device = forward.device

    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As the protocol says; ``mask`` does not cover the prefix."""
        self._mask = mask
        self._masks.clear()
        with attention_of(self._forward.model, self._attend):
            logits = self._forward.uncached(ids, self._positions(ids.shape[1]), 1)
        return logits[:, -1]

    def can_select(self) -> bool:
        return True

    def select(self, kept: Tensor) -> None:
        for module, (keys, values) in self._own.items():
            self._own[module] = keys[kept], values[kept]

    def _positions(self, n: int) -> Tensor:
        """[rows, n], of the newest tokens."""
        return self._prefix + (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -n:]

    def _attend(self, asked: Asked) -> Tensor:
        module, query, key, value = asked.module, asked.query, asked.key, asked.value
        rows, heads, n, _ = query.shape
        if key.shape[2] != n:
            raise UnsupportedAttentionError("the model does not attend to exactly the tokens it was fed")
        if module in self._own:
            key, value = (torch.cat(pair, 2) for pair in zip(self._own[module], (key, value), strict=True))
        self._own[module] = key, value
        groups = asked.groups
        own_mask, first, prefix_mask = self._masks_for(asked.window, groups, n, query.dtype)
        own, own_lse = asked.attend(fold(query, groups), key, value, mask=own_mask)
        own, own_lse = own.reshape(rows, heads, n, -1), own_lse.reshape(rows, heads, n)

        keys, values = (states[:, :, first:] for states in self._path.head(module, self._prefix))
        flat = fold(query, groups).transpose(0, 1).reshape(1, heads // groups, rows * groups * n, -1)
        seen, lse = asked.attend(flat, keys, values, mask=prefix_mask)
        seen = seen.reshape(heads // groups, rows, groups * n, -1).transpose(0, 1).reshape(own.shape)
        lse = lse.reshape(heads // groups, rows, groups * n).transpose(0, 1).reshape(own_lse.shape)
        return merge(seen, lse, own, own_lse).transpose(1, 2)

    def _masks_for(
        self, window: int | None, groups: int, n: int, dtype: torch.dtype
    ) -> tuple[Tensor, int, Tensor | None]:
        """Masks of the rows' own keys, [rows, 1, groups * n, seen], and of the prefix from its first token
        that is seen, [rows * groups * n, kept from there] or None."""
        wanted = (window, groups, dtype)
        if wanted not in self._masks:
            seen = self._mask.shape[1]
            place = torch.arange(seen, device=self.device)
            query = place[-n:, None]
            own = (self._mask[:, None, :] > 0) & (place <= query)  # [rows, n, seen]
            if window is not None:
                own &= query - place < window
            own |= place == query  # padding sees itself, so that its softmax is defined
            first, prefix_mask = 0, None
            if window is not None and self._prefix + seen > window:
                first = min(max(0, self._prefix - window + 1), self._prefix - 1)
                kept = torch.arange(first, self._prefix, device=self.device)
                near = self._positions(n)[:, :, None] - kept < window  # [rows, n, kept]
                prefix_mask = additive(near, dtype).repeat(1, groups, 1).flatten(0, 1)
            own_mask = additive(own, dtype).repeat(1, groups, 1)[:, None]
            self._masks[wanted] = own_mask, first, prefix_mask
        return self._masks[wanted]
