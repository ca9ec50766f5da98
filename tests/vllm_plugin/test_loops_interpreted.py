"""The expanding kernels that loop over columns, for many tokens, without a GPU: Triton interprets them."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs with TRITON_INTERPRET=1, set before Triton is imported", allow_module_level=True)
pytest.importorskip("triton")

from cme_bench.vllm_plugin import expansion
from cme_bench.vllm_plugin.expansion import MANY, Loop, Settings, Widened
from cme_bench.vllm_plugin.reference import silu_and_mul
from tests.support.gated_cases import SPECS
from tests.vllm_plugin.test_gated_interpreted import Interpreted
from tests.vllm_plugin.test_kernels import Layer

LOOPS = {
    "y ahead": Loop(32, 32, 4, 2, 1, 6, fast=False),
    "y and B ahead": Loop(32, 32, 4, 1, 2, 6, fast=False),
    "staged": Loop(32, 64, 4, 3, 0, 6, fast=False),
    "gating": Loop(32, 32, 4, 1, 2, 6, gates=True, fast=False),
    "one block each": Loop(64, 32, 4, 1, 0, 1000, fast=False),
    "all blocks": Loop(16, 64, 4, 1, 2, 1, fast=False),
}
"""Tiles with 6 blocks of columns or 3, which one, two or more programs share."""


def widened(layer: Layer, x: torch.Tensor) -> Widened:
    """The layer's product in float32, on the CPU."""
    store, spec = layer.store(kind=torch.float32, device="cpu"), layer.spec
    settings = Settings(
        len(layer.parts),
        spec.rank,
        spec.experts,
        spec.shared_latent,
        spec.scale,
        spec.normalizer_floor or 0.0,
    )
    ext = x @ store.matrix[:, : layer.d_in].T
    return Widened(ext, store.matrix, store.interaction, layer.d_in, len(layer.weight), settings)


@pytest.mark.parametrize("tokens", [1, 33, 70])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", SPECS)
def test_the_loop_gives_what_the_reference_gives(name: str, loop: str, tokens: int) -> None:
    torch.manual_seed(0)
    spec = SPECS[name]
    spec = replace(spec, experts=4 if spec.routed else 1)
    layer = Layer(spec, "halves")
    x = torch.randn(tokens, layer.d_in)
    found = widened(layer, x).silu_of_many(LOOPS[loop])
    torch.testing.assert_close(found, silu_and_mul(layer.exact(x)), atol=1e-4, rtol=1e-4)
    layer = Layer(spec, "narrow")
    x = torch.randn(tokens, layer.d_in)
    found = widened(layer, x).add_of_many(torch.zeros(4), LOOPS[loop])
    torch.testing.assert_close(found, layer.exact(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("experts", "tokens", "room", "loops"),
    [
        (4, 5000, True, True),
        (4, 4000, True, False),
        (4, 5000, False, False),
        (3, 5000, True, False),
        (16, 5000, True, False),
    ],
    ids=["many tokens", "few tokens", "a small card", "no power of two", "latent in two chunks"],
)
def test_the_loop_is_taken_where_it_can_be(
    experts: int, tokens: int, room: bool, loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "room_for_loops", lambda: room)
    ext, nothing = torch.empty(tokens, 512), torch.empty(0)
    settings = Settings(2, 16, experts, False, 1.0, 0.0)
    held = Widened(ext, nothing, nothing, 256, 384, settings)
    assert held._can_loop(LOOPS["y ahead"], 192) == loops
    assert not held._can_loop(LOOPS["y ahead"], 208)
    assert not held._can_loop(MANY, 192)
    assert not held._can_loop(None, 192)


def test_a_layer_s_result_comes_from_the_loops_that_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    used: list[Any] = []
    loop = Widened._loop
    monkeypatch.setattr(
        Widened,
        "_loop",
        lambda self, tile, columns, *, silu: used.append(tile) or loop(self, tile, columns, silu=silu),
    )
    monkeypatch.setattr(expansion, "room_for_loops", lambda: True)
    monkeypatch.setattr(expansion, "LOOP_FROM", 16)
    monkeypatch.setattr(expansion, "SILU_OF_MANY", LOOPS["gating"])
    monkeypatch.setattr(expansion, "ADD_OF_MANY", LOOPS["y and B ahead"])
    spec = replace(SPECS["teamlora"], experts=4)
    for shape, way, silu in (
        ("halves", "gated", True),
        ("halves", "rows", True),
        ("narrow", "rows", False),
        ("narrow", "gated", False),
    ):
        layer = Interpreted(spec, shape)
        for tokens in (15, 33):
            x = torch.randn(tokens, layer.d_in)
            wanted = layer.exact(x)
            found = layer.apply(x, way, silu=silu)
            torch.testing.assert_close(found, silu_and_mul(wanted) if silu else wanted, atol=1e-4, rtol=1e-4)
            assert len(used) == (tokens == 33)
            used.clear()
    Interpreted(spec, "wide").apply(torch.randn(33, 256), "rows")
    assert not used
