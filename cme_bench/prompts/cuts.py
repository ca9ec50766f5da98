"""Places where a text may be cut before it is tokenised, proved from what a tokenizer declares.

A cut lies before a space that follows something other than white space. The ids of both sides are those of
the whole where none of a tokenizer's steps sees over the cut:

* Added tokens have no space behind another character, so no match of one lies on both sides.
* Normalizers compose (a space composes with nothing before it), spell a space as "▁", or put that first.
* Pre-tokenizers match nothing that has a space behind another character, and do not look behind. Most of
  them part words there; BPE never merges over that.
* Else the vocabulary tells: BPE merges only to an entry, so if no entry has a space behind another
  character, none is merged over a cut, and merges on one side never wait for those on the other.

Where a normalizer puts "▁" before the first word of a text, a piece from within is tokenised behind an
anchor, as it stands in the whole. Whatever is not known here is not cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

_OPENING = r"[^\r\n\p{L}\p{N}]?"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
PATTERNS = frozenset(
    {
        # GPT-2, written out
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        # Llama 3, GPT-4, Phi-4, OLMo 2, SmolLM3, GLM-4
        _ENDINGS + "|" + _OPENING + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _BLANKS,
        # Qwen 2 and 3
        _ENDINGS + "|" + _OPENING + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _BLANKS,
        # Qwen 3.5
        _ENDINGS + "|" + _OPENING + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _BLANKS,
        # GPT-4o, gpt-oss, Llama 4
        f"{_OPENING}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_OPENING}{_UPPER}+{_LOWER}*{_ENDINGS}?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _BLANKS,
        # Mistral's Tekken
        f"{_OPENING}{_UPPER}*{_LOWER}+|{_OPENING}{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _BLANKS,
        # DeepSeek V3, with its line ends unescaped
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
        "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    }
)
"""Patterns that match every space, and none behind anything but white space; so words part at every cut."""
LOCAL = frozenset(
    {
        r"\p{N}{1,3}",
        r"\p{N}",
        "[0-9][0-9][0-9]",
        "[一-龥぀-ゟ゠-ヿ]+",
        "[一-龥ࠀ-一가-퟿]+",
        "[\r\n]",
        r"[\r\n]",
        r"\s?\p{L}+",
        r"\s?\p{P}+",
        r"\s+$",
        " ?[^(\\s|[.,!?…。，、।۔،])]+",  # Bloom
    }
)
"""Patterns that match no space behind another character either, but leave some spaces unmatched."""
ANCHOR = "a"
"""What stands before a piece that does not begin its text."""
BLANK = "▁"
"""How SentencePiece spells a space."""
MOST_CLOSERS = 8
"""Characters with a space behind them in some entry of a vocabulary; with more it is not cut at all."""
_REACHES = re.compile(r"\S ")
_REACHES_SPELLED = re.compile(rf"[^\s{BLANK}][ {BLANK}]")
_CLOSER = re.compile(rf"([^\s{BLANK}]){BLANK}")
_BYTE_CLOSER = re.compile("([^\\sĠĊĉčċČ])Ġ")
_BYTE = re.compile(rf"<0x..>{BLANK}")
_SPELLS = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
_PREPENDS = {"type": "Prepend", "prepend": BLANK}
_COMPOSES = {"type": "NFC"}
_SPLITS_SPACES = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_known_closers: WeakKeyDictionary[Any, frozenset[str] | None] = WeakKeyDictionary()


@dataclass(frozen=True)
class Cuts:
    """Where and how the texts of a tokenizer may be cut.

    ``anchor``: what a piece is tokenised behind unless it begins its text; ``closers``: what no cut may lie
    behind; ``spelling``: a character that a text to be cut may not have.
    """

    anchor: str = ""
    closers: tuple[str, ...] = ()
    spelling: str = ""


def cuts_of(tokenizer: Any) -> Cuts | None:
    """Return where the texts of a tokenizer may be cut, by its own declarations; None for nowhere."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":
        return None
    model = backend.model
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    for token in backend.get_added_tokens_decoder().values():
        if _REACHES.search(token.content) or token.single_word or (token.rstrip and token.normalized):
            return None
    steps = list(_parts(_state(backend.pre_tokenizer), "pretokenizers"))
    if any(step["type"] == "ByteLevel" for step in steps):
        return _byte_cuts(tokenizer, steps)
    return _blank_cuts(tokenizer, steps)


def _byte_cuts(tokenizer: Any, steps: list[dict[str, Any]]) -> Cuts | None:
    """Return the cuts of a tokenizer of the GPT-2 kind."""
    backend = tokenizer.backend_tokenizer
    if any(part != _COMPOSES for part in _parts(_state(backend.normalizer), "normalizers")):
        return None
    parted = False
    for number, step in enumerate(steps):
        if not (_is_own(step) if parted else _is_local(step)):
            return None
        parted = parted or _parts_words(step)
        if step["type"] == "ByteLevel" and not parted and number + 1 < len(steps):
            return None  # the patterns behind it see no space any more
    if not parted and _closers(tokenizer, _BYTE_CLOSER, "Ġ") != frozenset():
        return None
    tokens = backend.get_added_tokens_decoder().values()
    return Cuts(closers=tuple(token.content for token in tokens if token.rstrip))


def _blank_cuts(tokenizer: Any, steps: list[dict[str, Any]]) -> Cuts | None:
    """Return the cuts of a tokenizer of the SentencePiece kind."""
    backend = tokenizer.backend_tokenizer
    normalizers = list(_parts(_state(backend.normalizer), "normalizers"))
    if any(part not in (_COMPOSES, _PREPENDS, _SPELLS) for part in normalizers):
        return None
    spelled, parted = _SPELLS in normalizers, False
    if len(steps) == 1 and steps[0]["type"] == "Metaspace" and steps[0]["replacement"] == BLANK:
        spelled, parted = True, bool(steps[0]["split"])  # puts nothing before a space
    elif steps and steps != [_SPLITS_SPACES]:  # which finds none that a normalizer spelled
        return None
    if not spelled:
        return None
    tokens = list(backend.get_added_tokens_decoder().values())
    for token in tokens:
        content = _normal(backend, token.content) if token.normalized else ""
        if _REACHES_SPELLED.search(content) or token.content == ANCHOR:
            return None
    closers = frozenset[str]() if parted else _closers(tokenizer, _CLOSER, BLANK)
    if closers is None or (closers and _COMPOSES in normalizers):
        return None
    prepends = _PREPENDS in normalizers  # once more behind every added token
    behind = [token.content for token in tokens if prepends or token.rstrip]
    return Cuts(ANCHOR if prepends else "", (*sorted(closers), *behind), BLANK)


def _closers(tokenizer: Any, pattern: re.Pattern[str], space: str) -> frozenset[str] | None:
    """Return the characters that have a space behind them in an entry of the vocabulary; None where that
    tells nothing."""
    if tokenizer not in _known_closers:
        _known_closers[tokenizer] = _read_closers(tokenizer.backend_tokenizer, pattern, space)
    return _known_closers[tokenizer]


def _read_closers(backend: Any, pattern: re.Pattern[str], space: str) -> frozenset[str] | None:
    model, vocab = backend.model, backend.get_vocab(with_added_tokens=False)
    if model.ignore_merges or space not in vocab:
        return None  # a piece may be an entry that is not reached by merges; unknown ones may be fused
    if model.unk_token is None and not all(byte in vocab for byte in _bytes(space == BLANK)):
        return None  # what is unknown is dropped, and its neighbours meet
    entries = "\n".join(vocab)
    found = frozenset(pattern.findall(entries))
    if len(found) > MOST_CLOSERS or _BYTE.search(entries) or f"{model.unk_token}{space}" in entries:
        return None
    return found


def _bytes(named: bool) -> Iterable[str]:
    """Return the entries of all bytes: those of a fallback, by name, or of a byte-level alphabet."""
    if named:
        return [f"<0x{byte:02X}>" for byte in range(256)]
    from tokenizers.pre_tokenizers import ByteLevel

    return list(ByteLevel.alphabet())


def _normal(backend: Any, text: str) -> str:
    return text if backend.normalizer is None else str(backend.normalizer.normalize_str(text))


def _state(part: Any) -> dict[str, Any]:
    """Return the settings of a normalizer or a pre-tokenizer; none for None."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _parts(state: dict[str, Any], inner: str) -> Iterator[dict[str, Any]]:
    """Yield the steps of a normalizer or a pre-tokenizer, those of sequences one by one."""
    if state.get("type") == "Sequence":
        for part in state[inner]:
            yield from _parts(part, inner)
    elif state:
        yield state


def _parts_words(step: dict[str, Any]) -> bool:
    """Return whether a local step parts words at every cut."""
    if step["type"] == "ByteLevel":
        return bool(step.get("use_regex"))
    return step["type"] == "Split" and step["pattern"].get("Regex") in PATTERNS


def _is_local(step: dict[str, Any]) -> bool:
    """Return whether a step does the same on both sides of a cut as in the whole."""
    kind = step["type"]
    if kind == "Split":
        pattern, how = step["pattern"].get("Regex"), (step["behavior"], step["invert"])
        if how == ("Removed", True):
            return pattern in PATTERNS
        return how == ("Isolated", False) and (pattern in PATTERNS or pattern in LOCAL)
    if kind == "Punctuation":
        return step["behavior"] in ("Isolated", "Contiguous")
    return kind == "Digits" or (kind == "ByteLevel" and not step.get("add_prefix_space"))


def _is_own(step: dict[str, Any]) -> bool:
    """Return whether a step depends on nothing but the word that it is given."""
    if step["type"] == "ByteLevel":
        return not step.get("add_prefix_space")
    return step["type"] in ("Split", "Digits", "Punctuation")
