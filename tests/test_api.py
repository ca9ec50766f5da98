"""The Python interface on model folders: what it returns, what it refuses, that it says nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import cme_bench
from cme_bench.reports.frame import load_frame
from cme_bench.run import Score
from cme_bench.runs.options import RunOptions
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

ASKED: dict[str, Any] = {"tasks": ["cme_rte_ll", "cme_rte"], "data": "mini", "limit": 3, "progress": False}


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("api") / "lora"
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(
    tiny_checkpoint: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[cme_bench.Run]:
    out = tmp_path_factory.mktemp("runs") / "r"
    return cme_bench.evaluate(tiny_checkpoint, adapters=[None, adapter], out=out, **ASKED)


def test_a_run_for_the_model_and_for_each_adapter(runs: list[cme_bench.Run], adapter: Path) -> None:
    assert [run.folder.name for run in runs] == ["base", "lora"]
    assert [run.name for run in runs] == ["tiny", "tiny + lora"]
    base, adapted = runs
    estimate = read_json(base.folder / "results.json")["cme"]["tasks"]["cme_rte_ll"]["metrics"]["acc"]
    score = base.scores["cme_rte_ll"]
    assert (score, score.stderr, score.n, score.metric) == (estimate["value"], estimate["stderr"], 3, "acc")
    assert set(base.averages) == {"generated", "likelihood"}
    with pytest.raises(UsageError, match=r"several forms \(.*\): see Run.averages"):
        _ = base.average
    assert len(base.items) == len(load_frame([base.folder], items=True))
    assert cme_bench.open_run(adapted.folder).scores == adapted.scores


def test_scores_are_numbers_that_know_their_error() -> None:
    import pickle

    score = Score(0.25, stderr=0.1, n=4, metric="acc")
    assert (score + 0.25, repr(score)) == (0.5, "0.250 ± 0.100 (acc, n=4)")
    again = pickle.loads(pickle.dumps(score))
    assert (again, again.stderr, again.n) == (0.25, 0.1, 4)


def test_tables_and_comparisons_are_those_of_the_command_line(
    runs: list[cme_bench.Run], capsys: pytest.CaptureFixture[str]
) -> None:
    from cme_bench.cli import app

    folders = [str(run.folder) for run in runs]
    app(["table", *folders], standalone_mode=False)
    assert capsys.readouterr().out == repr(cme_bench.table(runs))
    app(["compare", *folders, "--by", "task"], standalone_mode=False)
    assert capsys.readouterr().out == cme_bench.compare(*runs).render(by="task")
    assert repr(runs[1].compare(runs[0])) == repr(cme_bench.compare(*folders))
    assert "<td>" in runs[1].compare(runs[0])._repr_html_()
    assert "tiny + lora" in cme_bench.table(folders)._repr_html_()
    assert "tiny" in runs[0]._repr_html_()
    assert "cme_rte_ll" in repr(runs[0])


def test_the_same_call_computes_nothing_again_and_nothing_is_printed(
    runs: list[cme_bench.Run], tiny_checkpoint: Path, adapter: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    again = cme_bench.evaluate(tiny_checkpoint, adapters=[None, adapter], out=runs[0].folder.parent, **ASKED)
    assert capfd.readouterr() == ("", "")
    assert [run.scores for run in again] == [run.scores for run in runs]
    assert read_json(again[1].folder / "run.json")["sessions"][-1]["items"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "cme"}, "unknown option 'task'; did you mean 'tasks'?"),
        ({"tokenizer": object()}, "tokenizer= is for a model in memory"),
        ({"adapters": []}, "adapters is empty"),
        ({"limit": 0}, "--limit: a whole number of at least 1, not 0"),
        ({"limit": True}, "--limit: a whole number"),
        ({"engine": "vlm"}, "unknown engine 'vlm'; did you mean 'vllm'?"),
        ({"engine": "hf", "workers": 2}, "--workers is for --engine ray"),
        ({"settings": {"windw": 3}}, "unknown setting 'windw'"),
        ({"tasks": "cme_rte_l"}, "cme_rte_ll"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        cme_bench.evaluate(tiny_checkpoint, **(ASKED | {"out": tmp_path / "r"} | arguments))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "r").exists()


def test_every_option_of_a_run_is_in_the_signature_with_its_default() -> None:
    shown = inspect.signature(cme_bench.evaluate).parameters
    for option in fields(RunOptions):
        if option.name not in ("model", "command", "settings", "adapters"):
            assert shown[option.name].default == option.default, option.name


def test_importing_is_instant() -> None:
    heavy = ("torch", "lm_eval", "transformers", "pandas", "numpy", "rich", "typer")
    code = f"import sys, cme_bench; cme_bench.evaluate; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
