"""Prompts with images: the marks become the model's own placeholders, and their tokens virtual ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cme_bench.engines.base import TokenIds
from cme_bench.engines.virtual import is_virtual, virtual_ids
from cme_bench.images.image import MARK, Image
from cme_bench.models.vision import Vision
from cme_bench.prompts.encode import Encoder
from cme_bench.util.errors import UsageError


@dataclass(frozen=True, slots=True)
class SeenText:
    """The text of a prompt with images.

    ``text``: with the model's placeholders, as its processor takes it; ``laid_out``: with what the processor
    makes of them, one token for every run of an image's.
    """

    text: str
    laid_out: str


def see(vision: Vision, context: str, images: Sequence[Image]) -> SeenText:
    """Return the text of a prompt with ``images`` in the place of its marks, or of the model's placeholders.

    ValueError if there are not as many.
    """
    text = context.replace(MARK, vision.framed) if vision.placeholder != MARK else context
    pieces = text.split(vision.placeholder)
    if len(pieces) - 1 != len(images):
        raise ValueError(
            f"the prompt has {len(pieces) - 1} places for images ({vision.placeholder}) and {len(images)} "
            "images"
        )
    laid_out = pieces[0]
    for image, piece in zip(images, pieces[1:], strict=True):
        laid_out += vision.layout(image).text + piece
    return SeenText(text, laid_out)


def fill(vision: Vision, ids: TokenIds, images: Sequence[Image]) -> TokenIds:
    """Return the ids of a laid out text with the virtual ids of ``images`` in the places of their tokens.

    ValueError if there are other places: the text itself has the token of an image.
    """
    runs = list(_runs(vision, images))
    if (found := ids.count(vision.token_id)) != len(runs):
        raise ValueError(
            f"the prompt has the token {vision.token} {found} times, and its images ask for {len(runs)}"
        )
    filled: list[int] = []
    run = iter(runs)
    for token in ids:
        filled += next(run) if token == vision.token_id else (token,)
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


class Reading:
    """Turn the texts of a task's prompts into what is tokenised, and their ids into those of requests.

    Without ``vision`` both stay as they are. ``place``: what messages call an item. Errors are UsageErrors
    with its place.
    """

    def __init__(self, vision: Vision | None, encoder: Encoder, place: Callable[[int], str]) -> None:
        self._vision, self._encoder, self._place = vision, encoder, place
        self._checked: set[int] = set()
        self._filled: tuple[int, dict[TokenIds, TokenIds]] = (-1, {})

    def text(self, item: int, context: str, images: Sequence[Image]) -> str:
        """Return what is tokenised for a prompt. The first with so many images is read by the processor, too:
        one may treat several otherwise than one."""
        if self._vision is None:
            return context
        try:
            seen = see(self._vision, context, images)
            if images and len(images) not in self._checked:
                ids = self._encoder.encode([seen.laid_out], special=False)[seen.laid_out]
                self._vision.check(seen.text, images, fill(self._vision, ids, images))
                self._checked.add(len(images))
        except ValueError as error:
            raise UsageError(f"{self._place(item)}: {error}") from error
        return seen.laid_out

    def ids(self, item: int, ids: TokenIds, images: Sequence[Image]) -> TokenIds:
        """Return the ids of a prompt with those of its images."""
        if self._vision is None or not images:
            return ids
        if self._filled[0] != item:
            self._filled = (item, {})
        known = self._filled[1]
        if ids not in known:
            try:
                known[ids] = fill(self._vision, ids, images)
            except ValueError as error:
                raise UsageError(f"{self._place(item)}: {error}") from error
        return known[ids]

    def check_cut(
        self, item: int, ids: TokenIds, kept: TokenIds, prefix: int, images: Sequence[Image]
    ) -> None:
        """Raise UsageError if ``kept``, what truncation leaves of ``ids``, lost a part of an image."""
        if self._vision is not None:
            try:
                check_cut(self._vision, ids, kept, prefix, images)
            except ValueError as error:
                raise UsageError(f"{self._place(item)}: {error}") from error
