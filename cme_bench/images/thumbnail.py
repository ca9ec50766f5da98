"""Small copies of images, for pages that show what a model was asked."""

from __future__ import annotations

import io

from cme_bench.images.image import FORMATS, Image, rgb

SIDE = 160
"""Pixels of its longer side, at most."""
MOST_BYTES = 32 * 2**10


def thumbnail(image: Image) -> bytes:
    """Return a small copy as WebP. ImageError if its file has gone or changed."""
    import PIL.Image

    with PIL.Image.open(io.BytesIO(image.data), formats=FORMATS) as opened:
        opened.draft("RGB", (2 * SIDE, 2 * SIDE))  # a JPEG is decoded no larger than that
        small = rgb(opened)
    small.thumbnail((SIDE, SIDE))
    small.info.clear()
    stream = io.BytesIO()
    small.save(stream, "WEBP", quality=70)
    return stream.getvalue()


def is_thumbnail(data: bytes) -> bool:
    """Return whether ``data``, which anyone may have written, are a small WebP."""
    import PIL.Image

    if len(data) > MOST_BYTES or (data[:4], data[8:12]) != (b"RIFF", b"WEBP"):
        return False
    try:
        with PIL.Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            return max(image.size) <= SIDE and getattr(image, "n_frames", 1) == 1
    except Exception:  # Pillow raises anything on damaged files
        return False
