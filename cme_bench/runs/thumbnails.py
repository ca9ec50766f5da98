"""Small copies of the images of a run, in its folder: ``images/DIGEST.webp``.

A report can then show them wherever the folder is read; the images themselves stay where they lie.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from cme_bench.images.image import Image, ImageError
from cme_bench.images.thumbnail import MOST_BYTES, is_thumbnail, thumbnail
from cme_bench.util.errors import CmeError
from cme_bench.util.files import open_regular, storing, write_bytes

MOST = 2000
"""So many are kept of a run, some 5 MB; of further images the digests stand in the records."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


def thumbnail_file(folder: Path, digest: str) -> Path:
    """Return where a run folder keeps the small copy of an image."""
    return folder / "images" / f"{digest}.webp"


class Thumbnails:
    """Those of one run folder that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: set[str] | None = None

    def keep(self, images: Iterable[Image]) -> None:
        """Write small copies of the images that are new. CmeError if the disk is full."""
        for image in images:
            if self._kept is None:
                self._kept = {file.stem for file in (self._folder / "images").glob("*.webp")}
            if image.digest in self._kept or len(self._kept) >= MOST:
                continue
            self._kept.add(image.digest)
            try:
                small = thumbnail(image)
            except (ImageError, OSError):  # its file has gone: the answer is there, so the run goes on
                continue
            file = thumbnail_file(self._folder, image.digest)
            with storing(file):
                file.parent.mkdir(exist_ok=True)
            write_bytes(file, small, to_disk=False)


def read_thumbnail(folder: Path, digest: str) -> bytes | None:
    """Return the small copy of an image from a run folder, whoever wrote it; None if there is none."""
    if not _DIGEST.fullmatch(digest):
        return None
    try:
        with open_regular(thumbnail_file(folder, digest), inside=folder) as stream:
            data = stream.read(MOST_BYTES + 1)
    except (OSError, CmeError):
        return None
    return data if is_thumbnail(data) else None
