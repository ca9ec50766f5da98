"""A thought before an answer, for every engine that continues token ids: one continuation after the other.

A thought has a budget of its own. Where it is used up, the thought is closed and the model answers within the
task's own limit (budget forcing: Qwen3's documentation; Muennighoff et al. 2025, s1). So an answer of eight
tokens has its eight tokens, however long the thought was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from cme_bench.engines.requests import (
    GenerateRequest,
    GenerateResponse,
    Sampling,
    Thought,
    ThoughtEnd,
    TokenIds,
)

_BLANKS = 2
"""So many tokens of blanks may stand before the mark that begins a thought."""


class Legs:
    """Answer one request by continuations of token ids: ``leg`` is the next to ask for.

    ``text`` decodes token ids, special tokens included. A request without a thought has one leg, itself. A
    prompt that does not open a thought is tried with a few tokens first: a model that begins otherwise
    answers as if it had not been asked to think.
    """

    def __init__(self, request: GenerateRequest, text: Callable[[Sequence[int]], str]) -> None:
        self.request = request
        self.leg = request
        self._text = text
        self._n_legs = 0
        self._tokens: TokenIds = ()
        self._n_ends = 0
        self._trying = False
        self._answers = request.thought is None
        self._before = ""
        self._end: ThoughtEnd | None = None
        if request.thought is not None:
            self._begin(request.thought)

    def _begin(self, thought: Thought) -> None:
        if thought.opened:
            if thought.budget:
                self._think(thought, thought.budget)
            else:
                self._answer(thought.closing, "budget")
        elif thought.budget:
            self._trying = True
            self._think(thought, min(thought.budget, len(thought.start.encode()) + _BLANKS))
        else:
            self._answer_only()

    def _think(self, thought: Thought, most: int) -> None:
        """Go on with the thought, for so many tokens at most."""
        self.leg = GenerateRequest(
            self.request.prompt + self._tokens,
            most,
            (thought.end,),
            self._sampling(),
            special=True,
            images=self.request.images,
            ends=self.request.ends,
        )

    def _answer(self, between: TokenIds, end: ThoughtEnd) -> None:
        """Ask for the answer after the thought and the ids ``between``."""
        self._answers, self._end = True, end
        prompt = self.request.prompt + self._tokens + between
        self.leg = replace(self.request, prompt=prompt, thought=None, sampling=self._sampling())

    def _answer_only(self) -> None:
        """Ask for what a model answers that does not think."""
        self._answers, self._tokens = True, ()
        self.leg = replace(self.request, thought=None)

    def _sampling(self) -> Sampling | None:
        """Return the sampling of the next leg: every leg draws anew, the first by the request's own seed."""
        given = self.request.sampling
        if given is None or self._n_legs == 0:
            return given
        digest = hashlib.sha256(f"{given.seed}:{self._n_legs}".encode()).digest()
        return replace(given, seed=int.from_bytes(digest[:8], "big") >> 1)

    def take(self, tokens: Sequence[int], response: GenerateResponse) -> GenerateResponse | None:
        """Take the ``tokens`` and the response of a leg; return the whole response, or None: ask ``leg``."""
        self._n_legs += 1
        thought = self.request.thought
        if self._answers:
            return response if self._end is None or thought is None else self._whole(response, thought)
        assert thought is not None
        ended = response.finish == "eos"
        self._n_ends = int(ended)
        self._tokens += tuple(tokens[:-1] if ended else tokens)
        text = self._text(self._tokens)
        if self._trying and not text.lstrip().startswith(thought.start):
            self._answer_only()
            return None
        self._trying = False
        return self._thought_on(text, thought, ended=ended)

    def _thought_on(self, text: str, thought: Thought, *, ended: bool) -> GenerateResponse | None:
        """Decide what follows a thought of this ``text``; ``ended``: the model ended its whole response."""
        if thought.end in text:
            self._cut(thought)
            rest = self._text(self._tokens).partition(thought.end)[2]
            self._before = rest.lstrip()
            self._answer(() if rest else thought.after, "closed")
        elif ended:
            self._end = "unclosed"
            return self._whole(GenerateResponse("", 0, "eos"), thought)
        elif len(self._tokens) >= thought.budget:
            self._answer(thought.closing, "budget")
        else:
            self._think(thought, thought.budget - len(self._tokens))
        return None

    def _cut(self, thought: Thought) -> None:
        """Drop what was generated after the token that completes the mark."""
        while thought.end in self._text(self._tokens[:-1]):
            self._tokens = self._tokens[:-1]

    def _whole(self, answer: GenerateResponse, thought: Thought) -> GenerateResponse:
        before = self._text(self._tokens).partition(thought.end)[0].lstrip().removeprefix(thought.start)
        return replace(
            answer,
            text=self._before + answer.text,
            thought=before.strip(),
            n_thought=len(self._tokens) + self._n_ends,
            thought_end=self._end,
        )
