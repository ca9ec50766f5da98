"""Texts to token ids: one place for special tokens and for the boundary between context and continuation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from cme_bench.engines.base import TokenIds
from cme_bench.prompts.bos import Bos, own_bos
from cme_bench.prompts.formats import Policy
from cme_bench.prompts.pieces import Pieces, pieces_of, tokenised, whole_pairs

PartT = TypeVar("PartT")


class Encoder:
    """Token ids of texts for one tokenizer, with exactly one BOS where the model expects one.

    ``bos`` says what begins every context; by default what the tokenizer adds by itself. A text that already
    begins with it, after any blanks, gets no second; nor does a chat whose template renders it elsewhere
    (``rendered``). What a tokenizer appends at the end (EOS) is never added to a context. ``pieces``: those
    of this tokenizer, where another encoder knows some already. ``ends``: those of the requests that
    are made of its prompts.
    """

    def __init__(
        self,
        tokenizer: Any,
        bos: Bos | None = None,
        pieces: Pieces | None = None,
        ends: TokenIds = (),
    ) -> None:
        self.tokenizer, self.ends = tokenizer, ends
        self.bos = bos or own_bos(tokenizer)
        self._bos = self.bos.prefix
        self._pieces = pieces_of(tokenizer) if pieces is None else pieces
        self._bos_text = "".join(tokenizer.convert_ids_to_tokens(list(self._bos))) if self._bos else None

    @property
    def start_token(self) -> int:
        """Return what stands in for an empty context; see :func:`start_token`."""
        return start_token(self.tokenizer)

    @property
    def prefix_length(self) -> int:
        """Number of special tokens that begin every context."""
        return len(self._bos)

    def kept(self, ids: TokenIds, room: int) -> int:
        """Return the number of tokens at the beginning of ``ids`` that truncation to ``room`` keeps: up to
        the BOS."""
        if not self._bos:
            return 0
        last = self._bos[-1]
        place = ids.index(last) if last in ids[:room] else 0
        return place + 1 if place < min(_BLANKS, room - 1) else len(self._bos)

    def encode(
        self, texts: Iterable[str], *, special: bool = True, rendered: bool = False
    ) -> dict[str, TokenIds]:
        """Return the ids of each distinct text, tokenised once, as one batch.

        ``special``: whether the prefix is added; ``rendered``: whether the texts are chats whose template
        renders the BOS, wherever that is.
        """
        bare = self._bare(texts)
        if not special:
            return bare
        return {text: self._begin(text, rendered) + ids for text, ids in bare.items()}

    def _bare(self, texts: Iterable[str]) -> dict[str, TokenIds]:
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return {}
        if self._cuts((text, "") for text in _some(distinct)):
            assert self._pieces is not None
            return dict(zip(distinct, self._pieces.ids(distinct), strict=True))
        return dict(zip(distinct, tokenised(self.tokenizer, distinct), strict=True))

    def _cuts(self, pairs: Iterable[tuple[str, str]]) -> bool:
        """Return whether texts are tokenised piece by piece: the first ones are tokenised both ways."""
        pieces = self._pieces
        if pieces is not None and pieces.right is None:
            some = list(pairs)
            pieces.right = pieces.pairs(some) == whole_pairs(self.tokenizer, some)
        return pieces is not None and bool(pieces.right)

    def encode_behind(self, text: str) -> TokenIds:
        """Return the ids of a text behind another: without what a tokenizer puts before a first word."""
        if not text:
            return ()
        before, both = (self._bare([words])[words] for words in ("a", f"a{text}"))
        return both[len(before) :] if both[: len(before)] == before else self._bare([text])[text]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], policy: Policy, *, rendered: bool = False
    ) -> list[tuple[TokenIds, TokenIds]]:
        """Return (context ids, continuation ids) of each (context, continuation).

        ``joint``: trailing spaces of the context go to the continuation, the whole is tokenised and split
        where the context alone ends (lm-eval's ``_encode_pair``). ``separate``: each part alone. An empty
        context becomes the start token. ``rendered``: as for :meth:`encode`.
        """
        if policy == "separate":
            contexts = self.encode((context for context, _ in pairs), rendered=rendered)
            rest = self.encode((continuation for _, continuation in pairs), special=False)
            split = [(contexts[a], rest[b]) for a, b in pairs]
        else:
            moved = [move_spaces(a, b) for a, b in pairs]
            alone = self._bare(b for a, b in moved if not a)
            behind = [(a, b) for a, b in moved if a]
            cut = self._cuts(_some(behind)) and self._pieces
            ids = iter(cut.pairs(behind) if cut else whole_pairs(self.tokenizer, behind))
            begun: dict[str, TokenIds] = {}  # one object each: others tell them apart by that
            split = []
            for a, b in moved:
                context, continuation = next(ids) if a else ((), alone[b])
                if a not in begun:
                    begun[a] = self._begin(a, rendered) + context if a else ()
                split.append((begun[a], continuation))
        return [(a or (self.start_token,), b) for a, b in split]

    def prefix(self, text: str, *, rendered: bool = False) -> TokenIds:
        """Return what begins a context of this text: the BOS, or nothing where the text has it."""
        return self._begin(text, rendered)

    def _begin(self, context: str, rendered: bool) -> TokenIds:
        return () if self._has_bos(context, rendered) else self._bos

    def _has_bos(self, text: str, rendered: bool) -> bool:
        if self._bos_text is None:
            return False
        return text.lstrip().startswith(self._bos_text) or (rendered and self._bos_text in text)


def _some(parts: Sequence[PartT]) -> Sequence[PartT]:
    """Return sixteen or so of ``parts``, from all over."""
    return parts[:: 1 + len(parts) // 16]


_BLANKS = 8
"""So many tokens of blanks before a template's BOS are kept with it."""


def start_token(tokenizer: Any) -> int:
    """Return what stands in for an empty context: BOS if there is one, else EOS (lm-eval's choice)."""
    token = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if token is None else token)


def move_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Return both with the spaces at the context's end moved to the continuation, as in lm-eval."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation
