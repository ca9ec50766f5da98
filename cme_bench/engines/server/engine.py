"""The engine: requests become a server's, its answers become responses."""

from __future__ import annotations

import asyncio
import functools
import queue
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

from cme_bench.engines.base import (
    Engine,
    EngineStats,
    GenerateRequest,
    GenerateResponse,
    LoglikelihoodRequest,
    Request,
    Response,
)
from cme_bench.engines.inbox import Inbox, Numbered
from cme_bench.engines.server.asking import echoing, generating, prompt_of, read
from cme_bench.engines.server.client import Server
from cme_bench.engines.server.likelihood import TokenScores, read_scores, response_of
from cme_bench.engines.server.probe import Served, check_still_served
from cme_bench.engines.server.reply import Reply
from cme_bench.engines.stopping import cut_at_stop, read_answer
from cme_bench.engines.thoughts import Legs
from cme_bench.util.errors import CmeError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Answer: TypeAlias = tuple[Response, int]
"""A response, and how often the server had been lost when it came."""
NO_THOUGHTS = "the server returns no token ids, so a thought cannot be cut: use --thinking off"
AHEAD = 2
"""Questions in work for each request that may be asked at a time: their rows wait for their turn."""


class ServerEngine(Engine):
    """Ask a server, several requests at a time.

    ``end_ids`` end a generation. Likelihoods are asked by echo, as ``likelihood`` has proven before.
    """

    def __init__(
        self,
        server: Server,
        served: Served,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        *,
        max_length: int,
    ) -> None:
        self.server, self.served = server, served
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self.max_length = max_length
        self.target_in_flight = server.concurrency
        self.stats = EngineStats()
        self._checked = server.losses

    def serve(self, inbox: Inbox) -> Iterator[tuple[int, Response]]:
        """As ``Engine.serve``, continuously. What is in work when a request fails is yielded before."""
        done: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
        in_work: dict[Future[Answer], Numbered] = {}
        waiting: deque[Numbered] = deque()
        failure: CmeError | None = None
        most = AHEAD * self.server.concurrency
        try:
            while True:
                while failure is None and len(in_work) < most:
                    waiting = waiting or deque(
                        sorted(inbox.take(wait=not in_work), key=lambda numbered: numbered[1].prompt)
                    )
                    if not waiting:
                        break
                    self._start(waiting.popleft(), in_work, done)
                if not in_work:
                    break
                started = time.perf_counter()
                future = done.get()
                self.stats.model_seconds += time.perf_counter() - started
                number, request = in_work.pop(future)
                try:
                    response, losses = future.result()
                    if losses > self._checked:
                        check_still_served(self.server, self.served)
                        self._checked = losses
                except CmeError as error:
                    failure = failure or error
                    continue
                self.stats.count(request, response)
                yield number, response
        finally:
            for future in in_work:
                future.cancel()
        if failure is not None:
            raise failure

    def _start(
        self,
        numbered: Numbered,
        in_work: dict[Future[Answer], Numbered],
        done: queue.SimpleQueue[Future[Answer]],
    ) -> None:
        future = self.server.loop.start(self._answer(*numbered))
        in_work[future] = numbered
        future.add_done_callback(done.put)

    async def _answer(self, number: int, request: Request) -> Answer:
        if isinstance(request, GenerateRequest):
            return await self._text(request), self.server.losses
        return await self._likelihood(number, request), self.server.losses

    async def _text(self, request: GenerateRequest) -> GenerateResponse:
        dialect = self.served.dialect
        legs = Legs(request, functools.partial(self._decoded, special=True))
        while True:
            leg = legs.leg
            prompt = prompt_of(leg.prompt, dialect, self.tokenizer)
            reply = await self.server.ask(prompt=prompt, **generating(leg, dialect, self.end_ids))
            self._count(reply, len(leg.prompt))
            tokens = reply.new_ids
            if tokens is None:
                if request.thought is not None:
                    raise UsageError(f"{self.server.url}: {NO_THOUGHTS}")
                return _as_told(request, reply, len(read(self.tokenizer, reply.text)))
            decode = functools.partial(self._decoded, special=leg.special)
            ended = bool(tokens) and tokens[-1] in self.end_ids.union(leg.ends)
            whole = legs.take(tokens, read_answer(leg, tokens, ended=ended, decode=decode))
            if whole is not None:
                return whole

    def _decoded(self, tokens: Any, *, special: bool) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=not special))

    async def _likelihood(self, number: int, request: LoglikelihoodRequest) -> Response:
        rows = list(dict.fromkeys(context + choice for context, choice in request.rows if choice))
        settings = echoing(extras=self.served.dialect.extras)

        async def score(row: tuple[int, ...]) -> TokenScores:
            reply = await self.server.ask(prompt=list(row), **settings)
            self._count(reply, len(row))
            return read_scores(reply, row)

        found = await asyncio.gather(*map(score, rows))
        return response_of(request, dict(zip(rows, found, strict=True)), number)

    def _count(self, reply: Reply, n_prompt: int) -> None:
        """Count a reply's tokens. UsageError if the server read another number of them than it was sent."""
        if reply.n_prompt is not None and reply.n_prompt != n_prompt:
            raise UsageError(
                f"{self.server.url}: {self.served.name} read {reply.n_prompt} tokens of a prompt of "
                f"{n_prompt}: its tokenizer, or what it puts before a prompt, is not as in other engines"
            )
        self.stats.tokens_computed += n_prompt + max(0, (reply.n_new or 0) - 1)

    def describe(self) -> dict[str, str]:
        """Return engine, address, the served model and how it was asked."""
        import openai

        return {
            "engine": "server",
            "server": self.server.url,
            "served": self.served.name,
            "fingerprint": self.served.fingerprint,
            "prompts": self.served.dialect.name,
            "dtype": "unknown",
            "logits": "unknown",
            "device": "unknown",
            "openai": openai.__version__,
        }


def _as_told(request: GenerateRequest, reply: Reply, n_read: int) -> GenerateResponse:
    """Return the response of a server that gives text and no token ids.

    It says "stop" for an end token and for a stop string alike: which it was is only known where it names the
    string, as vLLM does, or where none was asked for. ``n_read``: tokens of its text, if it counts none.
    """
    cut = cut_at_stop(reply.text, request.stop)
    text = reply.text if cut is None else cut
    n_tokens = reply.n_new if reply.n_new is not None else n_read
    if cut is None and reply.finish == "length":
        return GenerateResponse(text, n_tokens, "length")
    by_string = cut is not None or isinstance(reply.stopped_by, str)
    return GenerateResponse(text, n_tokens, "stop" if by_string else "eos")
