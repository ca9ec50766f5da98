"""Frames from router statistics."""

from __future__ import annotations

import numpy as np
import pytest

from cme_bench.experiments.router import (
    INTERACTION_COLUMNS,
    LOAD_COLUMNS,
    LayerLoad,
    RouterSlice,
    interaction_frame,
    load_frame,
    mean_by,
    place,
    pooled,
)

GATE, UP = "model.layers.3.mlp.gate_proj", "model.layers.12.mlp.up_proj"


def layer(name: str, tokens: int, load: tuple[float, float], entropy: float = 0.5) -> LayerLoad:
    return LayerLoad(name, tokens, load, (2 * load[0], -load[1]), (1.0, 0.0), entropy)


def test_pooling_weighs_by_tokens() -> None:
    parts = [layer(GATE, 10, (0.2, 0.8), 0.1), layer(UP, 1, (1.0, 0.0)), layer(GATE, 30, (0.6, 0.4), 0.5)]
    gate, up = pooled(parts)
    assert (gate.layer, gate.tokens, up.layer) == (GATE, 40, UP)
    assert gate.load == pytest.approx((0.5, 0.5))
    assert gate.omega == pytest.approx((1.0, -0.5))
    assert gate.entropy == pytest.approx(0.4)
    assert pooled([]) == ()


def test_load_frame_and_means() -> None:
    slices = [
        RouterSlice("long", "nli", "", 2, (layer(GATE, 1000, (0.2, 0.8)),)),
        RouterSlice("short", "nli", "", 2, (layer(GATE, 10, (0.6, 0.4)),)),
    ]
    frame = load_frame(slices)
    assert list(frame.columns) == LOAD_COLUMNS
    assert len(frame) == 4
    assert set(frame["block"]) == {3} and set(frame["module"]) == {"gate_proj"}
    means = mean_by(frame, ["domain", "layer"])
    assert list(means["load"]) == pytest.approx([0.4, 0.6]), "a task counts like any other"
    assert list(means["expert"]) == [0, 1]


def test_interaction_frame() -> None:
    frame = interaction_frame({UP: np.array([[1.0, 0.1], [0.2, 0.9]])})
    assert list(frame.columns) == INTERACTION_COLUMNS
    assert frame.set_index(["row", "column"])["value"].loc[(1, 0)] == 0.2
    assert list(interaction_frame({}).columns) == INTERACTION_COLUMNS


def test_places() -> None:
    assert place(UP) == (UP, 12, "up_proj")
    assert place("head") == ("head", -1, "head")
