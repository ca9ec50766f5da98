"""Router statistics as tidy frames: how the experts share the tokens, by layer, task and domain.

Pure functions of numbers; :mod:`cme_bench.experiments.router_load` makes the forward passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

PLACE = ["layer", "block", "module"]
LOAD_COLUMNS = [
    "task",
    "domain",
    "group",
    *PLACE,
    "items",
    "tokens",
    "expert",
    "load",
    "omega",
    "top1",
    "entropy",
]
VALUES = ["load", "omega", "top1", "entropy"]
INTERACTION_COLUMNS = [*PLACE, "row", "column", "value"]

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """Means over ``tokens`` tokens in one adapted layer; sequences have one entry for each of the k experts.

    load: softmax weight phi, sums to 1. omega: share after M, before any factor k. top1: share of tokens for
    which the expert's omega is the largest, sums to 1. entropy: of phi, in nats, at most log k.
    """

    layer: str
    tokens: int
    load: tuple[float, ...]
    omega: tuple[float, ...]
    top1: tuple[float, ...]
    entropy: float


@dataclass(frozen=True, slots=True)
class RouterSlice:
    """One group of a task's items and what the router did on their prompts; ``group`` is "" without
    grouping."""

    task: str
    domain: str
    group: str
    items: int
    layers: tuple[LayerLoad, ...]


def pooled(parts: Iterable[LayerLoad]) -> tuple[LayerLoad, ...]:
    """Return one entry for each layer, in order of first appearance: the means over the tokens of all
    parts."""
    by_layer: dict[str, list[LayerLoad]] = {}
    for part in parts:
        by_layer.setdefault(part.layer, []).append(part)
    return tuple(_pool(layer, same) for layer, same in by_layer.items())


def _pool(layer: str, parts: Sequence[LayerLoad]) -> LayerLoad:
    tokens = np.array([part.tokens for part in parts])

    def mean(values: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
        return tuple(float(v) for v in np.average(np.array(values), axis=0, weights=tokens))

    return LayerLoad(
        layer=layer,
        tokens=int(tokens.sum()),
        load=mean([part.load for part in parts]),
        omega=mean([part.omega for part in parts]),
        top1=mean([part.top1 for part in parts]),
        entropy=float(np.average([part.entropy for part in parts], weights=tokens)),
    )


def load_frame(slices: Iterable[RouterSlice]) -> pd.DataFrame:
    """Return ``LOAD_COLUMNS``: one row for every slice, layer and expert (numbered from 0).

    ``entropy`` belongs to the layer and is repeated for each of its experts.
    """
    rows = [
        (
            part.task,
            part.domain,
            part.group,
            *place(layer.layer),
            part.items,
            layer.tokens,
            expert,
            layer.load[expert],
            layer.omega[expert],
            layer.top1[expert],
            layer.entropy,
        )
        for part in slices
        for layer in part.layers
        for expert in range(len(layer.load))
    ]
    return pd.DataFrame(rows, columns=LOAD_COLUMNS)


def mean_by(load: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return ``keys``, expert and ``VALUES`` of a load frame as unweighted means: a task counts like any
    other, however long its prompts. Keys keep their order of appearance."""
    return load.groupby([*keys, "expert"], sort=False, as_index=False)[VALUES].mean()


def interaction_frame(matrices: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    """Return ``INTERACTION_COLUMNS`` of every layer's (k, k) matrix M: omega_row = sum over columns of M
    phi."""
    rows = [
        (*place(layer), row, column, float(matrix[row, column]))
        for layer, matrix in matrices.items()
        for row in range(matrix.shape[0])
        for column in range(matrix.shape[1])
    ]
    return pd.DataFrame(rows, columns=INTERACTION_COLUMNS)


def place(layer: str) -> tuple[str, int, str]:
    """Return a layer's name, the index of its decoder block (-1 if its name has none), and its own last
    name."""
    found = _BLOCK.search(layer)
    return layer, int(found[1]) if found else -1, layer.rpartition(".")[2]
