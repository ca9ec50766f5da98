"""The plain form of the update against a loop over tokens and experts."""

from __future__ import annotations

import pytest
import torch

from cme_bench.vllm_plugin.reference import add_up, gated_latent, shares
from cme_bench.vllm_plugin.spec import GatedSpec
from tests.support.gated_cases import SPECS, random_tensors, update


@pytest.mark.parametrize("name", SPECS)
def test_two_parts_of_a_merged_layer(name: str) -> None:
    """Gate and up projection side by side, with a stretch between them that no adapter writes."""
    spec = SPECS[name]
    parts = [random_tensors(spec, 10, size, seed) for seed, size in enumerate((6, 8))]
    spans = [(0, 0, 6), (1, 9, 17)]
    up = torch.zeros(19, spec.gated)
    for (_, start, stop), part in zip(spans, parts, strict=True):
        up[start:stop] = part["up"]
    x, y = torch.randn(5, 10), torch.randn(5, 19)
    z = x @ torch.cat([p["down"] for p in parts]).T
    gate = None
    if spec.routed:
        logits = torch.stack([x @ p["router"].T for p in parts], dim=1)
        interaction = torch.stack([p["interaction"] for p in parts]) if spec.interaction else None
        gate = shares(logits, interaction, spec)
    wanted = y.clone()
    for (_, start, stop), part in zip(spans, parts, strict=True):
        wanted[:, start:stop] += update(x, part, spec)
    found = add_up(y, gated_latent(z, gate, spec), up, spans)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_shares_are_clamped_where_their_sum_vanishes() -> None:
    spec = GatedSpec("teamlora", 1, 2, 1.0, False, True, 0.01, ("m",))
    interaction = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]])
    found = shares(torch.zeros(1, 1, 2), interaction, spec)
    assert found.isfinite().all()


def test_a_spec_survives_its_block() -> None:
    for spec in SPECS.values():
        assert GatedSpec.from_block(spec.to_block()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [({"rank": 0}, "rank is 0"), ({"experts": "4"}, "experts is '4'"), ({"modules": []}, "modules is empty")],
)
def test_a_broken_block_names_its_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatedSpec.from_block({**SPECS["teamlora"].to_block(), **change})


def test_a_missing_key_is_named() -> None:
    block = SPECS["teamlora"].to_block()
    del block["scale"]
    with pytest.raises(ValueError, match="'scale' is missing"):
        GatedSpec.from_block(block)
