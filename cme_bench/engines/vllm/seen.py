"""Prompts as vLLM takes them: token ids, and for images their pixels and a name by which they are cached."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cme_bench.engines.reader import ImageReader
from cme_bench.engines.requests import Request, TokenIds
from cme_bench.engines.virtual import VIRTUAL, key_of, place_of
from cme_bench.images.image import Image
from cme_bench.util.errors import CmeError

MOST_IMAGES = 16
"""Most images of one prompt for which vLLM is started."""


class Prompts:
    """Turn ids into vLLM's prompts; those of images stand for one token each, which vLLM expands itself."""

    def __init__(self, reader: ImageReader | None) -> None:
        self._reader = reader
        self._images: dict[int, Image] = {}

    def know(self, requests: Iterable[Request]) -> None:
        """Know the images of ``requests``, beside those of before. CmeError if two share a key."""
        for image in dict.fromkeys(image for request in requests for image in request.images):
            if self._reader is None:
                raise CmeError("requests have images, but the engine was given nothing that reads them")
            key = self._reader.key(image)
            if self._images.setdefault(key, image) != image:
                raise CmeError(f"two images have the same key in this run: {self._images[key]} and {image}")

    def of(self, engine: Any, ids: TokenIds) -> Any:
        """Return what ``engine`` is asked for a prompt of ``ids``."""
        if self._reader is None or max(ids) < VIRTUAL:
            return {"type": "token", "prompt_token_ids": list(ids)}
        told = [i for i in ids if i < VIRTUAL or place_of(i) == 0]
        keys = [key_of(i) for i in told if i >= VIRTUAL]
        pixels = [self._images[key].pixels() for key in keys]
        prompt = {
            "prompt_token_ids": [self._reader.token_id if i >= VIRTUAL else i for i in told],
            "multi_modal_data": {"image": pixels},
            "multi_modal_uuids": {"image": [f"{self._images[key].digest}-{key}" for key in keys]},
        }
        [rendered] = engine.renderer.render_cmpl([prompt])
        _check_length(rendered["prompt_token_ids"], ids)
        return rendered


def _check_length(rendered: Sequence[int], ids: TokenIds) -> None:
    """Raise CmeError unless vLLM gives an image as many tokens as the model's own processor."""
    if len(rendered) != len(ids):
        raise CmeError(
            f"vLLM makes {len(rendered)} tokens of a prompt with images, the model's own processor "
            f"{len(ids)}; use --engine hf"
        )
