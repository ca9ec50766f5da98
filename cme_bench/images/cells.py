"""Images that lie inside rows: set aside as Arrow holds them, so that a row has a short name for each.

A split may hold gigabytes of encoded images, and rows are copied, listed and recorded. Their contents stay in
the table that was read, which may be a file mapped into memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from cme_bench.images.decode import embedded_text, image_of_contents
from cme_bench.images.image import Image, ImageError

if TYPE_CHECKING:
    import pyarrow

_NAME = re.compile(r"image-cell:(\d+):(\d+)")
Names: TypeAlias = list[str | None]


@dataclass(frozen=True, slots=True)
class ImageCells:
    """Encoded images by the names that stand for them in rows."""

    columns: tuple[pyarrow.ChunkedArray, ...] = ()

    def image(self, name: str) -> Image | None:
        """Return the image of a name; None for any other text. ImageError if it cannot be read."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        column, place = map(int, match.groups())
        if column >= len(self.columns) or place >= len(self.columns[column]):
            return None
        return image_of_contents(_contents_at(self.columns[column], place))


def _contents_at(column: pyarrow.ChunkedArray, place: int) -> pyarrow.Buffer:
    """Return a cell as a part of its table: Arrow's own scalars are copies."""
    import numpy as np
    import pyarrow

    for chunk in column.chunks:
        if place < len(chunk):
            break
        place -= len(chunk)
    if pyarrow.types.is_binary_view(chunk.type):
        return chunk[place].as_buffer()
    _, offsets, data = chunk.buffers()
    kind = np.int64 if pyarrow.types.is_large_binary(chunk.type) else np.int32
    start, end = np.frombuffer(offsets, dtype=kind)[chunk.offset + place :][:2].tolist()
    return pyarrow.py_buffer(b"") if data is None else data.slice(start, end - start)


def set_aside(table: pyarrow.Table, texts: frozenset[str]) -> tuple[pyarrow.Table, ImageCells]:
    """Return ``table`` with names in place of the images in it, and the images.

    Images are bytes, ``{bytes, path}``, and lists of either; in the columns ``texts`` also base64. A
    ``{bytes, path}`` without bytes becomes its path.
    """
    kept: list[pyarrow.ChunkedArray] = []
    for number, field in enumerate(table.schema):
        column = table.column(number)
        if (found := _named(column, len(kept), field.name in texts)) is not None:
            names, contents = found
            kept.append(contents)
            table = table.set_column(number, field.name, [names])
    return table, ImageCells(tuple(kept))


def _named(
    column: pyarrow.ChunkedArray, number: int, texts: bool
) -> tuple[pyarrow.Array, pyarrow.ChunkedArray] | None:
    """Return the names that stand for a column's images, and those; None if it has none."""
    import pyarrow
    import pyarrow.compute

    kind = column.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        flat = pyarrow.chunked_array([chunk.flatten() for chunk in column.chunks], type=kind.value_type)
        found = _named(flat, number, texts)
        if found is None:
            return None
        names, lengths = iter(found[0].to_pylist()), pyarrow.compute.list_value_length(column).to_pylist()
        lists = [None if length is None else [next(names) for _ in range(length)] for length in lengths]
        return pyarrow.array(lists, type=pyarrow.list_(pyarrow.string())), found[1]
    if texts and _is_text(kind):
        return _named_texts(column, number)
    paths: Names = [None] * len(column)
    if pyarrow.types.is_struct(kind):
        fields = {field.name: place for place, field in enumerate(kind)}
        if "bytes" not in fields or not _is_bytes(kind.field(fields["bytes"]).type):
            return None
        if "path" in fields and _is_text(kind.field(fields["path"]).type):
            paths = pyarrow.compute.struct_field(column, [fields["path"]]).to_pylist()
        column = pyarrow.compute.struct_field(column, [fields["bytes"]])
    elif not _is_bytes(kind):
        return None
    return pyarrow.array(_names(column, paths, number), type=pyarrow.string()), column


def _names(contents: pyarrow.ChunkedArray, others: Names, number: int) -> Names:
    there = contents.is_valid().to_pylist()
    pairs = enumerate(zip(there, others, strict=True))
    return [f"image-cell:{number}:{place}" if valid else other for place, (valid, other) in pairs]


def _named_texts(
    column: pyarrow.ChunkedArray, number: int
) -> tuple[pyarrow.Array, pyarrow.ChunkedArray] | None:
    """Return the names of those texts of a column that are images in base64."""
    import pyarrow

    texts: Names = column.to_pylist()
    contents = [_contents(text) for text in texts]
    if not any(contents):
        return None
    array = pyarrow.chunked_array([pyarrow.array(contents, type=pyarrow.large_binary())])
    others = [text if found is None else None for text, found in zip(texts, contents, strict=True)]
    return pyarrow.array(_names(array, others, number), type=pyarrow.large_string()), array


def _contents(text: str | None) -> bytes | None:
    """Return what a text holds in base64; None for a path, and for what is broken, which is told by row."""
    try:
        return None if text is None else embedded_text(text)
    except ImageError:
        return None


def holds_contents(kind: Any) -> bool:
    """Return whether values of an Arrow type are contents of files: bytes, ``{bytes, ...}``, or lists."""
    import pyarrow

    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return holds_contents(kind.value_type)
    if pyarrow.types.is_struct(kind):
        return any(field.name == "bytes" and _is_bytes(field.type) for field in kind)
    return _is_bytes(kind)


def _is_bytes(kind: Any) -> bool:
    import pyarrow

    tests = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def replaced(value: Any, cells: ImageCells, by: Any) -> Any:
    """Return a row, or a value of one, with ``by(image)`` in place of every name of an image."""
    if isinstance(value, str):
        image = cells.image(value) if value.startswith("image-cell:") else None
        return value if image is None else by(image)
    if isinstance(value, Mapping):
        return {key: replaced(inner, cells, by) for key, inner in value.items()}
    if isinstance(value, list):
        return [replaced(inner, cells, by) for inner in value]
    return value
