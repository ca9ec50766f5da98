"""Router loads of runs and adapters, against hooks and single unpadded forward passes."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import orjson
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cme_bench.adapters.load import load_adapter
from cme_bench.cli import main
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.experiments import router_load
from cme_bench.experiments.options import RouterOptions
from cme_bench.experiments.router import LOAD_COLUMNS, load_frame
from cme_bench.experiments.router_load import RouterMeasurement, measure_router
from cme_bench.prompts.items import limited_ids
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.errors import UsageError

TASKS = "cme_rte_ll,cme_sciq_ll"


@pytest.fixture(scope="module")
def team_run(
    tiny_checkpoint: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "team"
    options = RunOptions(
        model=str(tiny_checkpoint), tasks=TASKS, adapters=(str(adapters["team"]),), data="mini", out=out
    )
    return run(options)[0]


def by_hooks(base: Path, adapter: Path, prompts: list[str]) -> dict[str, dict[str, Any]]:
    """Means over all tokens of phi, omega and top-1 for each layer; straight from the stored tensors."""
    model = load_adapter(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in model.get_base_model().named_modules():
        if name.endswith("_proj") and ".mlp." in name:
            module.register_forward_pre_hook(
                lambda _, args, n=name: seen.setdefault(n, []).append(args[0][0])
            )
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        for prompt in prompts:
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            model(torch.tensor([[tokenizer.bos_token_id, *ids]]))  # llama: every prompt has one
    found = {}
    for name, inputs in seen.items():
        layer = model.get_base_model().get_submodule(name)
        phi = torch.softmax(torch.cat(inputs) @ layer.teamlora_router["default"].T, -1)
        omega = phi @ layer.teamlora_interaction["default"].T
        found[name] = {
            "tokens": len(phi),
            "load": phi.mean(0).tolist(),
            "omega": omega.mean(0).tolist(),
            "top1": torch.bincount(omega.argmax(-1), minlength=3).div(len(phi)).tolist(),
            "entropy": float(torch.special.entr(phi).sum(-1).mean()),
        }
    return found


def test_a_run_equals_hooks(tiny_checkpoint: Path, adapters: dict[str, Path], team_run: Path) -> None:
    found = measure_router(RouterOptions(team_run, limit=5))
    assert [s.task for s in found.slices] == TASKS.split(",")
    assert [s.domain for s in found.slices] == ["entailment", "science"]
    assert "tiny + team (teamlora, 3 experts of rank 2, " in found.title
    assert found.title.endswith("n = 10 items of 2 tasks")
    for part in found.slices:
        records = {r.id: r.prompt for r in read_records(samples_file(team_run, part.task))}
        wanted = by_hooks(tiny_checkpoint, adapters["team"], [records[i] for i in limited_ids(records, 5)])
        assert [layer.layer for layer in part.layers] == list(wanted)
        for layer in part.layers:
            assert layer.tokens == wanted[layer.layer]["tokens"]
            assert sum(layer.load) == pytest.approx(1, abs=1e-6)
            assert sum(layer.top1) == pytest.approx(1, abs=1e-9)
            for value in ("load", "omega", "top1"):
                assert getattr(layer, value) == pytest.approx(wanted[layer.layer][value], abs=1e-5)
            assert layer.entropy == pytest.approx(wanted[layer.layer]["entropy"], abs=1e-5)


def same(one: RouterMeasurement, other: RouterMeasurement) -> None:
    pd.testing.assert_frame_equal(load_frame(one.slices), load_frame(other.slices), atol=1e-6, rtol=0)


def test_an_adapter_alone_is_asked_the_same_prompts(adapters: dict[str, Path], team_run: Path) -> None:
    """The base model is the one the adapter records."""
    alone = measure_router(RouterOptions(adapters["team"], tasks=TASKS, data="mini", limit=5))
    same(alone, measure_router(RouterOptions(team_run, limit=5)))


class Tight(CausalForward):
    """Runs out of memory at the very end of a forward pass of more than three rows."""

    failed: ClassVar[list[int]] = []

    def __call__(self, ids: Any, mask: Any, **settings: Any) -> Any:
        out = super().__call__(ids, mask, **settings)
        if len(ids) > 3:
            self.failed.append(len(ids))
            raise RuntimeError("out of memory")
        return out


def test_a_batch_that_ran_out_of_memory_counts_once(team_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = measure_router(RouterOptions(team_run, limit=6))
    monkeypatch.setattr(router_load, "CausalForward", Tight)
    same(measure_router(RouterOptions(team_run, limit=6)), wanted)
    assert Tight.failed == [6]


def test_interaction_is_the_stored_matrix(adapters: dict[str, Path], team_run: Path) -> None:
    from safetensors.torch import load_file

    found = measure_router(RouterOptions(team_run, limit=1))
    stored = load_file(adapters["team"] / "adapter_model.safetensors")
    assert len(found.interaction) == 6
    for layer, matrix in found.interaction.items():
        np.testing.assert_array_equal(
            matrix, stored[f"base_model.model.{layer}.teamlora_interaction"].double().numpy()
        )


@pytest.mark.parametrize(("name", "experts"), [("moe", 4), ("hydra", 2)])
def test_other_routed_methods(adapters: dict[str, Path], name: str, experts: int) -> None:
    found = measure_router(RouterOptions(adapters[name], tasks="cme_rte_ll", data="mini", limit=2))
    assert found.interaction == {}
    assert len(load_frame(found.slices)) == 6 * experts


def test_by_subject(adapters: dict[str, Path]) -> None:
    options = RouterOptions(
        adapters["team"], tasks="cme_mmlu_ll,cme_rte_ll", data="mini", limit=2, by="subject"
    )
    found = measure_router(options)
    assert {s.task for s in found.slices} == {"cme_mmlu_ll"}, "tasks without the field are left out"
    groups = [s.group for s in found.slices]
    assert len(groups) == len(set(groups)) > 2
    assert all(1 <= s.items <= 2 for s in found.slices)
    with pytest.raises(UsageError, match="--by colour: no item of the tasks has this field"):
        measure_router(RouterOptions(adapters["team"], tasks="cme_rte_ll", data="mini", by="colour"))


def test_only_some_tasks_of_a_run(team_run: Path) -> None:
    found = measure_router(RouterOptions(team_run, tasks="science", limit=2))
    assert [s.task for s in found.slices] == ["cme_sciq_ll"]
    with pytest.raises(UsageError, match="has no task or domain 'sciense'; did you mean 'science'"):
        measure_router(RouterOptions(team_run, tasks="sciense"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cme_bench.models.loaded.load_model", lambda *_, **__: pytest.fail("weights loaded"))


@pytest.mark.usefixtures("no_weights")
def test_refusals(
    adapters: dict[str, Path], team_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="is a lora adapter, which has no router"):
        measure_router(RouterOptions(adapters["lora"], tasks="cme_rte_ll", data="mini"))
    with pytest.raises(UsageError, match="neither a run folder"):
        measure_router(RouterOptions(tmp_path))
    base_run = shutil.copytree(team_run, tmp_path / "base")
    manifest = orjson.loads((base_run / "run.json").read_bytes())
    (base_run / "run.json").write_bytes(orjson.dumps(manifest | {"adapter": None}))
    with pytest.raises(UsageError, match="only adapters have a router"):
        measure_router(RouterOptions(base_run))
    manifest["identity"]["adapter"] = "0" * 64
    (base_run / "run.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(UsageError, match="the adapter has changed since that run"):
        measure_router(RouterOptions(base_run))
    nameless = shutil.copytree(adapters["team"], tmp_path / "nameless")
    config = orjson.loads((nameless / "adapter_config.json").read_bytes())
    (nameless / "adapter_config.json").write_bytes(orjson.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UsageError, match="records no base model; name it with --model"):
        measure_router(RouterOptions(nameless))
    monkeypatch.setattr(
        sys, "argv", ["cme-bench", "router", str(adapters["lora"]), "-o", str(tmp_path / "o")]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2


def test_command(
    team_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "router"
    arguments = ["cme-bench", "router", str(team_run), "-o", str(out), "--limit", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    files = {file.name for file in out.iterdir()}
    tables = {"router_load.csv", "router_by_domain.csv", "router_interaction.csv"}
    pictures = {f"router_{name}.png" for name in ("load", "layers", "entropy", "interaction")}
    assert files == tables | pictures
    load = pd.read_csv(out / "router_load.csv")
    assert list(load.columns) == LOAD_COLUMNS
    sums = load.groupby(["task", "layer"])["load"].sum()
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    printed = capsys.readouterr().out
    assert "n = 4 items of 2 tasks" in printed and "entailment" in printed
