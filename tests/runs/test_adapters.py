"""Runs with adapters: one base, several adapters, a folder each; dead and foreign adapters are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.errors import UsageError
from cme_bench.reports.runs import open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs import responder, runner
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file

CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM"),
    "teamlora": TeamLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM"),
    "moelora": MoeLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM"),
    "hydralora": HydraLoraConfig(r=4, num_experts=3, task_type="CAUSAL_LM"),
    "moslora": MosLoraConfig(r=4, task_type="CAUSAL_LM"),
}


def save_adapter(base: Path, out: Path, config: PeftConfig, *, alive: bool = True) -> Path:
    torch.manual_seed(2)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    if alive:
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out)
    return out


def logprobs(folder: Path) -> list[list[float]]:
    records = sorted(read_records(samples_file(folder, "cme_rte_ll")), key=lambda r: int(r["id"]))
    return [r["response"]["logprobs"] for r in records]


def options(model: Path, out: Path, *adapters: Path, **changes: Any) -> RunOptions:
    settings: dict[str, Any] = {"tasks": "cme_rte_ll", "data": "mini", "limit": 4} | changes
    return RunOptions(model=str(model), out=out, adapters=tuple(str(a) for a in adapters), **settings)


def test_every_method_on_one_base(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [save_adapter(tiny_checkpoint, tmp_path / name, config) for name, config in CONFIGS.items()]
    loads = []
    original = responder.load_model
    monkeypatch.setattr(responder, "load_model", lambda *args: loads.append(1) or original(*args))
    builds = []
    build = runner.build_items
    monkeypatch.setattr(runner, "build_items", lambda *a, **k: builds.append(1) or build(*a, **k))
    folders = run(options(tiny_checkpoint, tmp_path / "all", *adapters))
    assert len(loads) == 1, "the base is loaded once"
    assert len(builds) == 1, "prompts are made once"
    assert [f.name for f in folders] == list(CONFIGS)
    (alone,) = run(options(tiny_checkpoint, tmp_path / "alone", adapters[-2]))
    (base,) = run(options(tiny_checkpoint, tmp_path / "base"))
    torch.testing.assert_close(logprobs(alone), logprobs(folders[-2]), atol=1e-5, rtol=0)
    answers = {str(logprobs(f)) for f in (*folders, base)}
    assert len(answers) == len(CONFIGS) + 1, "every adapter changes the answers, each in its own way"
    (table,) = comparison_tables([open_run(f) for f in (base, *folders)])
    assert [row[1].text for row in table.rows] == ["base", *CONFIGS]
    assert "tiny + teamlora" in render([table], "md")
    manifest = orjson.loads((folders[1] / "run.json").read_bytes())
    assert manifest["adapter"]["rank"] == 2
    assert manifest["adapter"]["experts"] == 4
    assert manifest["adapter"]["hash"] == manifest["identity"]["adapter"]


def test_an_adapter_that_changes_nothing_fails_the_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    dead = save_adapter(tiny_checkpoint, tmp_path / "dead", CONFIGS["teamlora"], alive=False)
    with pytest.raises(UsageError, match="'dead' changes no logit"):
        run(options(tiny_checkpoint, tmp_path / "r", dead))


def test_the_saved_prompt_format_wins_over_the_default(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "team", CONFIGS["teamlora"])
    (adapter / "cme_training.json").write_text('{"prompt_format": "teamlora"}')
    (folder,) = run(options(tiny_checkpoint, tmp_path / "r", adapter))
    task = orjson.loads((folder / "run.json").read_bytes())["tasks"]["cme_rte_ll"]
    assert (task["prompt_format"], task["policy"]) == ("teamlora", "separate")
    assert next(iter(read_records(samples_file(folder, "cme_rte_ll"))))["prompt"].endswith("</s>")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda d: (d / "adapter_model.safetensors").rename(d / "adapter_model.bin"), "pickle|safetensors"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x00" * 64), "adapter_model.safetensors"),
    ],
)
def test_broken_adapters_are_refused(tiny_checkpoint: Path, tmp_path: Path, harm: Any, message: str) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "team", CONFIGS["teamlora"])
    harm(adapter)
    with pytest.raises(UsageError, match=message):
        run(options(tiny_checkpoint, tmp_path / "r", adapter))


def test_no_such_adapter_and_equal_names(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        run(options(tiny_checkpoint, tmp_path / "r", tmp_path / "none"))
    adapter = save_adapter(tiny_checkpoint, tmp_path / "team", CONFIGS["teamlora"])
    with pytest.raises(UsageError, match="two adapters would write"):
        run(options(tiny_checkpoint, tmp_path / "r", adapter, adapter))
