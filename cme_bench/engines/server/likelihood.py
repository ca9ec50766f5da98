"""Log-probabilities of a prompt's tokens from a server, once a proof says that they are what they seem.

Many servers take ``echo`` and ignore it, or give the log-probabilities of something else: the scores that
come of it look like any other, at chance. The proof needs no other model: a token that the server itself
generates greedily has the same log-probability when it stands in the prompt, no other token there has a
larger one, and another context changes it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cme_bench.engines.logits import LogitsError
from cme_bench.engines.requests import LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.server.asking import Dialect, echoing, greedy, read
from cme_bench.engines.server.client import Server
from cme_bench.engines.server.probe import TEXTS, Served
from cme_bench.engines.server.reply import Reply
from cme_bench.util.errors import CmeError, UsageError

TOLERANCE = 0.1
"""Nats by which a token's log-probability may differ where it is generated and where it is read."""
TIE = 1e-4
_GENERATED = 6


class _NotEchoedError(Exception):
    """The answer is not the prompt's log-probabilities."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probabilities of a row's tokens from its second on, and the largest at each of those places."""

    logprobs: tuple[float, ...]
    likeliest: tuple[float, ...]


def prove_likelihood(server: Server, served: Served, tokenizer: Any) -> None:
    """Raise UsageError, one sentence, unless the server's log-probabilities of prompts can be trusted."""
    dialect = served.dialect
    why = "takes no token ids" if not dialect.ids else None
    if why is None:
        try:
            for text in TEXTS[:3]:
                _prove(server, dialect, dialect.begin + read(tokenizer, text), tokenizer)
        except _NotEchoedError as error:
            why = str(error)
        except UsageError as error:
            why = f"refuses echo with logprobs ({error})"
    if why is not None:
        raise UsageError(
            f"{server.url}: {served.name} {why}, so its likelihoods would be wrong: ask generated tasks "
            "only, or serve it with vLLM"
        )


def _prove(server: Server, dialect: Dialect, prompt: TokenIds, tokenizer: Any) -> None:
    made = server.complete(prompt=list(prompt), **greedy(_GENERATED, extras=dialect.extras), logprobs=1)
    new, told = _generated_ids(made, tokenizer), made.logprobs or ()
    if not new or len(told) != len(new) or any(each is None for each in told):
        raise _NotEchoedError("gives no log-probabilities of the tokens that it generates")
    start = len(prompt) - 1
    found = _echoed(server, dialect, prompt + new)
    again, likeliest = found.logprobs[start:], found.likeliest[start:]
    if not all(abs(a - float(b or 0.0)) <= TOLERANCE for a, b in zip(again, told, strict=True)):
        raise _NotEchoedError("gives a token another log-probability in a prompt than when it generates it")
    if not all(top <= own + TOLERANCE for own, top in zip(again, likeliest, strict=True)):
        raise _NotEchoedError("generates tokens that are not the likeliest by its own log-probabilities")
    moved = _echoed(server, dialect, (*reversed(prompt), *new))
    if all(abs(a - b) < TIE for a, b in zip(moved.logprobs[start:], again, strict=True)):
        raise _NotEchoedError("gives a token one log-probability after any context")


def _echoed(server: Server, dialect: Dialect, row: TokenIds) -> TokenScores:
    return _scores(server.complete(prompt=list(row), **echoing(extras=dialect.extras)), row)


def _generated_ids(reply: Reply, tokenizer: Any) -> TokenIds:
    """Return the ids of generated tokens; () where the server names them neither by id nor clearly."""
    if reply.new_ids is not None:
        return reply.new_ids
    ids = [(each,) if isinstance(each, int) else read(tokenizer, each) for each in reply.tokens or ()]
    return tuple(one for one, *_ in ids) if all(len(each) == 1 for each in ids) else ()


def _scores(reply: Reply, row: TokenIds) -> TokenScores:
    """Return the scores of a row's tokens but the first. Raises _NotEchoedError if the reply has others."""
    logprobs, likeliest = reply.logprobs or (), reply.likeliest or ()
    if len(logprobs) not in (len(row), len(row) + 1) or len(likeliest) != len(logprobs):
        raise _NotEchoedError("ignores echo: it gives no log-probabilities of the prompt's tokens")
    named = reply.tokens or ()
    if any(isinstance(there, int) and there != here for there, here in zip(named, row, strict=False)):
        raise _NotEchoedError("echoes other tokens than it was asked")
    own, top = logprobs[1 : len(row)], likeliest[1 : len(row)]
    if any(each is None for each in (*own, *top)):
        raise _NotEchoedError("leaves out log-probabilities of the prompt's tokens")
    found = TokenScores(tuple(float(n or 0.0) for n in own), tuple(float(n or 0.0) for n in top))
    if any(each > TIE for each in found.logprobs):
        raise _NotEchoedError("gives log-probabilities above 0")
    return found


def read_scores(reply: Reply, row: TokenIds) -> TokenScores:
    """Return the scores of a row's tokens but the first. CmeError if the reply has others."""
    try:
        return _scores(reply, row)
    except _NotEchoedError as error:
        raise CmeError(f"the server {error}") from error


def response_of(
    request: LoglikelihoodRequest, scores: dict[TokenIds, TokenScores], number: int
) -> LoglikelihoodResponse:
    """Return the response to a question from the scores of its rows. LogitsError if one is NaN."""
    logprobs, likeliest = [], []
    for context, continuation in request.rows:
        if not continuation:
            logprobs.append(0.0)
            likeliest.append(True)
            continue
        found, start = scores[context + continuation], len(context) - 1
        own, top = found.logprobs[start:], found.likeliest[start:]
        if any(math.isnan(each) for each in own):
            raise LogitsError.at(number)
        logprobs.append(sum(own))
        likeliest.append(all(a >= b - TIE for a, b in zip(own, top, strict=True)))
    return LoglikelihoodResponse(tuple(logprobs), tuple(likeliest))
