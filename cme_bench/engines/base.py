"""The contract between the runner and every engine (HF, vLLM, ray).

An engine never sees a task: it takes requests of token ids from an inbox and yields responses.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import cast

from cme_bench.engines.checks import check_generate, check_loglikelihood
from cme_bench.engines.inbox import Given, Inbox
from cme_bench.engines.requests import (
    FinishReason,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    LoglikelihoodResponse,
    Request,
    Response,
    Sampling,
    Thought,
    ThoughtEnd,
    TokenIds,
)
from cme_bench.util.errors import CmeError

__all__ = [
    "Engine",
    "EngineStats",
    "FinishReason",
    "GenerateRequest",
    "GenerateResponse",
    "LoglikelihoodRequest",
    "LoglikelihoodResponse",
    "Request",
    "Response",
    "Sampling",
    "Thought",
    "ThoughtEnd",
    "TokenIds",
    "UnansweredError",
]


@dataclass(slots=True)
class EngineStats:
    """Count what an engine did since it was made; the counters only grow."""

    requests: int = 0
    tokens_computed: int = 0  # positions that went through the network, padding left out
    tokens_padding: int = 0  # positions computed only because rows of a batch differ in length
    tokens_rowwise: int = 0  # what an engine would compute that runs every (context, continuation) row alone
    tokens_generated: int = 0
    model_seconds: float = 0.0
    peak_memory_bytes: int = 0
    extra: dict[str, float] = field(default_factory=dict)

    def count(self, request: Request, response: Response) -> None:
        """Add one answered request."""
        self.requests += 1
        if isinstance(request, LoglikelihoodRequest):
            rows = [len(context) + len(choice) - 1 for context, choice in request.rows if choice]
            self.tokens_rowwise += sum(rows)
        elif isinstance(response, GenerateResponse):
            generated = response.n_tokens + response.n_thought
            self.tokens_generated += generated
            self.tokens_rowwise += len(request.prompt) + generated - 1

    def add(self, name: str, value: float) -> None:
        """Add to one of the ``extra`` counters."""
        self.extra[name] = self.extra.get(name, 0.0) + value

    @classmethod
    def total(cls, parts: Iterable[EngineStats]) -> EngineStats:
        """Add up the counters of several engines; of their memory peaks take the largest."""
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
    """Compute requests for one loaded model.

    An engine writes ``serve``, and ``describe`` for the record; the rest is here. Results do not depend on
    the order of the requests or on what else is in the batch (fp32: to 1e-4).
    """

    max_length: int
    """Most tokens a row may have: context plus continuation, or prompt plus new tokens. Its last token is
    never fed, so a model of n positions takes n + 1."""

    target_in_flight: int = 1
    """Requests in work at a time with which it is about as fast as it can be."""

    stats: EngineStats

    meanwhile: Callable[[], object] | None = None
    """Work of who asks that needs no response. An engine may do it while a device computes, more than once or
    not at all."""

    @abstractmethod
    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        """Yield ``(number, response)`` for every request of ``inbox`` until it is closed, each once.

        Responses come as they finish; a consumer that stops reading stops the work. Requests must be as
        ``check_loglikelihood`` and ``check_generate`` say. Raises LogitsError for logits that are NaN,
        CmeError for a request that exceeds the memory, and, from an engine that outlives its processes,
        UnansweredError at the end, for requests that none of them survived.
        """

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Return what a result record must name: engine, dtype, device and the versions that compute."""

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest]
    ) -> Iterator[tuple[int, LoglikelihoodResponse]]:
        """Yield ``(index, response)`` for every request, as they finish.

        Raises ValueError for a request that cannot be scored, at once; else as ``serve``.
        """
        check_loglikelihood(requests, self.max_length)
        return cast("Iterator[tuple[int, LoglikelihoodResponse]]", self.serve(Given(requests)))

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, GenerateResponse]]:
        """Yield ``(index, response)`` for every request, as they finish.

        Raises ValueError for a request that cannot be run, at once; else as ``serve``.
        """
        check_generate(requests, self.max_length)
        return cast("Iterator[tuple[int, GenerateResponse]]", self.serve(Given(requests)))

    def close(self) -> None:  # noqa: B027 - most engines hold nothing that needs closing
        """Free what the engine holds (worker processes, device memory)."""
