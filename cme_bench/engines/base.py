"""The contract between the runner and every engine (HF, vLLM, ray).

An engine never sees a task: it receives token ids and returns text or log-likelihoods. Requests and
responses are small frozen dataclasses that pickle, hash and compare by value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias

from cme_bench.engines.logits import LogitsError
from cme_bench.errors import CmeError

TokenIds: TypeAlias = tuple[int, ...]
"""Token ids of one text, special tokens included where the model expects them."""

FinishReason: TypeAlias = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class LoglikelihoodRequest:
    """One question with all its choices.

    ``rows[j] = (context, continuation)`` of choice j: both are token ids, the context is not empty. The
    contexts of one request are usually the same tuple, but may differ (a cloze that fills the choice into
    the context, a token that merges over the boundary). A continuation may be empty: it scores 0.0.
    """

    rows: tuple[tuple[TokenIds, TokenIds], ...]

    @property
    def n_tokens(self) -> int:
        """Of the longest row."""
        return max(len(context) + len(continuation) for context, continuation in self.rows)


@dataclass(frozen=True, slots=True)
class LoglikelihoodResponse:
    """``logprobs[j]``: natural log of P(continuation j | context j), summed over its tokens.

    ``greedy[j]``: whether every token of continuation j is the argmax at its place.
    """

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Greedy continuation of ``prompt``, at most ``max_new_tokens`` tokens, cut before the first stop string.

    The model's own end-of-sequence tokens always stop it.
    """

    prompt: TokenIds
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Prompt and new tokens together."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class GenerateResponse:
    """``text`` ends before the first stop string and holds no special tokens; ``n_tokens`` counts what was
    generated, an end-of-sequence token included. ``finish`` says why it ended."""

    text: str
    n_tokens: int
    finish: FinishReason


Feed: TypeAlias = Iterator[tuple[int, LoglikelihoodRequest | GenerateRequest] | None]
"""Requests of one kind that arrive while others are computed, each with an index of the caller's. None: there
is none right now. While nothing is unanswered the iterator waits for a request or its end instead."""


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was made; they only grow."""

    requests: int = 0
    tokens_computed: int = 0  # positions that went through the network, padding left out
    tokens_padding: int = 0  # positions computed only because rows of a batch differ in length
    tokens_rowwise: int = 0  # what an engine would compute that runs every (context, continuation) row alone
    tokens_generated: int = 0
    model_seconds: float = 0.0
    peak_memory_bytes: int = 0
    extra: dict[str, float] = field(default_factory=dict)

    @classmethod
    def total(cls, parts: Iterable[EngineStats]) -> EngineStats:
        """Of several engines: sums, and the largest peak."""
        whole = cls()
        for part in parts:
            for name in (f.name for f in fields(cls) if f.name not in ("peak_memory_bytes", "extra")):
                setattr(whole, name, getattr(whole, name) + getattr(part, name))
            whole.peak_memory_bytes = max(whole.peak_memory_bytes, part.peak_memory_bytes)
            for name, value in part.extra.items():
                whole.extra[name] = whole.extra.get(name, 0.0) + value
        return whole


class UnansweredError(CmeError):
    """Some requests have no response, because no engine survived them; all others were yielded before.

    ``reasons``: by index of the request, what the last engine died of.
    """

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(f"{len(reasons)} requests could not be answered")
        self.reasons = dict(reasons)


class Engine(ABC):
    """Computes requests for one loaded model.

    Both methods yield ``(index, response)`` in the order in which batches finish, each index exactly once;
    a consumer that stops reading stops the work. Results do not depend on the order of the requests or on
    what else is in the batch (fp32: to 1e-4). Requests longer than ``max_length`` are the caller's mistake:
    ``ValueError``. An engine that can outlive its processes raises ``UnansweredError`` at the end, for
    requests that none of them survived.
    """

    max_length: int
    """Most tokens a row may have: context plus continuation, or prompt plus new tokens. Its last token is
    never fed, so a model of n positions takes n + 1."""

    appetite: int = 1
    """Requests in work at a time with which it is about as fast as it can be."""

    stats: EngineStats

    @abstractmethod
    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]: ...

    @abstractmethod
    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]: ...

    def serve(self, feed: Feed) -> Iterator[tuple[int, Any]]:
        """``(index, response)`` to what ``feed`` brings, until it ends; lengths are the caller's to check.

        An engine that computes batch by batch takes what is there, answers it, and looks again.
        """
        for entries in filter(None, gathered(feed)):
            requests: list[Any] = [request for _, request in entries]
            generated = isinstance(requests[0], GenerateRequest)
            try:
                for place, response in (self.generate if generated else self.loglikelihood)(requests):
                    yield entries[place][0], response
            except LogitsError as error:
                index = None if error.request is None else entries[error.request][0]
                raise LogitsError.at(index, error.where) from error

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """What a result record must name: engine, dtype, device and the versions that compute."""

    def close(self) -> None:  # noqa: B027 - most engines hold nothing that needs closing
        """Free what the engine holds (worker processes, device memory)."""


def gathered(feed: Feed) -> Iterator[list[tuple[int, LoglikelihoodRequest | GenerateRequest]]]:
    """What is there each time that somebody asks; nothing if it is nothing."""
    entries = []
    for entry in feed:
        if entry is not None:
            entries.append(entry)
        else:
            yield entries
            entries = []
    if entries:
        yield entries
