"""Token ids of a text from those of its pieces, where a tokenizer lets no token reach over a cut.

The texts of a task repeat most of their words, exemplars even whole lines, and every choice repeats its
question. A tokenizer of the GPT-2 kind splits a text by a pattern before it looks for tokens, and no match
of that pattern has a space behind anything but white space. So a text may be cut before every space that
follows something else: the pieces have the ids that they have in the whole. Each is tokenised once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cme_bench.engines.base import TokenIds

PATTERNS = frozenset(
    {
        # Llama 3
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        # Qwen 2
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    }
)
"""Patterns other than GPT-2's own with that property; none looks behind."""
MOST_KEPT = 1 << 18
"""Pieces whose ids are kept; then all are forgotten."""
_LINE = re.compile(r"\n\S+(?= )")
_WORDS = re.compile(r"\s*\S+(?:[^\S ]\s*\S+)*(?:[^\S ]\s*)?|\s+")
"""What lies between cuts: white space that does not begin with a space is no place for one."""


def may_cut(tokenizer: Any) -> bool:
    """Return whether a tokenizer is of the kind that this module speaks of, by its own declarations."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":
        return False
    model = backend.model
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    if not _composes(_state(backend.normalizer)):
        return False
    tokens = backend.get_added_tokens_decoder().values()
    if any(" " in token.content or token.rstrip or token.single_word for token in tokens):
        return False
    return _splits_at_spaces(_state(backend.pre_tokenizer))


def _composes(state: dict[str, Any]) -> bool:
    """Return whether a normalizer does nothing but compose: a space composes with nothing before it."""
    if state.get("type") == "Sequence":
        return all(map(_composes, state["normalizers"]))
    return bool(state.get("type", "NFC") == "NFC")


def _state(part: Any) -> dict[str, Any]:
    """Return the settings of a normalizer or a pre-tokenizer; none for None."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _splits_at_spaces(state: dict[str, Any]) -> bool:
    parts = state.get("pretokenizers", [state])
    return all(map(_is_harmless, parts)) and any(map(_is_pattern, parts))


def _is_pattern(state: dict[str, Any]) -> bool:
    if state.get("type") == "ByteLevel":
        return bool(state.get("use_regex"))
    return state.get("type") == "Split"


def _is_harmless(state: dict[str, Any]) -> bool:
    kind = state.get("type")
    if kind == "ByteLevel":
        return not state.get("add_prefix_space")
    if kind == "Split":
        known = state.get("pattern", {}).get("Regex") in PATTERNS
        return known and state.get("behavior") == "Isolated" and not state.get("invert")
    return kind == "Digits"


def pieces_of(tokenizer: Any) -> Pieces | None:
    """Return the pieces of a tokenizer, none known yet; None if it is not of that kind."""
    return Pieces(tokenizer) if may_cut(tokenizer) else None


class Pieces:
    """Token ids of texts by a tokenizer that ``may_cut``.

    ``right``: whether texts had the ids that they have in the whole; None until that was tried.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.right: bool | None = None
        self._backend = tokenizer.backend_tokenizer
        self._words: dict[str, Sequence[int]] = {}
        self._lines: dict[str, TokenIds] = {}

    def ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of each text."""
        if len(self._words) + len(self._lines) > MOST_KEPT:
            self._words.clear()
            self._lines.clear()
        cut = [_cut_lines(text) for text in texts]
        self._learn(line for lines in cut for line in lines)
        return [_joined(self._lines, lines) for lines in cut]

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[TokenIds, TokenIds]]:
        """Return for each (context, continuation) the ids of the context, and those that the whole has beyond
        as many as the context has."""
        contexts = list(dict.fromkeys(context for context, _ in pairs))
        tails = {context: last_piece(context) for context in contexts}
        ends = list(dict.fromkeys((tails[a], b) for a, b in pairs))
        of_tails = dict(zip(tails.values(), self.ids(list(tails.values())), strict=True))
        whole = self.ids([tail + continuation for tail, continuation in ends])
        rest = {end: ids[len(of_tails[end[0]]) :] for end, ids in zip(ends, whole, strict=True)}
        ids = dict(zip(contexts, self.ids(contexts), strict=True))
        return [(ids[a], rest[tails[a], b]) for a, b in pairs]

    def _learn(self, lines: Iterable[str]) -> None:
        """Have the ids of all of ``lines``."""
        new = {line: _WORDS.findall(line) for line in dict.fromkeys(lines) if line not in self._lines}
        words = [w for w in dict.fromkeys(w for words in new.values() for w in words) if w not in self._words]
        encodings = self._backend.encode_batch_fast(words, add_special_tokens=False) if words else ()
        self._words.update((w, encoding.ids) for w, encoding in zip(words, encodings, strict=True))
        for line, parts in new.items():
            self._lines[line] = _joined(self._words, parts)


def _cut_lines(text: str) -> list[str]:
    """Return a text cut after the first word of every line but its first."""
    ends = [match.end() for match in _LINE.finditer(text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def _joined(known: Mapping[str, Sequence[int]], parts: Iterable[str]) -> TokenIds:
    ids: list[int] = []
    for part in parts:
        ids += known[part]
    return tuple(ids)


def last_piece(text: str) -> str:
    """Return the end of a text that may share a token with what follows it."""
    place = text.rfind(" ")
    while place > 0 and text[place - 1].isspace():
        place = text.rfind(" ", 0, place)
    return text[place:] if place > 0 else text
