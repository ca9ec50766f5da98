"""Rows as they are stored: images, sounds and the like in them are decoded by those who need them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets


def undecoded(table: datasets.Dataset) -> datasets.Dataset:
    """Return a table whose images, sounds and the like stay ``{bytes, path}``, as they are stored.

    A mapping that is stored as JSON (of rows with different keys) is a mapping all the same.
    """
    import datasets
    from datasets.features.features import _visit

    found = []

    def keep(feature: Any) -> Any:
        if getattr(feature, "decode", False) is True and not isinstance(feature, datasets.Json):
            found.append(feature)
            return replace(feature, decode=False)
        return feature  # None would leave what stands around it as it was

    features = datasets.Features({name: _visit(kind, keep) for name, kind in table.features.items()})
    return table_of(arrow_of(table), features) if found else table


def arrow_of(table: datasets.Dataset) -> Any:
    """Return the rows as an Arrow table, which stays where it lies."""
    return (table if table._indices is None else table.flatten_indices()).data.table


def table_of(arrow: Any, features: datasets.Features) -> datasets.Dataset:
    """Return a table of ``datasets`` over an Arrow table, which stays where it lies."""
    import datasets

    return datasets.Dataset(
        arrow.replace_schema_metadata(None),
        info=datasets.DatasetInfo(features=features),
        fingerprint=datasets.fingerprint.generate_random_fingerprint(),
    )
