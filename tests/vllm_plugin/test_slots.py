"""Slots without vLLM: the common form, the index of a step, and the update, each against an obvious one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from cme_bench.vllm_plugin.slot_form import common_room, fitted, why_no_room
from cme_bench.vllm_plugin.slot_index import TILES, SlotIndex
from cme_bench.vllm_plugin.slot_reference import Stack, by_mask, by_rows
from cme_bench.vllm_plugin.spec import GatedSpec
from tests.support.gated_cases import SPECS, random_tensors, update

D_IN, OUTS = 128, (128, 64, 192)
MIXED = [
    SPECS["teamlora"],
    replace(SPECS["lora"], rank=21, scale=0.7),
    replace(SPECS["moelora"], experts=5, rank=2),
    SPECS["hydralora"],
    replace(SPECS["normalised"], experts=2),
]
ROOMS = {
    "mixed": MIXED,
    "one latent": [SPECS["hydralora"], replace(SPECS["hydralora"], rank=7, experts=4)],
    "no router": [SPECS["lora"], replace(SPECS["lora"], rank=20)],
}


class Case:
    """A layer of three parts, the middle one without an adapter, and adapters of several specs in slots."""

    def __init__(
        self, specs: list[GatedSpec], dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> None:
        edges = [0, *np.cumsum(OUTS).tolist()]
        spans = list(pairwise(edges))
        self.spans = [(0, *spans[0]), (1, *spans[2])]
        self.specs, self.room = specs, common_room(specs)
        self.stack = Stack.empty(
            len(specs), D_IN, sum(OUTS), self.spans, self.room, dtype, dtype, torch.device(device)
        )
        self.parts = []
        for slot, spec in enumerate(specs):
            parts = [random_tensors(spec, D_IN, OUTS[i], 7 * slot + i) for i in (0, 2)]
            for part in parts:
                for name in {"down", "router"} & part.keys():
                    part[name] *= D_IN**-0.5
            self.parts.append(parts)
            tensors = {name: torch.cat([p[name] for p in parts]) for name in parts[0] if name != "up"}
            if spec.interaction:
                tensors["interaction"] = torch.stack([p["interaction"] for p in parts])
            tensors["up"] = torch.zeros(sum(OUTS), spec.gated)
            for (_, start, stop), part in zip(self.spans, parts, strict=True):
                tensors["up"][start:stop] = part["up"]
            for name, tensor in fitted(tensors, spec, self.room).items():
                place = getattr(self.stack, name)[slot]
                place.copy_(tensor.reshape(place.shape))

    def exact(self, y: Tensor, x: Tensor, slots: Tensor) -> Tensor:
        y = y.clone()
        for t, slot in enumerate(slots.tolist()):
            for (_, start, stop), part in zip(self.spans, self.parts[slot - 1], strict=True):
                if slot:
                    y[t, start:stop] += update(x[t : t + 1], part, self.specs[slot - 1])[0]
        return y


def batch(tokens: int, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, x and the slots of a step."""
    source = torch.Generator().manual_seed(tokens)
    x, y = torch.randn(tokens, D_IN, generator=source), torch.randn(tokens, sum(OUTS), generator=source)
    return y, x, torch.randint(0, slots + 1, (tokens,), generator=source)


@pytest.mark.parametrize("name", ROOMS)
def test_every_token_has_the_update_of_its_own_adapter(name: str) -> None:
    case = Case(ROOMS[name])
    y, x, slots = batch(23, len(case.specs))
    index = SlotIndex(23, len(case.specs))
    index.set(slots.numpy().astype(np.int32))
    wanted = case.exact(y, x, slots)
    torch.testing.assert_close(by_rows(y, x, index.groups, case.stack), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(by_mask(y, x, slots, case.stack), wanted, atol=1e-4, rtol=1e-4)


def test_an_empty_slot_is_the_base_model() -> None:
    stack = Stack.empty(2, D_IN, sum(OUTS), [(0, 0, 384)], common_room(MIXED), torch.float32)
    y, x, slots = batch(5, 2)
    assert torch.equal(by_rows(y, x, [(1, torch.tensor([0, 3])), (2, torch.tensor([1]))], stack), y)
    assert torch.equal(by_mask(y, x, slots, stack), y)


@pytest.mark.parametrize("sizes", [(), (0, 0, 0), (1, 0, 0), (0, 40, 3), (17, 16, 128), (300, 0, 1)])
def test_tiles_cover_all_tokens_once_and_never_mix_slots(sizes: tuple[int, ...]) -> None:
    index = SlotIndex(512, 3)
    slots = np.repeat(np.arange(1, len(sizes) + 1), sizes).astype(np.int32)
    slots = np.random.default_rng(0).permutation(np.concatenate([slots, np.zeros(20, np.int32)]))
    index.set(np.full(400, 2, np.int32))  # a step before, of which nothing may be left
    index.set(slots)
    assert np.array_equal(index.slots[: len(slots)].numpy(), slots)
    assert not index.slots[len(slots) :].any()
    for slot, rows in index.groups:
        assert rows.tolist() == np.flatnonzero(slots == slot).tolist()
    assert sum(len(rows) for _, rows in index.groups) == np.count_nonzero(slots)
    for size, limit in TILES.items():
        for tokens in (len(slots), len(slots) + 50):  # a graph adds some
            if tokens > limit:
                continue
            table = index.tiles[size].reshape(-1, 3).numpy()[: min(tokens, index.most_tiles(tokens, size))]
            seen = []
            for slot, first, end in table[table[:, 0] >= 0]:
                places = index.order[first:end].numpy()
                assert 0 < len(places) <= size
                assert (index.slots[places].numpy() == (slot + 1) % 4).all()  # the fourth is the base model
                seen += places[places < tokens].tolist()
            assert sorted(seen) == list(range(tokens))


def test_a_step_like_the_one_before_is_not_made_again() -> None:
    index = SlotIndex(40, 2)
    slots = np.array([2, 0, 1, 2], np.int32)
    index.set(slots)
    before, groups = index.order.clone(), index.groups
    index.set(slots.copy())
    assert index.groups is groups
    slots[0] = 1  # a caller's own array, changed in place
    index.set(slots)
    assert not torch.equal(index.order, before)
    assert index.order[:4].tolist() == [0, 2, 3, 1]


def test_more_tokens_than_there_is_room_for_are_an_error() -> None:
    index = SlotIndex(8, 1)
    with pytest.raises(ValueError, match="where 1032 were expected"):
        index.set(np.ones(1033, np.int32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"modules": ("m.gate", "m.other")}, "adapts m.other"),
        ({"experts": 9}, "9 experts"),
        ({"rank": 17}, "rank is 17"),
        ({"method": "lora", "experts": 1, "rank": 49, "interaction": False}, "rank is 49"),
        ({"rank": 16}, ""),
    ],
)
def test_what_does_not_fit_a_slot_is_told(change: dict[str, object], reason: str) -> None:
    room = common_room([SPECS["teamlora"], SPECS["lora"]])
    found = why_no_room(replace(SPECS["teamlora"], **change), room)  # type: ignore[arg-type]
    assert reason in found
    assert bool(found) == bool(reason)


def test_latents_of_their_own_do_not_fit_a_room_for_shared_ones() -> None:
    assert "a latent each" in why_no_room(SPECS["moelora"], common_room([SPECS["hydralora"]]))
