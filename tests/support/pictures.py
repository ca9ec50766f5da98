"""Small images, made up and encoded."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import PIL.Image

ORIENTATION = 0x0112
"""The tag of EXIF that says how a picture must be turned."""


def picture(width: int = 5, height: int = 3, seed: int = 0) -> PIL.Image.Image:
    """An RGB image of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(colours)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    """The contents of a file of that image."""
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    return stream.getvalue()


def rotated_jpeg(orientation: int) -> bytes:
    """A JPEG of 16 x 8 pixels that asks to be turned."""
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(picture(16, 8), "JPEG", exif=exif)
