"""Prompts with images: the marks become the model's own placeholders, and their tokens virtual ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cme_bench.engines.base import TokenIds
from cme_bench.engines.virtual import is_virtual, virtual_ids
from cme_bench.images.image import MARK, Image
from cme_bench.models.vision import Vision


@dataclass(frozen=True, slots=True)
class SeenText:
    """The text of a prompt with images.

    ``text``: with the model's placeholders, as its processor takes it; ``laid_out``: with what the processor
    makes of them, one token for every run of an image's; ``images``: in order.
    """

    text: str
    laid_out: str
    images: tuple[Image, ...]


def see(vision: Vision, context: str, images: tuple[Image, ...]) -> SeenText:
    """Return the text of a prompt with ``images`` in the place of its marks, or of the model's placeholders.

    ValueError if there are not as many.
    """
    text = context.replace(MARK, vision.framed) if MARK != vision.placeholder else context
    pieces = text.split(vision.placeholder)
    if len(pieces) - 1 != len(images):
        raise ValueError(
            f"the prompt has {len(pieces) - 1} places for images ({vision.placeholder}), and {len(images)} images"
        )
    laid_out = pieces[0]
    for image, piece in zip(images, pieces[1:], strict=True):
        laid_out += vision.layout(image).text + piece
    return SeenText(text, laid_out, images)


def fill(vision: Vision, ids: TokenIds, images: Sequence[Image]) -> TokenIds:
    """Return the ids of a laid out text with the virtual ids of ``images`` in the places of their tokens.

    ValueError if the tokenizer joins or splits one of those.
    """
    runs = _runs(vision, images)
    filled: list[int] = []
    for token in ids:
        if token == vision.token_id:
            filled += next(runs, ())
        else:
            filled.append(token)
    expected = sum(vision.places(image) for image in images)
    if ids.count(vision.token_id) != sum(len(vision.layout(image).runs) for image in images):
        raise ValueError(f"its tokens have other places for images than the {expected} that its images take")
    return tuple(filled)


def _runs(vision: Vision, images: Sequence[Image]) -> Iterator[TokenIds]:
    for image in images:
        start = 0
        for count in vision.layout(image).runs:
            yield virtual_ids(vision.key(image), start, count)
            start += count


def check_cut(vision: Vision, ids: TokenIds, kept: TokenIds, prefix: int, images: Sequence[Image]) -> None:
    """Raise ValueError if a prompt that was cut to ``kept`` tokens, of which ``prefix`` are its first, lost a
    part of an image."""
    cut = len(ids) - len(kept)
    if not images or not cut:
        return
    before = len(vision.layout(images[0]).text.partition(vision.token)[0])  # as many tokens at most
    first = next(place for place, token in enumerate(ids) if is_virtual(token))
    if prefix + cut > first - before:
        raise ValueError(
            f"the prompt with {len(images)} image{'s' if len(images) > 1 else ''} has {len(ids)} tokens and "
            f"{len(kept)} fit: images are never cut; use fewer shots, or a model with more positions"
        )
