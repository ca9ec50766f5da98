"""Drawing tokens by noise that a counter makes: the same whatever else is in the batch, and on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cme_bench.engines.requests import Sampling

_AT_ONCE = 1 << 24
"""Numbers of noise that are held at a time, 128 MiB in float64."""
_WORD = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64 (Steele, Lea and Flood 2014)."""


def draw(logits: Tensor, rows: Sequence[tuple[Sampling, int]]) -> Tensor:
    """Return a token [rows] for each row of ``logits`` [rows, vocab]; -1 where the highest is not finite.

    ``rows``: how each is sampled, and how many tokens were drawn for it before. The token is the argmax of
    log-probability plus Gumbel noise, a function of seed, count and token id: an exact draw (Gumbel 1954).
    """
    if logits.device.type == "mps":  # which has no float64
        return draw(logits.cpu(), rows).to(logits.device)
    step = max(1, _AT_ONCE // logits.shape[1])
    parts = [
        _draw(logits[start : start + step], rows[start : start + step]) for start in range(0, len(rows), step)
    ]
    return torch.cat(parts)


def _draw(logits: Tensor, rows: Sequence[tuple[Sampling, int]]) -> Tensor:
    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    scaled = logits.double() / column([sampling.temperature for sampling, _ in rows])
    kept = restricted(
        scaled,
        column([sampling.top_k or logits.shape[1] for sampling, _ in rows]),
        column([sampling.top_p for sampling, _ in rows]),
    )
    noise = gumbel([(sampling.seed, count) for sampling, count in rows], logits.shape[1], logits.device)
    return (kept + noise).argmax(-1).masked_fill(~logits.amax(-1).isfinite(), -1)


def restricted(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Return ``scaled`` [rows, vocab] with minus infinity for tokens that may not be drawn.

    ``top_k`` and ``top_p`` are [rows, 1]. Kept are the ``top_k`` highest, and of those the fewest whose
    probabilities sum to ``top_p``; the highest always is.
    """
    if bool((top_k >= scaled.shape[1]).all()) and bool((top_p >= 1).all()):
        return scaled
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    ordered = ordered.masked_fill(torch.arange(scaled.shape[1], device=scaled.device) >= top_k, -torch.inf)
    shares = ordered.softmax(-1)
    before = shares.cumsum(-1) - shares
    dropped = (before >= top_p) & (top_p < 1)
    dropped[:, 0] = False
    return torch.full_like(scaled, -torch.inf).scatter(-1, order, ordered.masked_fill(dropped, -torch.inf))


def gumbel(keys: Sequence[tuple[int, int]], size: int, device: torch.device) -> Tensor:
    """Return standard Gumbel noise [keys, size] in float64: row i depends on ``keys[i]`` alone."""
    starts = [_mixed_key(seed, count) for seed, count in keys]
    begin = torch.tensor(starts, dtype=torch.int64, device=device)[:, None]
    words = begin + torch.arange(1, size + 1, device=device) * _signed(_STEP)
    uniform = (_shifted(_mixed(words), 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def _mixed_key(seed: int, count: int) -> int:
    """Return a well-mixed word of both, as a signed number."""
    word = seed & _WORD
    for more in (_STEP, count):
        word = (word + more) & _WORD
        word = ((word ^ (word >> 30)) * _FIRST) & _WORD
        word = ((word ^ (word >> 27)) * _SECOND) & _WORD
        word ^= word >> 31
    return _signed(word)


def _mixed(words: Tensor) -> Tensor:
    """Return SplitMix64's output for each state."""
    words = (words ^ _shifted(words, 30)) * _signed(_FIRST)
    words = (words ^ _shifted(words, 27)) * _signed(_SECOND)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Return ``words`` shifted right, zeros coming in."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
