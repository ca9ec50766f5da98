"""Decoding of a batch, rows leaving it as they finish."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from cme_bench.engines.base import FinishReason, GenerateRequest, GenerateResponse
from cme_bench.engines.hf.batching import by_length
from cme_bench.engines.hf.forward import CausalForward, left_pad
from cme_bench.engines.hf.sampling import draw
from cme_bench.engines.hf.work import DeviceTimer
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.stopping import cut_at_stop, read_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UTF8_LONGEST = 4


@dataclass(slots=True)
class GenerationRow:
    """Hold request ``index`` and the tokens that are generated for it so far.

    The first ``prefix`` tokens of its prompt are computed elsewhere; ``owner``: which prefix they are, where
    a batch has several.
    """

    index: int
    request: GenerateRequest
    prefix: int = 0
    owner: int = 0
    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None

    @property
    def n_input(self) -> int:
        return len(self.request.prompt) - self.prefix

    @property
    def n_new(self) -> int:
        return self.request.n_new


@dataclass(slots=True)
class Positions:
    """Count positions that went through the network: of rows at work, and of padding and finished rows.

    ``timers``: the device's time of every forward.
    """

    computed: int = 0
    padding: int = 0
    timers: list[DeviceTimer] = field(default_factory=list)

    def feed(self, session: DecodingSession, ids: Tensor, mask: Tensor) -> Tensor:
        """Return what ``session.feed`` does; time it."""
        timer = DeviceTimer(session.device)
        logits = session.feed(ids.to(session.device), mask)
        timer.stop()
        self.timers.append(timer)
        return logits


def plan_generation(
    requests: Sequence[GenerateRequest], indices: Sequence[int], prefix: int = 0, owner: int = 0
) -> list[GenerationRow]:
    """Return one row for each of ``indices``, longest first."""
    rows = [GenerationRow(index, requests[index], prefix, owner) for index in indices]
    return longest_first(rows)


def longest_first(rows: Sequence[GenerationRow]) -> list[GenerationRow]:
    """Return rows by the tokens that they take, longest first."""
    return sorted(rows, key=lambda row: -(row.n_input + row.n_new))


def most_steps_first(rows: Sequence[GenerationRow]) -> list[GenerationRow]:
    """Return rows by the tokens that may be generated, then by those of the prompt: batches end together."""
    return sorted(rows, key=lambda row: (-row.n_new, -row.n_input))


class DecodingSession(Protocol):
    """Decode one batch: a model with what it has seen so far."""

    device: torch.device

    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return logits [rows, vocab] after ``ids`` [rows, n], which are added to what was seen.

        ``mask`` [rows, seen + n] is 0 on padding.
        """

    def can_select(self, kept: int) -> bool:
        """Tell whether rows can be dropped, so that so many are ``kept``, and are worth dropping."""

    def select(self, kept: Tensor) -> None:
        """Go on with the rows ``kept`` only."""


@runtime_checkable
class InParts(Protocol):
    """A session that computes prompts in parts; ``prefilled``: how many positions so far."""

    prefilled: int


Sessions: TypeAlias = Callable[[Sequence[GenerationRow]], DecodingSession]
"""Makes what decodes a batch of rows."""


def for_any(make: Callable[[], DecodingSession]) -> Sessions:
    """Return what makes a session that is the same for all rows."""
    return lambda rows: make()


class CacheSession:
    """Decode with transformers' own cache."""

    def __init__(self, forward: CausalForward) -> None:
        self._forward = forward
        self._cache: Any = None
        self.device = forward.device

    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self._forward.seeing(ids) if self._cache is None else contextlib.nullcontext():
            logits, self._cache = self._forward(ids, mask, keep=1, cache=self._cache, use_cache=True)
        return logits[:, -1]

    def can_select(self, kept: int) -> bool:
        return _can_select(self._cache)

    def select(self, kept: Tensor) -> None:
        self._cache.batch_select_indices(kept.cpu() if self._forward.spread else kept)


class RecomputingSession:
    """Decode by feeding whole rows at every step: for models without a cache that can be trusted."""

    def __init__(self, forward: CausalForward) -> None:
        self._forward = forward
        self._ids = torch.empty(0, 0, dtype=torch.int64)
        self.device = forward.device

    def feed(self, ids: Tensor, mask: Tensor) -> Tensor:
        self._ids = torch.cat((self._ids, ids), 1) if self._ids.numel() else ids
        return self.last_logits(self._ids, mask)

    def last_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the logits after the last token of each whole row."""
        with self._forward.seeing(ids):
            logits, _ = self._forward(ids, mask, keep=1)
        return logits[:, -1]

    def can_select(self, kept: int) -> bool:
        return True

    def select(self, kept: Tensor) -> None:
        self._ids = self._ids[kept]


class Decoder:
    """Decode by argmax, or by drawing where a request is sampled.

    What a generation config says (a temperature, a repetition penalty) does not apply. ``decode_batch`` knows
    nothing of thoughts: requests are the legs of :class:`~cme_bench.engines.thoughts.Legs`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_ids = end_ids

    @torch.inference_mode()
    def decode_batch(
        self, rows: Sequence[GenerationRow], session: DecodingSession, positions: Positions
    ) -> list[GenerateResponse]:
        """Return responses of ``rows``, in their order; add what was computed to ``positions``.

        Raises LogitsError when a row's logits are NaN or plus infinity.
        """
        for row in rows:  # a batch that ran out of memory begins again
            row.tokens.clear()
            row.finish = None
        ids, mask = left_pad([row.request.prompt[row.prefix :] for row in rows])
        most_new = max(row.n_new for row in rows)
        mask = torch.nn.functional.pad(mask, (0, most_new), value=1).to(session.device)
        n_fed = ids.shape[1]
        computed = sum(row.n_input for row in rows)
        positions.computed += computed

        batch = list(rows)
        logits = positions.feed(session, ids, mask[:, :n_fed])
        fed = session.prefilled if isinstance(session, InParts) else ids.numel()
        positions.padding += fed - computed
        while True:
            token = _next_tokens(logits, batch)  # [rows]
            for row, choice in zip(batch, token.tolist(), strict=True):
                if row.finish is None:
                    self._append(row, choice)
            at_work = [i for i, row in enumerate(batch) if row.finish is None]
            if not at_work:
                return [self._respond(row) for row in rows]
            if len(at_work) < len(batch) and session.can_select(len(at_work)):
                kept = torch.tensor(at_work, device=token.device)
                session.select(kept)
                token, mask = token[kept], mask[kept.to(mask.device)]
                batch = [batch[i] for i in at_work]
            positions.computed += len(at_work)
            positions.padding += len(batch) - len(at_work)
            n_fed += 1
            logits = positions.feed(session, token.clamp(min=0)[:, None], mask[:, :n_fed])

    def decode_by_length(
        self,
        rows: Sequence[GenerationRow],
        session: Sessions,
        positions: Positions,
    ) -> list[GenerateResponse]:
        """Return responses of ``rows``, in their order, without padding: those of one length at a time."""
        responses: dict[int, GenerateResponse] = {}
        for indices in by_length(rows):
            alike = [rows[i] for i in indices]
            responses |= zip(indices, self.decode_batch(alike, session(alike), positions), strict=True)
        return [responses[i] for i in range(len(rows))]

    def _append(self, row: GenerationRow, token: int) -> None:
        """Add ``token`` to ``row`` and decide whether that ends it."""
        if token < 0:
            raise LogitsError.at(row.index, f" after {len(row.tokens)} new tokens")
        row.tokens.append(token)
        if token in self._end_ids or token in row.request.ends:
            row.finish = "eos"
        elif self._has_stopped(row):
            row.finish = "stop"
        elif len(row.tokens) == row.request.max_new_tokens:
            row.finish = "length"

    def _has_stopped(self, row: GenerationRow) -> bool:
        """Tell whether the text holds a stop string.

        Only the tail is decoded until one shows up there: every token is at least a byte, and a first
        character may be cut.
        """
        stop = row.request.stop
        longest = max((len(s.encode()) for s in stop), default=0)
        if longest == 0:
            return False
        tail = row.tokens[-(longest + _UTF8_LONGEST) :]
        special = row.request.special
        return (
            cut_at_stop(self.text(tail, special=special), stop) is not None
            and cut_at_stop(self.text(row.tokens, special=special), stop) is not None
        )

    def _respond(self, row: GenerationRow) -> GenerateResponse:
        assert row.finish is not None
        decode = functools.partial(self.text, special=row.request.special)
        return read_answer(row.request, row.tokens, ended=row.finish == "eos", decode=decode)

    def text(self, tokens: Sequence[int], *, special: bool) -> str:
        """Return the text of tokens; ``special``: whether special ones belong to it."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not special))


def _next_tokens(logits: Tensor, batch: Sequence[GenerationRow]) -> Tensor:
    """Return the next token [rows] of each row, by ``logits`` [rows, vocab]; -1 where they are no numbers."""
    token = _argmax_or_nan(logits)
    sampled = [i for i, row in enumerate(batch) if row.request.sampling is not None and row.finish is None]
    if sampled:
        places = torch.tensor(sampled, device=logits.device)
        how = [(s, len(batch[i].tokens)) for i in sampled if (s := batch[i].request.sampling) is not None]
        token[places] = draw(logits[places], how)
    return token


def _argmax_or_nan(logits: Tensor) -> Tensor:
    """Return the token [rows] of the highest of ``logits`` [rows, vocab]; -1 if that is NaN or infinite."""
    return logits.argmax(-1).masked_fill(~logits.amax(-1).isfinite(), -1)  # a NaN counts as the highest


def _can_select(cache: Any) -> bool:
    """Tell whether rows can be dropped from ``cache``: all its state must be keys and values by row."""
    from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

    return hasattr(cache, "batch_select_indices") and all(
        isinstance(layer, DynamicLayer) and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in getattr(cache, "layers", [None])
    )
