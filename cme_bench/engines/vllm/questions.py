"""Questions in work: the calls that vLLM gets for them, and the responses that its outputs complete."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

from cme_bench.engines.base import (
    GenerateRequest,
    LoglikelihoodRequest,
    Request,
    Response,
    TokenIds,
)
from cme_bench.engines.inbox import Numbered
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.stopping import read_answer
from cme_bench.engines.thoughts import Legs
from cme_bench.engines.vllm.choices import ChoiceScore, Collector, Query, ScoredToken, Tail
from cme_bench.engines.vllm.flight import Call
from cme_bench.engines.vllm.sampling import generating_params, likeliest_params, scoring_params

PROBED_TOKENS = 20

Answered: TypeAlias = tuple[int, Request, Response]
"""A request with its number and its response."""


class Questions(Protocol):
    """Turn requests of one kind into calls, and outputs into responses; true while one is unanswered."""

    def __bool__(self) -> bool: ...

    @property
    def waiting(self) -> bool:
        """Tell whether something is not asked yet."""

    def add(self, batch: Iterable[Numbered]) -> None:
        """Take requests on."""

    def next_call(self) -> Call | None:
        """Return what to ask of vLLM next; None if everything is asked."""

    def read(self, call: Any, output: Any) -> Iterator[Answered]:
        """Yield the requests that the RequestOutput of ``call`` completes."""


@dataclass(frozen=True, slots=True)
class ScoringCall:
    """Ask for the scores of a query. ``past_cache``: compute the whole prompt."""

    number: int
    query: Query
    past_cache: bool = False

    @property
    def prompt(self) -> TokenIds:
        return self.query.prompt

    @property
    def params(self) -> Any:
        return scoring_params(self.query.children, self.query.scored, past_cache=self.past_cache)


class Likelihoods:
    """Ask likelihood requests in the ways of ``choices``, for a cache with blocks of ``block`` tokens."""

    def __init__(self, block: int) -> None:
        self._collector = Collector(block)
        self._waiting: deque[tuple[int, LoglikelihoodRequest]] = deque()
        self._calls: deque[ScoringCall] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._collector)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting or self._calls)

    def add(self, batch: Iterable[Numbered]) -> None:
        self._waiting.extend(cast("Iterable[tuple[int, LoglikelihoodRequest]]", batch))

    def next_call(self) -> ScoringCall | None:
        while self._waiting and not self._calls:
            number, request = self._waiting.popleft()
            self._calls.extend(
                ScoringCall(number, query) for query in self._collector.queries(number, request)
            )
        return self._calls.popleft() if self._calls else None

    def read(self, call: ScoringCall, output: Any) -> Iterator[Answered]:
        query = call.query
        if isinstance(query, Tail) and (output.num_cached_tokens or 0) >= len(query.context):
            # tokens of the choice came from the cache: they have no logits
            self._calls.appendleft(ScoringCall(call.number, query, past_cache=True))
            return
        for number, request, response in self._collector.take(query, _scores(query, output)):
            if any(math.isnan(logprob) for logprob in response.logprobs):
                raise LogitsError.at(number)
            yield number, request, response


def _scores(query: Query, output: Any) -> dict[ScoredToken, ChoiceScore]:
    """Return the scores that a RequestOutput holds."""
    generated = output.outputs[0]
    argmax = int(generated.token_ids[0])
    scores = {
        (query.prompt, token): ChoiceScore(float(generated.logprobs[0][token].logprob), argmax == token)
        for token in query.children
    }
    if isinstance(query, Tail):
        before = query.continuation[:-1]
        for depth, token in enumerate(before):
            logprob = output.prompt_logprobs[depth - len(before)][token]
            scores[query.context + before[:depth], token] = ChoiceScore(
                float(logprob.logprob), logprob.rank == 1
            )
    return scores


@dataclass(frozen=True, slots=True)
class GeneratingCall:
    """Ask for one leg of a continuation, which ``end_ids`` end."""

    number: int
    legs: Legs
    end_ids: frozenset[int]

    @property
    def prompt(self) -> TokenIds:
        return self.legs.leg.prompt

    @property
    def params(self) -> Any:
        return generating_params(self.legs.leg, self.end_ids)


class TextOf(Protocol):
    """Decode tokens; ``special``: whether special ones belong to the text."""

    def __call__(self, tokens: Sequence[int], *, special: bool) -> str: ...


class Continuations:
    """Ask generation requests leg by leg; text and reason come from the token ids, as in any engine."""

    def __init__(self, end_ids: frozenset[int], text: TextOf) -> None:
        self._end_ids = end_ids
        self._decode = text
        self._waiting: deque[tuple[int, Legs]] = deque()
        self._n_asked = 0

    def __bool__(self) -> bool:
        return bool(self._waiting or self._n_asked)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def add(self, batch: Iterable[Numbered]) -> None:
        text = functools.partial(self._decode, special=True)
        requests = cast("Iterable[tuple[int, GenerateRequest]]", batch)
        self._waiting.extend((number, Legs(request, text)) for number, request in requests)

    def next_call(self) -> GeneratingCall | None:
        if not self._waiting:
            return None
        self._n_asked += 1
        return GeneratingCall(*self._waiting.popleft(), self._end_ids)

    def read(self, call: GeneratingCall, output: Any) -> Iterator[Answered]:
        tokens = list(output.outputs[0].token_ids)
        self._n_asked -= 1
        legs = call.legs
        ended = bool(tokens) and tokens[-1] in self._end_ids.union(legs.leg.ends)
        decode = functools.partial(self._decode, special=legs.leg.special)
        whole = legs.take(tokens, read_answer(legs.leg, tokens, ended=ended, decode=decode))
        if whole is not None:
            yield call.number, legs.request, whole
        else:
            self._waiting.appendleft((call.number, legs))


@dataclass(frozen=True, slots=True)
class ProbeCall:
    """Ask for the likeliest tokens after ``prompt``."""

    number: int
    prompt: TokenIds

    @property
    def params(self) -> Any:
        return likeliest_params(PROBED_TOKENS)
