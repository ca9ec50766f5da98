"""How an engine asks a model's own processor of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from cme_bench.images.image import Image

if TYPE_CHECKING:
    from torch import Tensor


class ImageReader(Protocol):
    """Read images as a model's processor does.

    ``token_id``: what stands for a token of an image in the model's own rows; ``backend``: what computes.
    """

    token_id: int
    backend: str

    def key(self, image: Image) -> int:
        """Return what an image is known by in virtual ids."""

    def places(self, image: Image) -> int:
        """Return how many tokens it takes."""

    def inputs(self, images: Sequence[Image]) -> Mapping[str, Tensor]:
        """Return what the model's forward takes beside the ids of a prompt with these images, in order."""
