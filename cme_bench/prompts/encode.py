"""Texts to token ids: one place for special tokens and for the boundary between context and continuation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cme_bench.engines.base import TokenIds
from cme_bench.prompts.formats import Policy


class Encoder:
    """Token ids of texts for one tokenizer, with exactly one BOS where the model expects one.

    A model expects a BOS if its tokenizer adds one by default; a text that already begins with it (a chat
    template's) gets no second. What a tokenizer appends at the end (EOS) is never added to a context.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._bos = _added_prefix(tokenizer)
        self._bos_text = tokenizer.decode(list(self._bos)) if self._bos else None

    @property
    def start_token(self) -> int:
        """What stands in for an empty context: BOS if the tokenizer has one, else EOS (lm-eval's choice)."""
        token = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if token is None else token)

    @property
    def prefix_length(self) -> int:
        """Number of special tokens that begin every context."""
        return len(self._bos)

    def encode(self, texts: Iterable[str], *, special: bool = True) -> dict[str, TokenIds]:
        """Ids of each distinct text, tokenised once, as one batch."""
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        ids = self.tokenizer(
            distinct,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return {
            text: (self._bos if special and not self._has_bos(text) else ()) + tuple(row)
            for text, row in zip(distinct, ids, strict=True)
        }

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], policy: Policy
    ) -> list[tuple[TokenIds, TokenIds]]:
        """(context ids, continuation ids) of each (context, continuation).

        ``joint``: trailing spaces of the context go to the continuation, the whole is tokenised and split
        where the context alone ends (lm-eval's ``_encode_pair``). ``separate``: each part alone. An empty
        context becomes the start token.
        """
        if policy == "separate":
            contexts = self.encode(context for context, _ in pairs)
            rest = self.encode((continuation for _, continuation in pairs), special=False)
            split = [(contexts[a], rest[b]) for a, b in pairs]
        else:
            moved = [_move_spaces(a, b) for a, b in pairs]
            whole = self.encode(text for a, b in moved for text in (a, a + b) if a)
            alone = self.encode((b for a, b in moved if not a), special=False)
            split = [(whole[a], whole[a + b][len(whole[a]) :]) if a else ((), alone[b]) for a, b in moved]
        return [(a or (self.start_token,), b) for a, b in split]

    def _has_bos(self, text: str) -> bool:
        return bool(self._bos_text) and text.startswith(str(self._bos_text))


def _added_prefix(tokenizer: Any) -> TokenIds:
    """The special tokens that the tokenizer puts before a text by default."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
