"""Encoded images as files beside rows, named by their contents."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cme_bench.util.files import replacing

_ENDINGS = ((b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"))


def ending_of(contents: bytes) -> str | None:
    """Return the suffix of a file with these contents; None if they are no PNG, JPEG or WebP."""
    if (contents[:4], contents[8:12]) == (b"RIFF", b"WEBP"):
        return ".webp"
    return next((ending for magic, ending in _ENDINGS if contents.startswith(magic)), None)


def store_image(contents: bytes, folder: Path) -> str:
    """Write a file of these contents into ``folder``, once, and return its name. OSError if it cannot be."""
    name = hashlib.sha256(contents).hexdigest()[:32] + (ending_of(contents) or ".bin")
    file = folder / name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file, to_disk=False) as stream:
            stream.write(contents)
    return name
