"""Engine auto: one rule for a whole command, told and recorded; what was begun goes on with its engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

import cme_bench
from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.runs.engine_choice import Waiting, by_options, by_work
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.folders import goes_on
from cme_bench.runs.options import ModelOptions, RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.runner import run
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json

SMALL, LARGE = 135_000_000, 6_738_000_000
OPEN: dict[str, Any] = {"quantised": None, "device_map": None, "settings": {}}


class Notes(Listener):
    """Remembers what a run tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


def options(model: Path, **changes: Any) -> RunOptions:
    return RunOptions(model=str(model), **({"tasks": "cme_rte_ll", "data": "mini", "limit": 4} | changes))


@pytest.mark.parametrize(
    ("scored", "generated", "parameters", "engine"),
    [
        (10**9, 0, LARGE, "hf"),  # choices alone never pay for the start
        (0, 50_000, LARGE, "hf"),
        (0, 200_000, LARGE, "vllm"),
        (4000, 200_000, LARGE, "vllm"),  # both forms in one command: one engine
        (0, 200_000, SMALL, "hf"),
        (0, 20_000_000, SMALL, "vllm"),
    ],
)
def test_on_a_gpu_the_work_decides(scored: int, generated: int, parameters: int, engine: str) -> None:
    choice = by_work(Waiting(scored, generated), parameters)
    assert choice.engine == engine
    assert not generated or f"{generated:,}" in choice.because


@pytest.mark.parametrize(
    ("device", "changes", "told"),
    [
        ("cpu", {}, "no GPU"),
        ("mps", {}, "mps"),
        ("cuda", {"quantised": "gptq 4 bit"}, "gptq 4 bit"),
        ("cuda", {"device_map": "auto"}, "--device-map"),
        ("cuda", {"settings": {"shared_prefixes": 0}}, "shared_prefixes"),
    ],
)
def test_what_leaves_only_transformers(device: str, changes: dict[str, Any], told: str) -> None:
    choice = by_options(device, **(OPEN | changes))
    assert choice is not None
    assert choice.engine == "hf"
    assert told in choice.because


def test_a_plain_model_on_a_gpu_leaves_the_choice() -> None:
    assert by_options("cuda", **(OPEN | {"settings": {"max_length": 9, "block_size": 16}})) is None


def test_work_is_counted_over_all_adapters_and_both_forms() -> None:
    asked = [LoglikelihoodRequest((((1,), (2,)),)), GenerateRequest((1,), 20), GenerateRequest((1,), 5)]
    assert Waiting.of(asked, rows=3) == Waiting(scored=3, generated=75)


def test_auto_tells_and_records_its_reason(tiny_checkpoint: Path, tmp_path: Path) -> None:
    notes = Notes()
    (chosen,) = run(options(tiny_checkpoint, out=tmp_path / "auto"), notes)
    (named,) = run(options(tiny_checkpoint, out=tmp_path / "hf", engine="hf"))
    assert [line for line in notes.told if line.startswith("engine ")] == ["engine hf (auto: no GPU)"]
    auto, hf = (read_json(folder / "run.json") for folder in (chosen, named))
    assert auto["engine_because"] == "auto: no GPU"
    assert "engine_because" not in hf
    assert auto["arguments"]["engine"] == "auto"
    assert auto["identity"] == hf["identity"]
    assert (chosen / "samples/cme_rte_ll.jsonl").read_bytes() == (
        named / "samples/cme_rte_ll.jsonl"
    ).read_bytes()


def test_python_asks_as_the_command_line_does(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (found,) = cme_bench.evaluate(
        tiny_checkpoint, tasks="cme_rte_ll", data="mini", limit=2, out=tmp_path / "r", progress=False
    )
    assert read_json(found.folder / "run.json")["engine_because"] == "auto: no GPU"


def begun(folder: Path, engine: str, *, finished: bool, limit: int | None = 4) -> Path:
    tasks = {"cme_rte_ll": {"limit": limit}}
    folder.mkdir(parents=True)
    write_json(folder / "run.json", {"identity": {"engine": engine}, "finished": finished, "tasks": tasks})
    return folder


def test_which_runs_a_command_goes_on_with(tmp_path: Path) -> None:
    asked = options(tmp_path / "model")
    cut_short = begun(tmp_path / "cut", "vllm", finished=False, limit=9)
    same = begun(tmp_path / "same", "vllm", finished=True)
    smaller = begun(tmp_path / "smaller", "vllm", finished=True, limit=2)
    for folder, wanted in ((cut_short, True), (same, True), (smaller, False), (tmp_path / "none", False)):
        assert goes_on(folder, "vllm", ["cme_rte_ll"], asked) is wanted, folder
        assert not goes_on(folder, "hf", ["cme_rte_ll"], asked)
    assert not goes_on(same, "vllm", ["cme_rte_ll", "cme_boolq_ll"], asked)
    assert goes_on(smaller, "vllm", ["cme_rte_ll"], replace(asked, out=smaller)), "--out holds one engine"


def test_a_run_of_vllm_is_not_mixed_with_transformers(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cme_bench.engines.vllm.settings.require_vllm", _absent)
    asked = options(tiny_checkpoint, out=tmp_path / "r")
    (folder,) = run(asked)
    record = read_json(folder / "run.json")
    write_json(folder / "run.json", record | {"identity": record["identity"] | {"engine": "vllm"}})
    with pytest.raises(UsageError, match="holds a run with engine vllm, not hf"):
        run(asked)


def _absent() -> str:
    raise UsageError("engine vllm: vLLM is not installed")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rule sees where a GPU and a vLLM that serves are there."""
    monkeypatch.setattr("cme_bench.runs.auto_source.by_options", lambda device, **asked: None)
    monkeypatch.setattr("cme_bench.runs.auto_source.vllm_is_there", lambda: True)
    monkeypatch.setattr("cme_bench.engines.vllm.settings.require_vllm", lambda: "0.32.0")


@pytest.mark.usefixtures("a_gpu")
def test_one_adapter_that_vllm_cannot_compute_decides_for_all(tiny_checkpoint: Path, tmp_path: Path) -> None:
    configs = {
        "lora": LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM"),
        "prompts": PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    }
    for name, config in configs.items():
        model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
        get_peft_model(model, config).save_pretrained(tmp_path / name)
    much = Waiting(generated=10**12)
    for names, engine, told in (
        (["lora"], "vllm", "are worth its start"),
        (["lora", "prompts"], "hf", "peft_type PROMPT_TUNING"),
    ):
        notes = Notes()
        with open_engines(ModelOptions(model=str(tiny_checkpoint)), notes.note) as engines:
            adapters = [None, *(engines.adapter(str(tmp_path / name)) for name in names)]
            engines.decide(adapters, lambda: much, lambda engine: False)
            assert engines.computes == engine
            assert told in str(engines.because)
            engines.decide(adapters, Waiting, lambda engine: engine == "hf")
            assert engines.computes == engine, "the first decision holds"
        assert not notes.told, "an error may come first, and is one line"


@pytest.mark.usefixtures("a_gpu")
def test_a_run_that_was_begun_keeps_its_engine(tiny_checkpoint: Path) -> None:
    for begun_by, engine in (({"hf"}, "hf"), ({"vllm"}, "vllm"), ({"hf", "vllm"}, "vllm"), (set(), "vllm")):
        with open_engines(ModelOptions(model=str(tiny_checkpoint))) as engines:
            much = Waiting(generated=10**12)
            engines.decide([None], lambda much=much: much, lambda e, by=begun_by: e in by)
            assert engines.computes == engine
