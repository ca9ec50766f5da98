"""Rows with images: held without their contents, and hashed by their pixels."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from cme_bench.harness.row_images import DocToImage, RowImages
from cme_bench.images.cells import set_aside
from cme_bench.images.image import Image, ImageError
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.stored_rows import arrow_of, table_of, undecoded

_AT_ONCE = 512


def with_images(rows: Rows, named: DocToImage) -> tuple[Rows, RowImages]:
    """Return rows with names in place of the images that lie inside them, and the images by row."""
    import datasets

    images = RowImages(named, rows.folder, root=rows.root)
    before = arrow_of(undecoded(rows.table))
    after, cells = set_aside(before, images.columns)
    if not cells.columns:
        return rows, images
    inferred = datasets.Features.from_arrow_schema(after.schema.remove_metadata())
    changed = {field.name for field in after.schema if field.type != before.schema.field(field.name).type}
    kept = {name: rows.table.features[name] for name in inferred if name not in changed}
    return replace(rows, table=table_of(after, datasets.Features({**inferred, **kept}))), replace(
        images, cells=cells
    )


def pixels_hash(rows: Iterable[dict[str, Any]], images: RowImages, place: Callable[[int], str]) -> str:
    """Return the sha256 of the digests of all images of ``rows``, in order.

    Threads decode them, each distinct file once. ImageError, with the row's place, for one that cannot be
    read.
    """
    digest = hashlib.sha256()

    def found(pair: tuple[int, dict[str, Any]]) -> tuple[Image, ...]:
        try:
            return images.of(pair[1])
        except ImageError as error:
            raise ImageError(f"{place(pair[0])}: {error}") from error

    workers = (
        1 if callable(images.named) else min(8, os.cpu_count() or 1)
    )  # functions may be no friends of threads
    with ThreadPoolExecutor(workers) as pool:
        for batch in _batches(enumerate(rows)):
            for of_row in pool.map(found, batch):
                digest.update(f"{[image.digest for image in of_row]}\n".encode())
    return digest.hexdigest()


def _batches(pairs: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    while batch := list(itertools.islice(pairs, _AT_ONCE)):
        yield batch
