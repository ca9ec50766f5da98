"""Requests and responses: token ids in, text or log-likelihoods out.

They are small frozen dataclasses that pickle, hash and compare by value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from cme_bench.images.image import Image

TokenIds: TypeAlias = tuple[int, ...]
"""Token ids of one text, special tokens included where the model expects them."""

FinishReason: TypeAlias = Literal["eos", "stop", "length"]
ThoughtEnd: TypeAlias = Literal["closed", "budget", "unclosed"]


@dataclass(frozen=True, slots=True)
class LoglikelihoodRequest:
    """Ask for the log-likelihood of every choice of one question.

    ``rows[j] = (context, continuation)`` of choice j: both are token ids, the context is not empty. The
    contexts of one request are usually the same tuple. They may differ: a cloze fills the choice into the
    context, and a token may merge over the boundary. A continuation may be empty: it scores 0.0. ``images``:
    those whose virtual ids (:mod:`cme_bench.engines.virtual`) stand in the contexts.
    """

    rows: tuple[tuple[TokenIds, TokenIds], ...]
    images: tuple[Image, ...] = ()

    @property
    def prompt(self) -> TokenIds:
        """Return the context of the first choice."""
        return self.rows[0][0]

    @property
    def n_prompt(self) -> int:
        """Return the number of tokens of the longest context."""
        return max(len(context) for context, _ in self.rows)

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of the longest row."""
        return max(len(context) + len(continuation) for context, continuation in self.rows)


@dataclass(frozen=True, slots=True)
class LoglikelihoodResponse:
    """Answer a :class:`LoglikelihoodRequest`.

    ``logprobs[j]``: natural log of P(continuation j | context j), summed over its tokens. ``greedy[j]``:
    whether every token of continuation j is the argmax at its place.
    """

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Say how tokens are drawn: from softmax(logits / ``temperature``), with ``temperature`` above 0.

    Of these the ``top_k`` likeliest tokens are kept (0: all), then the fewest likeliest ones whose
    probabilities sum to ``top_p``. What is drawn depends on ``seed`` and on the probabilities alone: not on
    the batch, the order or the machine.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Thought:
    """Say how the thought before an answer is told apart, and how long it may be.

    It has at most ``budget`` tokens. ``opened``: the prompt ends inside it; else it is one only if the
    response begins with ``start``. ``end`` is the mark that ends it, whether the tokenizer calls it special
    or not. ``after``: ids that go between the mark and the answer; ``closing``: ids that end a thought whose
    budget is used up, those of ``after`` included.
    """

    budget: int
    start: str
    end: str
    opened: bool
    after: TokenIds = ()
    closing: TokenIds = ()

    @property
    def n_tokens(self) -> int:
        """Return the most tokens that it puts before the answer."""
        return self.budget + max(len(self.after), len(self.closing))


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Ask for a continuation of ``prompt``, cut before the first stop string.

    It has at most ``max_new_tokens`` tokens. The model's own end-of-sequence tokens always stop it.
    ``sampling``: None is greedy; ``repeat`` counts the answers that are drawn for one prompt. ``thought``:
    what may stand before the answer, in a budget of its own; stop strings hold for the answer alone.
    ``special``: whether special tokens belong to the text in which stop strings are looked for. ``images``:
    those whose virtual ids stand in the prompt. ``ends``: tokens that end it beside the model's own, as those
    that an adapter was trained to end answers with.
    """

    prompt: TokenIds
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None
    thought: Thought | None = None
    repeat: int = 0
    special: bool = False
    images: tuple[Image, ...] = ()
    ends: TokenIds = ()

    @property
    def n_prompt(self) -> int:
        """Return the number of tokens of the prompt."""
        return len(self.prompt)

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of the prompt and of the longest continuation together."""
        return len(self.prompt) + self.n_new

    @property
    def n_new(self) -> int:
        """Return the most tokens that follow the prompt, those of a thought included."""
        return self.max_new_tokens + (0 if self.thought is None else self.thought.n_tokens)


@dataclass(frozen=True, slots=True)
class GenerateResponse:
    """Answer a :class:`GenerateRequest`.

    ``text`` ends before the first stop string and holds no special tokens. ``n_tokens`` counts the generated
    tokens, an end-of-sequence token included. ``finish`` says why it ended. ``thought``: the thought before
    it, without its marks; None if there was none. It has ``n_thought`` tokens of its own, and ``thought_end``
    says how it ended: ``closed`` by the model, by us at its ``budget``, or ``unclosed``: then there is no
    answer.
    """

    text: str
    n_tokens: int
    finish: FinishReason
    thought: str | None = None
    n_thought: int = 0
    thought_end: ThoughtEnd | None = None


Request: TypeAlias = LoglikelihoodRequest | GenerateRequest
Response: TypeAlias = LoglikelihoodResponse | GenerateResponse
