"""Conversations as token ids: rendered by the base's chat template, learnt where an answer stands.

An answer is learnt from where its prompt ends to the end of its turn: exactly what the model must write. The
text is tokenised as a whole, as the template's own tokenisation does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cme_bench.engines.base import TokenIds
from cme_bench.images.image import MARK
from cme_bench.prompts.chat import ChatTemplate
from cme_bench.prompts.encode import Encoder
from cme_bench.training.own_rows import Conversation, Turn
from cme_bench.util.errors import UsageError

Span = tuple[int, int]
_MARK = "\u2042answer\u2042"
"""Stands for an answer where its place in the text is looked for."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """``text``: up to the end of the last answer; ``spans``: its learnt parts, in order; ``open``: whether
    the template ends no answer, so that EOS must."""

    text: str
    spans: tuple[Span, ...]
    open: bool


def render(conversation: Conversation, template: ChatTemplate, end: str) -> Rendered:
    """Return a conversation as text. ``end``: what the template puts after an answer, "" for nothing.

    UsageError, with the row's place, for a conversation that the template refuses, and for an answer that it
    shows otherwise than it is written.
    """
    messages = [turn.message for turn in conversation.turns]
    try:
        text = template.conversation(messages)
        _check_shown(text, conversation.turns, template)
        spans = tuple(
            _span(text, conversation.turns, place, template, end)
            for place, turn in enumerate(conversation.turns)
            if turn.learnt
        )
    except ValueError as error:
        raise UsageError(f"{conversation.place}: {error}") from error
    return Rendered(text[: spans[-1][1]], spans, not end)


def _check_shown(text: str, turns: Sequence[Turn], template: ChatTemplate) -> None:
    """Raise ValueError if the template leaves out a message that is not learnt."""
    shown = _squashed(text)
    for number, turn in enumerate(turns, start=1):
        if not turn.learnt and turn.role != "assistant" and _squashed(turn.content) not in shown:
            raise ValueError(
                f"the chat template of {template.name} leaves out message {number} ({turn.role})"
            )


def _span(text: str, turns: Sequence[Turn], place: int, template: ChatTemplate, end: str) -> Span:
    """Return where turn ``place`` is learnt. ValueError if the template leaves something of it out."""
    content = turns[place].content
    start = _start(text, turns, place, template)
    tail = text[start:]
    written = content if tail.startswith(content) else content.strip()
    blanks = 0 if tail.startswith(content) else len(tail) - len(tail.lstrip())
    if tail[blanks:].startswith(written):
        stop = start + blanks + len(written)
    elif place == len(turns) - 1 and _squashed(content) in _squashed(tail):
        return start, start + len(tail.rstrip())  # it lays out a thought in its own way
    else:
        number = sum(turn.role == "assistant" for turn in turns[: place + 1])
        raise ValueError(
            f"the chat template of {template.name} shows answer {number} otherwise than it is written (it "
            "may leave out thoughts of earlier turns); give that answer a row of its own, with the turns "
            "before it"
        )
    after = text[stop:]
    blanks = len(after) - len(after.lstrip())
    return start, stop + (blanks + len(end) if end and after[blanks:].startswith(end) else 0)


def _start(text: str, turns: Sequence[Turn], place: int, template: ChatTemplate) -> int:
    """Return where the answer of turn ``place`` begins: where its prompt ends, if the text goes on there.

    Else (nothing before it, or a prompt that ends with the opening of a thought) it begins where its words
    stand.
    """
    messages = [turn.message for turn in turns]
    before = template.before_answer(messages[:place]) if place else None  # templates refuse an empty chat
    if before is not None and text.startswith(before):
        return len(before)
    marked = [*messages[:place], {**messages[place], "content": _MARK}, *messages[place + 1 :]]
    prefix, found, _ = template.conversation(marked).partition(_MARK)
    if not found or not text.startswith(prefix):
        raise ValueError(f"the chat template of {template.name} does not show where an answer begins")
    return len(prefix)


def _squashed(text: str) -> str:
    """Return a text without blanks, and without marks of images, which templates move."""
    return "".join(text.replace(MARK, "").split())


def tokenise(
    rendered: Sequence[Rendered], encoder: Encoder, eos: int, *, renders_bos: bool
) -> Iterator[tuple[TokenIds, tuple[Span, ...]]]:
    """Yield (ids, learnt spans in tokens) of each text, with the BOS that evaluation gives a prompt.

    A token belongs to an answer if all of it does. Where a token reaches over an edge, the parts are
    tokenised apart, as they are when the model is asked.
    """
    wholes = _offsets(encoder.tokenizer, [each.text for each in rendered])
    for each, whole in zip(rendered, wholes, strict=True):
        found = None if whole is None else _by_offsets(each.spans, *whole)
        ids, spans = found or _by_parts(each, encoder)
        if each.open:
            ids, spans = (*ids, eos), (*spans[:-1], (spans[-1][0], len(ids) + 1))
        prefix = encoder.prefix(each.text, rendered=renders_bos)
        yield (
            (*prefix, *ids),
            tuple((start + len(prefix), stop + len(prefix)) for start, stop in spans),
        )


def _offsets(tokenizer: Any, texts: Sequence[str]) -> Sequence[tuple[Any, Any] | None]:
    if not tokenizer.is_fast:
        return [None] * len(texts)
    whole = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return list(zip(whole["input_ids"], whole["offset_mapping"], strict=True))


def _by_offsets(
    spans: Sequence[Span], ids: Sequence[int], offsets: Sequence[Span]
) -> tuple[TokenIds, tuple[Span, ...]] | None:
    """Return ids and spans of tokens; None where a token reaches over an edge of a span."""
    edges = [edge for span in spans for edge in span]
    places, token = [], 0
    for edge in edges:
        while token < len(ids) and offsets[token][1] <= edge:
            token += 1
        if token < len(ids) and offsets[token][0] < edge:
            return None
        places.append(token)
    return tuple(ids), tuple(zip(places[::2], places[1::2], strict=True))


def _by_parts(each: Rendered, encoder: Encoder) -> tuple[TokenIds, tuple[Span, ...]]:
    edges = [0, *(edge for span in each.spans for edge in span)]
    parts = [each.text[a:b] for a, b in pairwise(edges)]
    known = encoder.encode(parts, special=False)
    places = [0]
    ids: list[int] = []
    for part in parts:
        ids += known[part]
        places.append(len(ids))
    return tuple(ids), tuple(zip(places[1::2], places[2::2], strict=True))
