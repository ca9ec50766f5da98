"""Checkpoints in the authors' layout, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from cme_bench.adapters.convert import import_authors
from cme_bench.adapters.load import load_adapter
from cme_bench.cli.adapters import adapters
from cme_bench.util.errors import UsageError
from tests.support import adapter_reference as reference
from tests.support.adapter_cases import TINY, tiny_llama

K, TOTAL, ALPHA = 4, 8, 16
MODULES = [f"model.layers.{i}.mlp.{name}" for i in range(2) for name in ("gate_proj", "up_proj", "down_proj")]


def checkpoint() -> dict[str, Tensor]:
    """Random weights as their torch.nn.Linear and Embedding keep them; M0 has a zero diagonal."""
    tensors: dict[str, Tensor] = {}
    for module in MODULES:
        d_in, d_out = (40, 24) if module.endswith("down_proj") else (24, 40)
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(TOTAL, d_in)
        for i in range(K):
            tensors[f"{prefix}.lora_B{i}.weight"] = torch.randn(d_out, TOTAL // K)
        tensors[f"{prefix}.lora_route.fc.weight"] = torch.randn(K, d_in)
        m0 = torch.empty(K, K).uniform_(-0.1, 0.1).fill_diagonal_(0.0)
        tensors[f"{prefix}.lora_interaction_matrix.weight"] = m0
    return tensors


def write(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": TOTAL, "lora_alpha": ALPHA, "lora_dropout": 0.05}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_conversion_is_exact(tmp_path: Path) -> None:
    tensors = checkpoint()
    source = write(tmp_path / "theirs", tensors)
    config = import_authors(source, tmp_path / "ours", "org/base")
    assert (config.r, config.num_experts, config.alpha, config.dropout) == (2, K, ALPHA, 0.05)
    assert config.scale == pytest.approx(ALPHA / TOTAL * K)
    ours = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    for module in MODULES:
        prefix = f"base_model.model.{module}"
        assert torch.equal(ours[f"{prefix}.teamlora_down"], tensors[f"{prefix}.lora_A.weight"])
        assert torch.equal(ours[f"{prefix}.teamlora_router"], tensors[f"{prefix}.lora_route.fc.weight"])
        for i in range(K):
            up = ours[f"{prefix}.teamlora_up"][:, 2 * i : 2 * i + 2]
            assert torch.equal(up, tensors[f"{prefix}.lora_B{i}.weight"])
        m0 = tensors[f"{prefix}.lora_interaction_matrix.weight"]
        assert torch.equal(ours[f"{prefix}.teamlora_interaction"] - torch.eye(K), m0.T)

    model = load_adapter(tiny_llama(), tmp_path / "ours").eval()
    for module in MODULES:
        layer = model.get_base_model().get_submodule(module)
        prefix = f"base_model.model.{module}"
        x = torch.randn(5, layer.in_features)
        wanted = reference.authors(
            x,
            tensors[f"{prefix}.lora_A.weight"],
            [tensors[f"{prefix}.lora_B{i}.weight"] for i in range(K)],
            tensors[f"{prefix}.lora_route.fc.weight"],
            tensors[f"{prefix}.lora_interaction_matrix.weight"],
            alpha=ALPHA,
            total_rank=TOTAL,
        )
        torch.testing.assert_close(layer.delta(x, "default"), wanted, atol=1e-4, rtol=1e-5)


def test_a_single_file_and_names_with_an_adapter_name(tmp_path: Path) -> None:
    tensors = {
        key.replace("base_model.model.", "").replace(".weight", ".default.weight"): value
        for key, value in checkpoint().items()
    }
    file = tmp_path / "weights.safetensors"
    save_file(tensors, file)
    with pytest.raises(UsageError, match="pass alpha"):
        import_authors(file, tmp_path / "ours", "org/base")
    config = import_authors(file, tmp_path / "ours", "org/base", alpha=8)
    assert config.alpha == 8
    load_adapter(tiny_llama(), tmp_path / "ours")
    with pytest.raises(UsageError, match="already holds an adapter"):
        import_authors(file, tmp_path / "ours", "org/base", alpha=8)


FIRST = f"base_model.model.{MODULES[2]}"


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({f"{FIRST}.lora_A.weight": None}, "down_proj.lora_A is missing"),
        ({f"{FIRST}.lora_route.fc.weight": None}, "down_proj.lora_route.fc is missing"),
        ({f"{FIRST}.lora_interaction_matrix.weight": None}, "down_proj.lora_interaction_matrix is missing"),
        ({f"{FIRST}.lora_B1.weight": None}, "down_proj.lora_B1 is missing"),
        ({f"{FIRST}.lora_A.weight": torch.ones(7, 40)}, "rank 7 does not divide into 4 experts"),
        ({f"{FIRST}.lora_A.weight": torch.ones(7)}, "lora_A has shape [7], not two dimensions"),
        ({f"{FIRST}.lora_B2.weight": torch.ones(24, 3)}, "lora_B2 has shape [24, 3]"),
        (
            {f"{FIRST}.lora_route.fc.bias": torch.ones(4)},
            "lora_route.fc.bias is not in the layout teamlora-2024-08",
        ),
        ({f"{FIRST}.lora_A.other.weight": torch.ones(8, 40)}, "twice, under two adapter names"),
        ({f"{FIRST}.lora_B{i}.weight": None for i in range(1, 4)}, "has 1 lora_B"),
        (
            {
                f"{FIRST}.lora_A.weight": torch.ones(4, 40),
                **{f"{FIRST}.lora_B{i}.weight": torch.ones(24, 1) for i in range(4)},
            },
            "layers differ in rank",
        ),
    ],
)
def test_broken_checkpoints(change: dict[str, Tensor | None], wanted: str, tmp_path: Path) -> None:
    tensors = {**checkpoint(), **change}
    source = write(tmp_path / "theirs", {key: value for key, value in tensors.items() if value is not None})
    with pytest.raises(UsageError) as raised:
        import_authors(source, tmp_path / "ours", "org/base")
    assert wanted in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "ours").exists()


def test_pickles_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not found"):
        import_authors(tmp_path, tmp_path / "ours", "org/base")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    for source in (tmp_path, tmp_path / "adapter_model.bin"):
        with pytest.raises(UsageError, match=r"adapter_model\.bin cannot be read as tensors alone"):
            import_authors(source, tmp_path / "ours", "org/base")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        import_authors(tmp_path, tmp_path / "ours", "org/base", alpha=1)


def test_commands(tmp_path: Path) -> None:
    source = write(tmp_path / "theirs", checkpoint())
    TINY.save_pretrained(tmp_path / "base")
    out = tmp_path / "ours"
    run = CliRunner().invoke(
        adapters, ["import", str(source), "-o", str(out), "--base", str(tmp_path / "base")]
    )
    assert run.exit_code == 0
    assert run.output.splitlines() == [
        "layout teamlora-2024-08 (the authors' layer of TeamLoRA, published 2024-08-19)",
        "teamlora, 4 experts of rank 2, scale 8, lora_alpha / r times the number of experts "
        "(r the rank of all of them together)",
        str(out),
    ]
    run = CliRunner().invoke(adapters, ["describe", str(out)])
    assert run.exit_code == 0
    rows = dict(line.split(maxsplit=1) for line in run.output.splitlines() if not line.startswith("of base"))
    assert rows["method"] == "teamlora" and rows["rank"] == "2 per expert" and rows["experts"] == "4"
    assert rows["scaling"] == "alpha/(k*r)" and rows["normalize_omega"] == "True"
    run = CliRunner().invoke(adapters, ["describe", str(out), "--json"])
    assert json.loads(run.output)["percent_of_base"] > 0
