"""The adapter file: written, read in slices, refused where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cme_bench.vllm_plugin.file import AdapterFileError, load_adapter, read_spec, write_adapter
from cme_bench.vllm_plugin.layout import Layout, checkpoint_modules, plan_layout
from cme_bench.vllm_plugin.spec import GatedSpec
from tests.support.gated_cases import TEAM, random_tensors

D_IN, D_OUT = 12, 8
MEMBERS = ["m.gate", "m.up"]


def column_layout(rank: int, world: int) -> Layout:
    """Gate and up projection, their outputs shared out among ``world`` ranks."""
    return plan_layout(
        MEMBERS,
        TEAM.modules,
        d_in=D_IN,
        local_in=D_IN,
        local_outs=[D_OUT // world] * 2,
        global_outs=[D_OUT] * 2,
        rank=rank,
        world=world,
    )


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        f"{module}.{part}": tensor
        for seed, module in enumerate(MEMBERS)
        for part, tensor in random_tensors(TEAM, D_IN, D_OUT, seed).items()
    }


@pytest.fixture
def file(tmp_path: Path, tensors: dict[str, Tensor]) -> Path:
    write_adapter(tmp_path / "a.safetensors", TEAM, tensors)
    return tmp_path / "a.safetensors"


def load(file: Path, layout: Layout, spec: GatedSpec = TEAM) -> dict[str, Tensor]:
    placed: dict[str, Tensor] = {}

    def place(local: Mapping[str, Tensor]) -> None:
        placed.update(local)

    load_adapter(file, spec, [(layout, place)])
    return placed


def test_the_spec_is_in_the_file(file: Path) -> None:
    assert read_spec(file) == TEAM


@pytest.mark.parametrize("world", [1, 2, 4])
def test_column_parallel_ranks_together_hold_every_row_once(
    file: Path, tensors: dict[str, Tensor], world: int
) -> None:
    halves: list[list[Tensor]] = [[], []]
    for rank in range(world):
        local = load(file, column_layout(rank, world))
        torch.testing.assert_close(local["down"], torch.cat([tensors[f"{m}.down"] for m in MEMBERS]))
        torch.testing.assert_close(local["router"], torch.cat([tensors[f"{m}.router"] for m in MEMBERS]))
        assert local["interaction"].shape == (2, TEAM.experts, TEAM.experts)
        for half, up in zip(halves, local["up"].chunk(2), strict=True):
            half.append(up)
    for module, half in zip(MEMBERS, halves, strict=True):
        assert torch.equal(torch.cat(half), tensors[f"{module}.up"])


def test_a_row_parallel_rank_holds_its_slice_of_the_input(file: Path, tensors: dict[str, Tensor]) -> None:
    spec = replace(TEAM, modules=("m.gate",))
    write_adapter(file, spec, {name: t for name, t in tensors.items() if name.startswith("m.gate.")})
    layout = plan_layout(
        ["m.gate"],
        spec.modules,
        d_in=D_IN,
        local_in=4,
        local_outs=[D_OUT],
        global_outs=[D_OUT],
        rank=2,
        world=3,
    )
    local = load(file, layout, spec)
    assert torch.equal(local["down"], tensors["m.gate.down"][:, 8:12])
    assert torch.equal(local["router"], tensors["m.gate.router"][:, 8:12])
    assert torch.equal(local["up"], tensors["m.gate.up"])


def test_key_and_value_heads_are_repeated_where_ranks_outnumber_them() -> None:
    """Six query heads and two key heads of width 4 on six ranks: three ranks share a key head."""
    names = ["q", "k", "v"]
    for rank in range(6):
        layout = plan_layout(
            names,
            names,
            d_in=8,
            local_in=8,
            local_outs=[4, 4, 4],
            global_outs=[24, 8, 8],
            rank=rank,
            world=6,
        )
        sources = [part.slices[0].source for part in layout.parts]
        assert sources == [4 * rank, 4 * (rank // 3), 4 * (rank // 3)]
        assert [part.d_out for part in layout.parts] == [24, 8, 8]


def test_one_checkpoint_module_may_stand_for_all_partitions() -> None:
    """Phi-3 keeps gate and up projection as one linear: each partition takes its slice of it."""
    layout = plan_layout(
        ["gate_up"],
        ["gate_up"],
        d_in=8,
        local_in=8,
        local_outs=[4, 4],
        global_outs=[8, 8],
        rank=1,
        world=2,
    )
    [part] = layout.parts
    assert [(s.start, s.stop, s.source) for s in part.slices] == [(0, 4, 4), (4, 8, 12)]
    assert part.d_out == 16


def test_a_member_without_adapter_leaves_its_columns_alone() -> None:
    layout = plan_layout(
        MEMBERS,
        ["m.up"],
        d_in=8,
        local_in=8,
        local_outs=[4, 4],
        global_outs=[4, 4],
        rank=0,
        world=1,
    )
    assert layout.spans == ((0, 4, 8),)


def test_packed_names() -> None:
    packed = {"gate_up_proj": ["gate_proj", "up_proj"]}
    assert checkpoint_modules("model.layers.0.mlp.gate_up_proj", packed) == [
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
    ]
    assert checkpoint_modules("model.layers.0.mlp.down_proj", packed) == ["model.layers.0.mlp.down_proj"]


def rewrite(file: Path, tensors: dict[str, Tensor]) -> None:
    write_adapter(file, TEAM, tensors)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "spec", "no spec", "torn"])
def test_a_file_that_does_not_fit_is_refused_in_one_line(
    file: Path, tensors: dict[str, Tensor], fault: str
) -> None:
    spec = TEAM
    if fault == "missing":
        del tensors["m.up.router"]
    elif fault == "extra":
        tensors["m.other.down"] = torch.zeros(1)
    elif fault == "shape":
        tensors["m.up.down"] = torch.zeros(3, D_IN)
    elif fault == "spec":
        spec = replace(TEAM, scale=9.0)
    rewrite(file, tensors)
    if fault == "no spec":
        save_file(tensors, file)
    elif fault == "torn":
        file.write_bytes(file.read_bytes()[:40])
    placed: list[Mapping[str, Tensor]] = []
    with pytest.raises(AdapterFileError) as raised:
        load_adapter(file, spec, [(column_layout(0, 1), placed.append)])
    wanted = {
        "missing": "m.up.router is missing",
        "extra": "m.other.down belongs to no",
        "shape": r"m.up.down has shape \[3, 12\], the model asks for \[12, 12\]",
        "spec": "differs .* in scale",
        "no spec": "holds no adapter",
        "torn": "not a readable safetensors",
    }
    assert raised.match(wanted[fault])
    assert str(file) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not placed


def test_a_model_without_the_module_is_refused(file: Path) -> None:
    layout = replace(column_layout(0, 1), parts=column_layout(0, 1).parts[:1])
    with pytest.raises(AdapterFileError, match=r"no linear layer m\.up"):
        load(file, layout)


def test_modules_without_tensors_are_zero_where_that_is_allowed(
    tmp_path: Path, file: Path, tensors: dict[str, Tensor]
) -> None:
    layout, whole = column_layout(0, 1), load(file, column_layout(0, 1))
    one = replace(TEAM, modules=("m.up",))
    write_adapter(tmp_path / "one.safetensors", one, {k: v for k, v in tensors.items() if "m.up." in k})
    placed: dict[str, Tensor] = {}
    assert load_adapter(tmp_path / "one.safetensors", one, [(layout, placed.update)], all_modules=False) == 1
    for name, tensor in placed.items():
        half = len(tensor) // 2
        assert not tensor[:half].any(), name
        torch.testing.assert_close(tensor[half:], whole[name][half:])
    with pytest.raises(AdapterFileError, match=r"m\.gate\.down is missing"):
        load_adapter(tmp_path / "one.safetensors", one, [(layout, placed.update)])


def test_one_spec_has_room_for_all() -> None:
    lora = replace(TEAM, method="lora", experts=1, rank=2, interaction=False, modules=("m.down", "m.up"))
    for specs in ([TEAM, lora], [lora, TEAM]):
        assert GatedSpec.room_for(specs) == replace(TEAM, modules=("m.down", "m.gate", "m.up"))
    assert GatedSpec.room_for([lora]) == lora
