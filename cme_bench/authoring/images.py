"""The images of a new task: which columns hold them, and the files that its rows name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from cme_bench.authoring.columns import STRONG_ANSWERS, WEAK_ANSWERS, named
from cme_bench.authoring.table_files import Table
from cme_bench.images.decode import decode_image, embedded_text
from cme_bench.images.files import ending_of
from cme_bench.images.image import Image, ImageError
from cme_bench.tasks.values import is_blank
from cme_bench.util.errors import UsageError, did_you_mean

NO_IMAGES = "none"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_NAMES = re.compile(
    r"(?:.*_)?(?:image|img|picture|photo)s?"
    r"(?:[ _-]?(?:path|file|filename|name|url|link|bytes|base64))?[ _-]?\d*",
    re.IGNORECASE,
)
"""Names of columns that say that an image belongs to the row."""


@dataclass(frozen=True, slots=True)
class TaskImages:
    """The images of a table. ``values``: by column, what every row holds; ``folder``: where paths begin."""

    values: Mapping[str, Sequence[Any]]
    folder: Path | None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.values)

    def note(self) -> str:
        """Say which columns are shown as images."""
        return f"shown as images, before the question: {', '.join(self.columns)} (--images says otherwise)"


def part_images(
    table: Table, told: Sequence[str], folder: Path | None, *, taken: Sequence[str] = ()
) -> tuple[Table, TaskImages]:
    """Return the table without its columns of images, and those: the columns that ``told`` names, or the one
    that holds images. Those ``taken`` for something else, or named after answers, are not guessed.

    Raises UsageError where several columns hold images, or where one is named after images and holds none
    that can be read: the line names ``--images``.
    """
    every = {**{name: table.values(name) for name in table.columns}, **table.raw}
    if told == (NO_IMAGES,):
        chosen = []
    elif told:
        chosen = list(told)
        for name in chosen:
            if name not in every:
                raise UsageError(f"{table.origin}: no column {name!r}{did_you_mean(name, list(every))}")
    else:
        taken = (*taken, *named(table, (*STRONG_ANSWERS, *WEAK_ANSWERS)))
        chosen = _guessed(table, {name: values for name, values in every.items() if name not in taken})
    rows = [{key: value for key, value in row.items() if key not in chosen} for row in table.rows]
    left_out = tuple(note for note in table.notes if not any(note.startswith(f"column {c} ") for c in chosen))
    parted = replace(table, rows=rows, notes=left_out)
    return parted, TaskImages({name: every[name] for name in chosen}, folder)


def _guessed(table: Table, every: Mapping[str, Sequence[Any]]) -> list[str]:
    found = [name for name, values in every.items() if _holds_images(values)]
    if len(found) > 1:
        raise UsageError(
            f"{table.origin}: {' and '.join(found)} hold images; say which are shown, in "
            f"their order: --images {','.join(found)} (or --images none)"
        )
    if found:
        return found
    for name, values in every.items():
        others = (v for v in _there(values) if not _is_image(v) and not isinstance(v, bool | int | float))
        value = next(others, None) if _NAMES.fullmatch(name) else None
        if value is not None and not (isinstance(value, str) and " " in value.strip()):  # no prose about it
            raise UsageError(
                f"{table.origin}: column {name} may name images, but {_short(value)} is no PNG, JPEG or "
                f"WebP; say --images {name} if it is, or --images none to ask without"
            )
    return []


def _holds_images(values: Sequence[Any]) -> bool:
    """Return whether all values that are there are images, or paths of such."""
    there = _there(values)
    return bool(there) and all(map(_is_image, there))


def _there(values: Sequence[Any]) -> list[Any]:
    """Return the values that are not blank; of lists what they hold."""
    filled = [value for value in values if not is_blank(value)]
    return [one for value in filled for one in (value if isinstance(value, list) else [value])]


def _is_image(value: Any) -> bool:
    if isinstance(value, bytes):
        return ending_of(value) is not None
    if isinstance(value, Mapping):
        inner = value.get("bytes") if value.get("bytes") is not None else value.get("path")
        return inner is not None and _is_image(inner)
    if not isinstance(value, str):
        return False
    try:
        contents = embedded_text(value)
    except ImageError:
        return True  # broken, which is told by row
    if contents is not None:
        return ending_of(contents) is not None
    return "://" not in value and PurePath(value.strip()).suffix.lower() in _ENDINGS


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True, slots=True)
class WrittenImages:
    """Images as a task's rows name them. ``rows``: for each row, by column, paths; ``files``: images that are
    copied, by their path below the task's folder."""

    rows: Sequence[Mapping[str, Any]]
    files: Mapping[str, Image]


def written_images(table: Table, images: TaskImages, out: Path, name: str) -> WrittenImages:
    """Return what the rows of a task in ``out`` say of their images. Those below ``out`` stay where they are,
    others are copied to ``NAME_images``. ImageError, with the row, for one that cannot be read."""
    files: dict[str, Image] = {}
    lists = {column for column, values in images.values.items() if any(isinstance(v, list) for v in values)}
    rows: list[dict[str, Any]] = []
    for index in range(len(table.rows)):
        row: dict[str, Any] = {}
        for column, values in images.values.items():
            value = values[index]
            each = value if isinstance(value, list) else [] if is_blank(value) else [value]
            found = [decode_image(one, folder=images.folder, place=table.place(index)) for one in each]
            paths = [_path(image, out, name, files) for image in found]
            row[column] = paths if column in lists else next(iter(paths), None)
        rows.append(row)
    return WrittenImages(rows, files)


def _path(image: Image, out: Path, name: str, files: dict[str, Image]) -> str:
    if isinstance(image.source, Path) and image.source.is_relative_to(out.resolve()):
        return image.source.relative_to(out.resolve()).as_posix()
    path = f"{name}_images/{image.digest[:32]}{ending_of(image.data)}"
    files[path] = image
    return path
