"""Token ids of a text from those of its pieces, where a tokenizer lets no token reach over a cut.

The texts of a task repeat most of their words, exemplars even whole lines, and every choice repeats its
question. So a text is cut before every space that follows something else, if :mod:`.cuts` proves that the
pieces have the ids that they have in the whole. Each is tokenised once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cme_bench.engines.base import TokenIds
from cme_bench.prompts.cuts import Cuts, cuts_of

MOST_KEPT = 1 << 18
"""Pieces whose ids are kept; then all are forgotten."""
_LINE = re.compile(r"\n\S+(?= )")
_WORDS = re.compile(r"\s*\S+(?:[^\S ]\s*\S+)*(?:[^\S ]\s*)?|\s+")
"""What lies between cuts: white space that does not begin with a space is no place for one."""


def pieces_of(tokenizer: Any) -> Pieces | None:
    """Return the pieces of a tokenizer, none known yet; None if its texts may not be cut."""
    cuts = cuts_of(tokenizer)
    return None if cuts is None else Pieces(tokenizer, cuts)


def tokenised(tokenizer: Any, texts: Sequence[str]) -> list[TokenIds]:
    """Return the ids of each text as the tokenizer gives them; one batch, on all cores."""
    if not texts:
        return []
    ids = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return [tuple(row) for row in ids]


class Pieces:
    """Token ids of texts by a tokenizer that lets itself be cut.

    ``right``: whether texts had the ids that they have in the whole; None until that was tried.
    """

    def __init__(self, tokenizer: Any, cuts: Cuts) -> None:
        self.right: bool | None = None
        self._tokenizer, self._backend, self._cuts = tokenizer, tokenizer.backend_tokenizer, cuts
        self._words: dict[str, Sequence[int] | None] = {}
        self._lines: dict[str, TokenIds | None] = {}
        self._heads: dict[str, TokenIds | None] = {} if cuts.anchor else self._lines
        """Those of lines that begin a text."""

    def ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each text."""
        found = self._find(texts, self._heads)
        missed = [text for text, ids in zip(texts, found, strict=True) if ids is None]
        whole = iter(tokenised(self._tokenizer, missed))
        return [next(whole) if ids is None else ids for ids in found]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[TokenIds, TokenIds]]:
        """Return for each (context, continuation) the ids of the context, and those that the whole has beyond
        as many as the context has."""
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        ids = dict(zip(contexts, self._find(contexts, self._heads), strict=True))
        tails = {context: last_piece(context, self._cuts.closers) for context in contexts}
        rest = self._rest([(tails[a], b) for a, b in pairs if tails[a] != a], self._lines)
        alone = self._rest([pair for pair in pairs if tails[pair[0]] == pair[0]], self._heads)
        found = [(ids[a], alone[a, b] if tails[a] == a else rest[tails[a], b]) for a, b in pairs]
        missed = [pair for pair, (a, b) in zip(pairs, found, strict=True) if a is None or b is None]
        whole = iter(whole_pairs(self._tokenizer, missed))
        return [next(whole) if a is None or b is None else (a, b) for a, b in found]

    def _rest(
        self, ends: Sequence[tuple[str, str]], heads: dict[str, TokenIds | None]
    ) -> dict[tuple[str, str], TokenIds | None]:
        """Return for each (tail, continuation) the ids of both beyond as many as the tail has."""
        ends = list(dict.fromkeys(ends))
        tails = list(dict.fromkeys(tail for tail, _ in ends))
        known = dict(zip(tails, self._find(tails, heads), strict=True))
        both = self._find([tail + continuation for tail, continuation in ends], heads)
        rest: dict[tuple[str, str], TokenIds | None] = {}
        for end, whole in zip(ends, both, strict=True):
            before = known[end[0]]
            rest[end] = None if before is None or whole is None else whole[len(before) :]
        return rest

    def _find(self, texts: Sequence[str], heads: dict[str, TokenIds | None]) -> list[TokenIds | None]:
        """Return the ids of each text; None for one that may not be cut.

        ``heads``: the lines that the texts begin with; those within a text for texts that follow others.
        """
        if len(self._words) + len(self._lines) + len(self._heads) > MOST_KEPT:
            for known in (self._words, self._lines, self._heads):
                known.clear()
        cut = [_cut_lines(text, self._cuts.closers) for text in texts]
        self._learn(heads, (lines[0] for lines in cut))
        self._learn(self._lines, (line for lines in cut for line in lines[1:]))
        if heads is self._lines:
            return [_joined(heads, lines) for lines in cut]
        return [_sum(heads[lines[0]], _joined(self._lines, lines[1:])) for lines in cut]

    def _learn(self, known: dict[str, TokenIds | None], lines: Iterable[str]) -> None:
        """Have the ids of all of ``lines`` in ``known``."""
        new = {line: self._cut(line) for line in dict.fromkeys(lines) if line not in known}
        first = 1 if known is not self._lines else 0
        distinct = dict.fromkeys(word for words in new.values() for word in words[first:])
        words = [word for word in distinct if word not in self._words]
        self._words.update(zip(words, self._pieces(words, self._cuts.anchor), strict=True))
        begun = list(dict.fromkeys(word for words in new.values() for word in words[:first]))
        heads = dict(zip(begun, self._pieces(begun), strict=True))
        for line, parts in new.items():
            rest = _joined(self._words, parts[first:])
            known[line] = _sum(_joined(heads, parts[:first]), rest) if first else rest

    def _cut(self, line: str) -> list[str]:
        words, closers = _WORDS.findall(line), self._cuts.closers
        if not closers:
            return words
        joined: list[str] = []
        for word in words:
            if joined and joined[-1].endswith(closers):
                joined[-1] += word
            else:
                joined.append(word)
        return joined

    def _pieces(self, words: Sequence[str], anchor: str = "") -> list[Sequence[int] | None]:
        """Return the ids of each word behind ``anchor``; None for one that is spelled like a space."""
        if not words:
            return []
        if self._backend.padding is not None:
            self._backend.no_padding()  # left behind by another call, as is the next
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        texts = [anchor + word for word in words] if anchor else list(words)
        encodings = self._backend.encode_batch_fast([*texts, anchor], add_special_tokens=False)
        before = encodings.pop().ids
        ids = [encoding.ids for encoding in encodings]
        spelling = self._cuts.spelling
        return [
            None if (spelling and spelling in word) or row[: len(before)] != before else row[len(before) :]
            for word, row in zip(words, ids, strict=True)
        ]


def whole_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[tuple[TokenIds, TokenIds]]:
    """Return what ``Pieces.pairs`` does, without cutting a text: its slow and obvious reference."""
    texts = list(dict.fromkeys(text for a, b in pairs for text in (a, a + b)))
    whole = dict(zip(texts, tokenised(tokenizer, texts), strict=True))
    return [(whole[a], whole[a + b][len(whole[a]) :]) for a, b in pairs]


def _cut_lines(text: str, closers: tuple[str, ...]) -> list[str]:
    """Return a text cut after the first word of every line but its first."""
    ends = [match.end() for match in _LINE.finditer(text)]
    if closers:
        ends = [end for end in ends if not text.endswith(closers, 0, end)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def _joined(known: Mapping[str, Sequence[int] | None], parts: Iterable[str]) -> TokenIds | None:
    ids: list[int] = []
    for part in parts:
        found = known[part]
        if found is None:
            return None
        ids += found
    return tuple(ids)


def _sum(one: TokenIds | None, other: TokenIds | None) -> TokenIds | None:
    return None if one is None or other is None else one + other


def last_piece(text: str, closers: tuple[str, ...] = ()) -> str:
    """Return the end of a text that may share a token with what follows it."""
    place = text.rfind(" ")
    while place > 0 and (text[place - 1].isspace() or text.endswith(closers, 0, place)):
        place = text.rfind(" ", 0, place)
    return text[place:] if place > 0 else text
