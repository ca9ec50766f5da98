"""Requests and responses: token ids in, text or log-likelihoods out.

They are small frozen dataclasses that pickle, hash and compare by value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

TokenIds: TypeAlias = tuple[int, ...]
"""Token ids of one text, special tokens included where the model expects them."""

FinishReason: TypeAlias = Literal["eos", "stop", "length"]


@dataclass(frozen=True, slots=True)
class LoglikelihoodRequest:
    """Ask for the log-likelihood of every choice of one question.

    ``rows[j] = (context, continuation)`` of choice j: both are token ids, the context is not empty. The
    contexts of one request are usually the same tuple. They may differ: a cloze fills the choice into the
    context, and a token may merge over the boundary. A continuation may be empty: it scores 0.0.
    """

    rows: tuple[tuple[TokenIds, TokenIds], ...]

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
class GenerateRequest:
    """Ask for the greedy continuation of ``prompt``, cut before the first stop string.

    It has at most ``max_new_tokens`` tokens. The model's own end-of-sequence tokens always stop it.
    """

    prompt: TokenIds
    max_new_tokens: int
    stop: tuple[str, ...] = ()

    @property
    def n_prompt(self) -> int:
        """Return the number of tokens of the prompt."""
        return len(self.prompt)

    @property
    def n_tokens(self) -> int:
        """Return the number of tokens of the prompt and of the longest continuation together."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class GenerateResponse:
    """Answer a :class:`GenerateRequest`.

    ``text`` ends before the first stop string and holds no special tokens. ``n_tokens`` counts the generated
    tokens, an end-of-sequence token included. ``finish`` says why it ended.
    """

    text: str
    n_tokens: int
    finish: FinishReason


Request: TypeAlias = LoglikelihoodRequest | GenerateRequest
Response: TypeAlias = LoglikelihoodResponse | GenerateResponse
