"""A model's prompt for a reader: the text of an item, its token ids, and where the answer begins."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cme_bench.engines.base import GenerateRequest, TokenIds
from cme_bench.engines.virtual import is_virtual, key_of
from cme_bench.prompts.items import Item, RenderedItem

BOUNDARY = "||"
"""Stands between the context and the continuation that is scored."""


def preview_text(item: RenderedItem) -> Iterator[str]:
    """Yield the lines that show an item without a tokenizer: its prompt, what is scored, the gold answer."""
    contexts = list(dict.fromkeys(str(instance.args[0]) for instance in item.instances))
    for context in contexts:
        yield "prompt:"
        yield textwrap.indent(context, "  | ", lambda line: True)
    for number, image in enumerate(item.images, start=1):
        where = f", {image.source}" if isinstance(image.source, Path) else ""
        yield f"image {number}: {image.width} x {image.height} pixels, sha256 {image.digest[:12]}{where}"
    if item.choices:
        yield "scored:"
        for context, choice in zip(item.contexts, item.choices, strict=True):
            before = f"{context[-30:]!r} " if len(contexts) > 1 else ""
            yield f"  {before}{BOUNDARY} {choice!r}"
    yield f"gold: {item.target!r}"


def preview_tokens(item: Item, tokenizer: Any) -> Iterator[str]:
    """Yield the lines that show an item's token ids, context and continuation parted by ``||``."""
    if isinstance(item.request, GenerateRequest):
        prompt = item.request.prompt
        yield f"tokens ({len(prompt)}, then at most {item.request.max_new_tokens} generated):"
        yield f"  {_ids(prompt)} {BOUNDARY}"
    else:
        yield "tokens:"
        shown: TokenIds | None = None
        for context, continuation in item.request.rows:
            if context != shown:
                yield f"  {_ids(context)} {BOUNDARY}  ({len(context)} of context)"
                shown = context
            pieces = [tokenizer.decode([token]) for token in continuation]
            yield f"    {BOUNDARY} {_ids(continuation)}  {pieces}"
    if item.truncated:
        yield f"truncated: {item.truncated} tokens are cut from the left"


def _ids(tokens: Sequence[int]) -> str:
    """Return ids as a line; a run of those of an image is told by its length."""
    shown: list[str] = []
    for seen, run in itertools.groupby(tokens, lambda token: key_of(token) if is_virtual(token) else None):
        ids = list(run)
        shown += map(str, ids) if seen is None else [f"<image: {len(ids)} tokens>"]
    return " ".join(shown)
