"""From a value of a row to an image: a path, the contents of a file, or what ``datasets`` makes of either."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Hashable, Mapping
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, TypeGuard

from cme_bench.images.image import Contents, Image, ImageError, image_of, rgb
from cme_bench.util.errors import first_line
from cme_bench.util.files import leads_inside

if TYPE_CHECKING:
    import PIL.Image

_DATA_URI = re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]+)*;base64,", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_BASE64_STARTS = ("iVBORw0KGgo", "/9j/", "UklGR")
"""How the base64 text of a PNG, JPEG or WebP begins."""
_LONGEST_NAME = 1024


def decode_image(value: Any, *, folder: Path | None, root: Path | None = None, place: str = "") -> Image:
    """Return the image that a value of a row stands for.

    ``value``: a path below ``folder``, the contents of a PNG, JPEG or WebP, such contents in base64 (with or
    without ``data:image/...;base64,``), ``{bytes, path}`` as ``datasets`` and Parquet files have it, or an
    image of Pillow. ImageError, with ``place`` before it, for anything else: for a path that leads out of
    ``root`` (by default ``folder``), a URL, a damaged file.
    """
    try:
        return _image(value, folder, root or folder)
    except ImageError as error:
        if not place:
            raise
        raise ImageError(f"{place}: {error}") from error


def _image(value: Any, folder: Path | None, root: Path | None) -> Image:
    if isinstance(value, Image):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return image_of_contents(bytes(value))
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        contents = value.get("bytes")
        return _image(value.get("path") if contents is None else contents, folder, root)
    if isinstance(value, str | Path):
        contents = embedded_text(str(value))
        return _from_path(str(value), folder, root) if contents is None else image_of_contents(contents)
    if is_pillow(value):
        return _from_pillow(value)
    raise ImageError(f"an image is a path or the contents of a file, not {_kind(value)}")


def _kind(value: Any) -> str:
    return "nothing (None)" if value is None else f"a value of type {type(value).__name__}"


def embedded_text(text: str) -> bytes | None:
    """Return the contents of a file that ``text`` is in base64; None if it is a path. ImageError if it is
    broken."""
    head = _DATA_URI.match(text[:200])
    if head is None and text[:5].lower() == "data:":
        raise ImageError("a data URI without ';base64,' is not read")
    if head is None and not (len(text) > _LONGEST_NAME // 16 and text.startswith(_BASE64_STARTS)):
        return None
    try:
        return base64.b64decode("".join(text[head.end() if head else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        if head is None and len(text) < _LONGEST_NAME:
            return None  # a path after all
        raise ImageError(f"broken base64 ({error})") from error


def is_pillow(value: Any) -> TypeGuard[PIL.Image.Image]:
    """Return whether a value is an image of Pillow."""
    return any(kind.__module__ == "PIL.Image" and kind.__name__ == "Image" for kind in type(value).__mro__)


def _from_pillow(image: PIL.Image.Image) -> Image:
    try:
        pixels = rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow raises anything on damaged files, which it reads late
        raise ImageError(f"the image is damaged ({first_line(error)})") from error
    pixels.info.clear()
    stream = io.BytesIO()
    pixels.save(stream, "PNG", compress_level=1)
    return image_of_contents(stream.getvalue())


def image_of_contents(contents: Contents) -> Image:
    """Return the image in the contents of a file. ImageError if there is none."""
    return _known(hashlib.sha256(memoryview(contents)).digest(), contents)


def _from_path(text: str, folder: Path | None, root: Path | None) -> Image:
    file = Path(os.path.realpath(_file(text, folder, root)))
    try:
        status = file.stat()
    except OSError:
        return image_of(file)  # which says what is wrong
    return _known((file, status.st_size, status.st_mtime_ns, status.st_ino), file)


_sizes: dict[Hashable, tuple[str, int, int]] = {}
"""What was decoded before: thousands of rows may share one image."""
_MOST_KNOWN = 200_000


def _known(key: Hashable, source: Path | Contents) -> Image:
    """Return the image of ``source``, decoded only where ``key`` is new."""
    if (known := _sizes.get(key)) is not None:
        return Image(*known, source)
    image = image_of(source)
    if len(_sizes) >= _MOST_KNOWN:
        _sizes.clear()
    _sizes[key] = (image.digest, image.width, image.height)
    return image


def _file(text: str, folder: Path | None, root: Path | None) -> Path:
    """Return the file that a row names. ImageError for a URL, and for what lies out of ``root``."""
    if _URL.match(text):
        raise ImageError(f"{text[:80]!r} is a URL: images are not fetched; save the file beside the rows")
    if not text.strip():
        raise ImageError("the path is empty")
    if "\x00" in text or len(text) > _LONGEST_NAME:
        raise ImageError(f"{text[:40]!r}... is no path, and no image in base64")
    if folder is None or root is None:
        raise ImageError(
            f"{text!r} is a path, but these rows lie in no folder, or in several: put them into one"
        )
    if PureWindowsPath(text).drive:
        raise ImageError(f"{text!r} leads out of {root}, so it is not read")
    file = _there(folder, text)
    if not leads_inside(file, root):
        raise ImageError(f"{text!r} leads out of {root}, so it is not read; put the images below that folder")
    return file


def _there(folder: Path, text: str) -> Path:
    """Return the file of a path as it is written, else with Windows' separators or in the other form of
    Unicode, which macOS writes."""
    ways = [text, PureWindowsPath(text).as_posix() if "\\" in text else text]
    ways += [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    return next((folder / way for way in ways if os.path.lexists(folder / way)), folder / text)
