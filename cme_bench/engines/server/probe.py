"""Questions to a server before a run: is our tokenizer its own, and what does it answer to fixed prompts?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from cme_bench.engines.requests import TokenIds
from cme_bench.engines.server.asking import Dialect, greedy, read
from cme_bench.engines.server.client import Server
from cme_bench.engines.server.reply import Reply
from cme_bench.util.errors import CmeError, UsageError, did_you_mean

TEXTS = (
    "The capital of France is",
    "def add(first, second):\n    return first",
    "Q: What is 17 + 25?\nA:",
    "Grüße aus Zürich, 東京 and São Paulo!",
    "  two  spaces,\ttabs\tand 1234567890",
)
"""Texts that tokenizers cut in different ways."""
_UNLISTED = "cme-bench: unlisted"
TOKENS = 8
"""So many tokens are answered to each."""


@dataclass(frozen=True, slots=True)
class Served:
    """The facts known of the model behind a server.

    Attributes:
        name: As the server calls it.
        dialect: What the server takes.
        answers: Its greedy answers to fixed prompts.
        max_length: Most tokens of a prompt and its continuation together; None if it does not say.
    """

    name: str
    dialect: Dialect
    answers: tuple[str, ...]
    max_length: int | None

    @property
    def fingerprint(self) -> str:
        """Return sha256 over its answers to fixed prompts."""
        return hashlib.sha256(orjson.dumps(self.answers)).hexdigest()


def probe(server: Server, name: str | None, tokenizer: Any) -> Served:
    """Ask a server what it is, and prove that ``tokenizer`` is the one of its model.

    The proof: texts have as many tokens there as here (the same ones, where it names them), and the answer
    to a text is the answer to its token ids. Raises UsageError if the model is not served or the proof
    fails; CmeError if the server does not answer.
    """
    entry = _choose(server, name)
    server.model = str(entry["id"])
    extras, first = _with_extras(server, TEXTS[0])
    if entry.get(_UNLISTED) and str(first.model).partition("@")[0] != str(name).partition("@")[0]:
        raise UsageError(f"--server-model {name}: {server.url} does not list it, and {first.model} answers")
    by_text = [first, *(_ask(server, text, extras=extras) for text in TEXTS[1:])]
    begin = _begin(server, by_text, tokenizer)
    ids = [begin + read(tokenizer, text) for text in TEXTS]
    again = _by_ids(server, ids, extras=extras)
    takes_ids = again is not None
    answers = tuple(reply.text for reply in by_text)
    if again is not None:
        why = "as text and as token ids: its vocabulary is not that of MODEL"
    else:
        again = [_ask(server, text, extras=extras) for text in TEXTS]
        why = "asked twice: it does not honour temperature 0"
    if not _alike(answers, again):
        raise UsageError(f"{server.url}: {server.model} answers most prompts otherwise {why}")
    longest = entry.get("max_model_len")
    dialect = Dialect(ids=takes_ids, extras=extras, begin=begin, tells_ids=first.new_ids is not None)
    return Served(
        server.model, dialect, answers, longest if isinstance(longest, int) and longest > 0 else None
    )


def check_still_served(server: Server, served: Served) -> None:
    """Raise CmeError if a server that was lost came back as another model, or not at all."""
    again = [_ask(server, text, extras=served.dialect.extras) for text in TEXTS]
    if not _alike(served.answers, again):
        raise CmeError(
            f"{server.url}: the server was lost and came back as another model than {served.name} was; its "
            "answers are not stored"
        )


def _choose(server: Server, name: str | None) -> Any:
    """Return the server's entry of the model called ``name``, or of its only one."""
    entries = server.models()
    if not entries:
        if name is None:
            raise UsageError(f"{server.url} lists no models: name one with --server-model")
        return {"id": name}
    known = [str(entry["id"]) for entry in entries]
    if name is None and len(entries) > 1:
        raise UsageError(f"{server.url} serves {', '.join(known)}: name one with --server-model")
    if name is not None and name not in known:
        server.model = name
        try:
            server.complete(prompt=TEXTS[0], max_tokens=1)
        except UsageError as error:
            raise UsageError(
                f"--server-model {name}: {server.url} serves {', '.join(known)}{did_you_mean(name, known)}"
            ) from error
        return {"id": name, _UNLISTED: True}  # a server may list others than it serves
    return next(entry for entry in entries if name in (None, entry["id"]))


def _ask(server: Server, prompt: str | list[int], *, extras: bool) -> Reply:
    return server.complete(prompt=prompt, **greedy(TOKENS, extras=extras))


def _with_extras(server: Server, text: str) -> tuple[bool, Reply]:
    """Return whether the server takes vLLM's settings, and its answer to ``text``."""
    try:
        return True, _ask(server, text, extras=True)
    except UsageError:
        return False, _ask(server, text, extras=False)


def _begin(server: Server, replies: Sequence[Reply], tokenizer: Any) -> TokenIds:
    """Return what the server puts before a text; UsageError if its token counts are not the tokenizer's."""
    bos = tokenizer.bos_token_id
    own = tuple(tokenizer("").input_ids)
    ours = [read(tokenizer, text) for text in TEXTS]
    for begin in dict.fromkeys([(), own, () if bos is None else (bos,)]):
        if all(_fits(reply, begin + ids) for ids, reply in zip(ours, replies, strict=True)):
            return begin
    if any(reply.n_prompt is None for reply in replies):
        raise UsageError(
            f"{server.url}: the server does not report usage.prompt_tokens, so nothing proves that the "
            "tokenizer of MODEL is its own"
        )
    counts = [(reply.n_prompt, len(ids), text) for reply, ids, text in zip(replies, ours, TEXTS, strict=True)]
    there, here, text = next((each for each in counts if each[0] != each[1]), counts[0])
    raise UsageError(
        f"{server.url}: {server.model} makes {there} tokens of {text!r}, the tokenizer of MODEL {here}: "
        "MODEL must be the folder or hub name of the model that is served"
    )


def _fits(reply: Reply, ids: TokenIds) -> bool:
    if reply.prompt_ids is not None:
        return reply.prompt_ids == ids
    return reply.n_prompt == len(ids)


def _by_ids(server: Server, prompts: Sequence[TokenIds], *, extras: bool) -> list[Reply] | None:
    """Return the answers to prompts of token ids; None if the server takes none."""
    replies = []
    for ids in prompts:
        try:
            reply = _ask(server, list(ids), extras=extras)
        except UsageError:
            return None
        if reply.n_prompt != len(ids):
            return None
        replies.append(reply)
    return replies


def _alike(answers: Sequence[str], replies: Sequence[Reply]) -> bool:
    """Return whether most answers are the same; near ties may fall otherwise in a busy server."""
    return 2 * sum(a == b.text for a, b in zip(answers, replies, strict=True)) > len(answers)
