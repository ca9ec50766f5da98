"""An image as a value: known by its pixels, decoded when they are asked for."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cme_bench.util.errors import UsageError, first_line
from cme_bench.util.files import open_regular

if TYPE_CHECKING:
    import PIL.Image
    import pyarrow

MARK = "<image>"
"""Where an image stands in a prompt, as in lm-eval; ``prompts`` replaces it by the model's own token."""
MOST_PIXELS = 50_000_000
"""A larger image is refused: decoded, it would take 150 MB, and models see a few of its megapixels."""
MOST_BYTES = 256 * 2**20
FORMATS = ("PNG", "JPEG", "WEBP")


Contents: TypeAlias = "bytes | pyarrow.Buffer"
"""The contents of an encoded file."""


class ImageError(UsageError):
    """An image that cannot be read; its text says where it stands and why."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image, equal to every other of the same pixels.

    ``digest``: sha256 of ``WIDTHxHEIGHT`` and of the RGB bytes, after the rotation that its file asks for.
    ``source``: the file, or its contents, which may be a part of an Arrow table.
    """

    digest: str
    width: int
    height: int
    source: Path | Contents = field(repr=False, compare=False)

    @property
    def data(self) -> bytes:
        """The encoded file. ImageError if it is there no more."""
        return file_bytes(self.source) if isinstance(self.source, Path) else bytes(memoryview(self.source))

    def pixels(self) -> PIL.Image.Image:
        """Return the pixels: RGB, rotated as the file asks. ImageError if the file has changed since."""
        pixels = decoded(self.data)
        if isinstance(self.source, Path) and digest_of(pixels) != self.digest:
            raise ImageError(f"{shown(self.source)}: the image has changed since the task was read")
        return pixels


def image_of(source: Path | Contents) -> Image:
    """Return the image in a file, or in the contents of one. ImageError if there is none."""
    if not isinstance(source, Path):
        pixels = decoded(bytes(memoryview(source)))
    else:
        contents = file_bytes(source)
        try:
            pixels = decoded(contents)
        except ImageError as error:
            raise ImageError(f"{shown(source)}: {error}") from error
    return Image(digest_of(pixels), pixels.width, pixels.height, source)


def digest_of(pixels: PIL.Image.Image) -> str:
    """Return the sha256 of the size and the bytes of an RGB image."""
    digest = hashlib.sha256(f"{pixels.width}x{pixels.height}".encode())
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def file_bytes(file: Path) -> bytes:
    """Return the contents of a file that is no larger than images may be. ImageError if it cannot be read."""
    try:
        if file.is_dir():
            raise ImageError(f"{shown(file)} is a folder, not an image")
        with open_regular(file, error_class=ImageError) as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise ImageError(f"{shown(file)}: {reason}") from error
    if len(data) > MOST_BYTES:
        raise ImageError(f"{shown(file)}: larger than {MOST_BYTES // 2**20} MiB")
    return data


def shown(file: Path) -> str:
    """Return a path for a message of one line, which a name may not break."""
    text = str(file)
    return text if text.isprintable() and not text.endswith(" ") else repr(text)


def decoded(data: bytes) -> PIL.Image.Image:
    """Return the RGB pixels of an encoded PNG, JPEG or WebP, rotated as it asks. ImageError for anything
    else."""
    import PIL.Image

    if problem := _no_image(data):
        raise ImageError(problem)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return rgb(image)
    except PIL.Image.DecompressionBombError:
        raise ImageError(f"more than {MOST_PIXELS // 1_000_000} megapixels") from None
    except ImageError:
        raise
    except PIL.UnidentifiedImageError:  # whose text is an address
        raise ImageError("the image is damaged (its beginning is)") from None
    except Exception as error:  # Pillow raises anything on damaged files
        raise ImageError(f"the image is damaged ({first_line(error)})") from error


def rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return an image of Pillow as RGB, rotated as its EXIF data say.

    As Hugging Face's processors and lm-eval have it, transparency is dropped and not laid over a background.
    Grey values of 16 bits keep their upper 8, as those of colours do; Pillow would cut them off at 255.
    """
    import numpy as np
    import PIL.Image
    import PIL.ImageOps

    if not image.width * image.height:
        raise ImageError("an image without pixels")
    if image.width * image.height > MOST_PIXELS:
        size = f"{image.width} x {image.height}"
        raise ImageError(f"{size} pixels are more than {MOST_PIXELS // 1_000_000} megapixels")
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"an animation of {image.n_frames} frames; save the one that is meant")  # type: ignore[attr-defined]
    image.load()
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return PIL.Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of Pillow's mode {image.mode} have no fixed range; convert them to RGB")
    if image.mode == "P":
        image.info.pop("transparency", None)  # it is dropped in any case, of which Pillow would warn
    return image.convert("RGB")


def hides_pixels(image: Image) -> bool:
    """Return whether some pixels are transparent in its file, which shows what is stored below them."""
    import PIL.Image

    with PIL.Image.open(io.BytesIO(image.data), formats=FORMATS) as opened:
        if not opened.has_transparency_data:
            return False
        return min(opened.convert("RGBA").getchannel("A").tobytes()) < 255


_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\x00", "a TIFF"),
    (b"MM\x00*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "gzipped"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself (git lfs pull fetches it)"),
)


def _no_image(data: bytes) -> str:
    """Say what ``data`` are if not a PNG, JPEG or WebP; empty if they may be one."""
    start = data[:512]
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (start[:4], start[8:12]) == (
        b"RIFF",
        b"WEBP",
    ):
        return ""
    kind = (
        "an empty file"
        if not data
        else next((name for magic, name in _OTHERS if start.startswith(magic)), "")
    )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start[4:8] == b"ftyp":
        kind = "an HEIC, AVIF or video file"
    elif b"<svg" in text and text.startswith(b"<"):
        kind = "an SVG"
    elif text.startswith((b"<!doctype html", b"<html")):
        kind = "an HTML page"
    return f"{kind or 'no image'}; images are PNG, JPEG or WebP"
