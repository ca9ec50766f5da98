"""The images of a training: numbered, so that their tokens are ids below 0, and shown to the model.

Tower and projector are frozen: the features of each distinct image are computed once, before the first step,
by the model's own code, and stand in one table. An id below 0 is a row of it. A model's input embedding is
wrapped so that such ids get their rows, and whatever comes behind it need not know of images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cme_bench.engines.base import TokenIds
from cme_bench.engines.virtual import is_virtual, key_of, place_of
from cme_bench.images.image import MARK, Image
from cme_bench.models.checkpoint import Checkpoint
from cme_bench.models.vision import Vision, vision_of
from cme_bench.prompts.seen import fill, see
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cme_bench.training.own_set import OwnSet

_TOGETHER = 32
"""Images whose features are computed before they are moved into the table."""
_MOST = 1 << 31


class Book:
    """Numbers the tokens of images in the order of their first use.

    UsageError for a model that writes more into a prompt than an image's tokens in place of its mark.
    """

    def __init__(self, vision: Vision) -> None:
        if vision.placeholder != MARK or vision.framed != MARK:
            raise UsageError(
                f"{vision.place}: it is trained on text alone. Models are trained on images whose prompts "
                f"have an image's tokens and nothing else in the place of {MARK}, as LLaVA-1.5's"
            )
        self.vision = vision
        self.images: list[Image] = []
        self.size = 0
        self._starts: dict[int, int] = {}

    def numbered(self, text: str, ids: TokenIds, images: Sequence[Image]) -> TokenIds:
        """Return the ids of a prompt, in which its ``images`` have one token each, with a number below 0 for
        each of their tokens.

        UsageError if the prompt has other places for images, or they take more than their tokens.
        """
        if see(self.vision, text, images).laid_out != text:
            raise UsageError(f"{self.vision.place}: an image becomes more than its own tokens in a prompt")
        for image in images:
            key = self.vision.key(image)
            if key not in self._starts:
                self._starts[key] = self.size
                self.images.append(image)
                self.size += self.vision.places(image)
        if self.size >= _MOST:
            raise UsageError(f"{len(self.images):,} images are too many for one training")
        filled = fill(self.vision, ids, images)
        return tuple(self._number(token) if is_virtual(token) else token for token in filled)

    def _number(self, token: int) -> int:
        return -1 - self._starts[key_of(token)] - place_of(token)


def book_of(base: Checkpoint, config: Any, tokenizer: Any, own: Sequence[OwnSet]) -> Book | None:
    """Return what numbers the images of the rows, where there are some. UsageError for a model of text."""
    seen = next((each for each in own if each.pictured), None)
    if seen is None:
        return None
    vision = vision_of(base.path, config, tokenizer)
    if vision is None:
        raise UsageError(
            f"{seen.origin}: its rows have images, and {base.name} takes text alone; take the column of "
            "images out, or name a vision-language model"
        )
    return Book(vision)


def show(model: Any, book: Book, note: Callable[[str], None]) -> None:
    """Compute the features of the images in ``book``, and put them in the place of their numbers whenever
    ``model`` embeds ids."""
    import torch

    if not book.images:
        return
    note(f"images: the features of {len(book.images):,}, once")
    table = _features(model, book)
    embedding: torch.nn.Module = model.get_input_embeddings()
    token = book.vision.token_id
    fed: list[Tensor] = []

    def hide(module: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        ids, *rest = arguments
        fed[:] = [ids]
        return (ids.masked_fill(ids < 0, token), *rest)

    def reveal(module: torch.nn.Module, arguments: tuple[Tensor, ...], out: Tensor) -> Tensor:
        ids = fed.pop()
        rows = table.to(out.device, out.dtype)[(-1 - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], rows, out)

    embedding.register_forward_pre_hook(hide)
    embedding.register_forward_hook(reveal)


def _features(model: Any, book: Book) -> Tensor:
    """Return the features of all images, [tokens, hidden], on the model's device."""
    import torch

    from cme_bench.engines.hf.images import Images

    embedding: Any = model.get_input_embeddings()
    device = embedding.weight.device
    seen = Images(model, book.vision, device)
    parts: list[Tensor] = []
    for start in range(0, len(book.images), _TOGETHER):
        chunk = book.images[start : start + _TOGETHER]
        seen.know(chunk)
        parts += [table.to(model.dtype) for table in seen.features(chunk)]
    with torch.inference_mode(False):
        return torch.cat([part.clone() for part in parts])
