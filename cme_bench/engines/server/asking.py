"""Requests of ours as a server takes them: token ids or text, and settings that switch its own off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cme_bench.engines.requests import GenerateRequest, TokenIds
from cme_bench.util.errors import UsageError

_NEUTRAL = {"top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0}
_NEUTRAL_EXTRAS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""A server may take others from the model's generation_config.json."""
SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of the requests that a server takes.

    Attributes:
        ids: Whether prompts go as token ids; else as text.
        extras: Whether it takes settings that OpenAI's interface does not have, as vLLM does.
        begin: Token ids that it puts before a text by itself.
        tells_ids: Whether it returns the ids of the tokens that it generates.
    """

    ids: bool
    extras: bool
    begin: TokenIds
    tells_ids: bool = False

    @property
    def name(self) -> str:
        """Return how prompts are sent, for the record."""
        return "token ids" if self.ids else "text"


def written(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of token ids, special ones included."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def read(tokenizer: Any, text: str) -> TokenIds:
    """Return the token ids of a text, with nothing put before or after it."""
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def prompt_of(ids: TokenIds, dialect: Dialect, tokenizer: Any) -> list[int] | str:
    """Return a prompt as the server takes it.

    Raises UsageError if it takes text only, and the text of these ids would become others there.
    """
    if dialect.ids:
        return list(ids)
    n = len(dialect.begin)
    text = written(tokenizer, ids[n:])
    if ids[:n] != dialect.begin or read(tokenizer, text) != ids[n:]:
        begin = f", before which it puts {written(tokenizer, dialect.begin)!r}" if n else ""
        raise UsageError(
            f"the server takes text only{begin}, and the prompt {text[-60:]!r} would become other token ids "
            "there than in other engines"
        )
    return text


def generating(request: GenerateRequest, dialect: Dialect, end_ids: frozenset[int]) -> dict[str, Any]:
    """Return the settings of a request for text."""
    sampling = request.sampling
    settings: dict[str, Any] = {"max_tokens": request.max_new_tokens, **_NEUTRAL, "temperature": 0.0}
    extras: dict[str, Any] = {**_NEUTRAL_EXTRAS, "return_token_ids": True}
    if sampling is not None:
        settings |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
        settings["seed"] = sampling.seed % 2**SEED_BITS
        extras["top_k"] = sampling.top_k
        if sampling.top_k and not dialect.extras:
            raise UsageError("the server takes no top_k: leave --top-k out")
    if stop := [text for text in request.stop if text]:
        settings["stop"] = stop
    extras |= {
        "stop_token_ids": sorted(end_ids.union(request.ends)),
        "skip_special_tokens": not request.special,
    }
    return settings | ({"extra_body": extras} if dialect.extras else {})


def greedy(n_tokens: int, *, extras: bool) -> dict[str, Any]:
    """Return the settings of a plain greedy request for ``n_tokens`` tokens with their log-probabilities."""
    settings: dict[str, Any] = {"max_tokens": n_tokens, **_NEUTRAL, "temperature": 0.0}
    more = {**_NEUTRAL_EXTRAS, "return_token_ids": True}
    return settings | ({"extra_body": more} if extras else {})


def echoing(*, extras: bool) -> dict[str, Any]:
    """Return the settings of a request for the log-probabilities of its prompt's tokens."""
    settings: dict[str, Any] = {"max_tokens": 1, **_NEUTRAL, "temperature": 0.0, "echo": True, "logprobs": 1}
    more = {**_NEUTRAL_EXTRAS, "return_tokens_as_token_ids": True}
    return settings | ({"extra_body": more} if extras else {})
