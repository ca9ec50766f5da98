"""Bad input: one line on stderr, exit code 2, before any weights are loaded."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from cme_bench.cli import main
from cme_bench.runs.store import RunWriter
from cme_bench.tasks.sources import MINI_FOLDER


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cme_bench.models.loaded.load_model", lambda *_, **__: pytest.fail("weights loaded"))


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which ``cme-bench run ARGUMENTS`` is refused."""
    monkeypatch.setattr(sys, "argv", ["cme-bench", "run", *(str(a) for a in arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    told = ("preparing", "(auto: a CPU)")
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.endswith(told)]
    assert len(lines) == 1, lines
    return lines[0]


def own_data(tmp_path: Path, dataset: str = "rte") -> Path:
    shutil.copytree(MINI_FOLDER / dataset, tmp_path / "data" / dataset)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "cme_rtee"), "unknown task 'cme_rtee'; did you mean 'cme_rte'?"),
        (("--tasks", "sentimant"), "unknown task 'sentimant'; did you mean 'sentiment'?"),
        (("--data", "/no/such/folder"), "--data /no/such/folder: no such folder"),
        (("--engine", "vlm"), "unknown engine 'vlm'"),
        (("--engine", "VLLM"), "did you mean 'vllm'?"),
        (("--set", "tokens_per_batch"), "--set tokens_per_batch: write KEY=VALUE"),
        (("--engine", "ray", "--worker", "vlm"), "unknown worker 'vlm'; did you mean 'vllm'?"),
        (("--workers", "2"), "--workers is for --engine ray, not for hf"),
        (("--engine", "ray", "--address", "ray://head:10001"), "takes HOST:PORT of the cluster's head"),
        (("--dtype", "float23"), "unknown dtype 'float23'; did you mean 'float32'?"),
        (("--format", "plane"), "unknown prompt format 'plane'; did you mean 'plain'?"),
        (
            ("--set", "tokens_per_bach=3"),
            "unknown setting 'tokens_per_bach'; did you mean 'tokens_per_batch'?",
        ),
        (("--set", "tokens_per_batch=many"), "takes a positive whole number"),
        (("--include", "/no/tasks"), "/no/tasks: no such folder of task files"),
    ],
)
def test_wrong_arguments(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    line = refused(
        monkeypatch,
        capsys,
        tiny_checkpoint,
        "--data",
        "mini",
        "--tasks",
        "cme_rte",
        "--out",
        tmp_path / "r",
        *arguments,
    )
    assert message in line


def test_missing_split_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = own_data(tmp_path)
    (data / "rte" / "validation.jsonl").unlink()
    line = refused(
        monkeypatch, capsys, tiny_checkpoint, "--data", data, "--tasks", "cme_rte", "--out", tmp_path / "r"
    )
    assert f"{data}/rte/validation.jsonl: no such file" in line


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ('{"sentence1": "a"', "validation.jsonl:3: not a JSON object"),
        ('["a"]', "validation.jsonl:3: not a JSON object but a list"),
        (
            '{"sentence1": "a", "sentence2": "b", "label": 2, "idx": 9}',
            "validation.jsonl:3: task cme_rte: label 2 is out of range",
        ),
        (
            '{"sentence1": "a", "sentence2": "b", "label": "yes", "idx": 9}',
            "validation.jsonl:3: types differ",
        ),
    ],
)
def test_broken_rows(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny_checkpoint: Path,
    tmp_path: Path,
    broken: str,
    message: str,
) -> None:
    data = own_data(tmp_path)
    file = data / "rte" / "validation.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = broken
    file.write_text("\n".join(lines))
    line = refused(
        monkeypatch, capsys, tiny_checkpoint, "--data", data, "--tasks", "cme_rte", "--out", tmp_path / "r"
    )
    assert message in line


def test_model_folder_without_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    line = refused(monkeypatch, capsys, tmp_path / "model", "--data", "mini", "--out", tmp_path / "r")
    assert "no config.json" in line


def test_model_with_pickled_weights_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "pytorch_model.bin")
    line = refused(monkeypatch, capsys, tmp_path / "model", "--data", "mini", "--out", tmp_path / "r")
    assert "no .safetensors weights" in line


def test_no_such_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(monkeypatch, capsys, tmp_path / "nowhere", "--data", "mini", "--out", tmp_path / "r")
    assert "no such folder" in line


def test_hub_model_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path / "cache"))
    line = refused(monkeypatch, capsys, "owner/name", "--offline", "--data", "mini", "--out", tmp_path / "r")
    assert "cme-bench fetch owner/name" in line


def test_output_that_cannot_be_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    line = refused(
        monkeypatch,
        capsys,
        tiny_checkpoint,
        "--data",
        "mini",
        "--tasks",
        "cme_rte",
        "--out",
        tmp_path / "file" / "r",
    )
    assert "cannot be written" in line


def test_second_run_on_a_live_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with RunWriter(tmp_path / "r"):
        line = refused(
            monkeypatch,
            capsys,
            tiny_checkpoint,
            "--data",
            "mini",
            "--tasks",
            "cme_rte",
            "--out",
            tmp_path / "r",
        )
    assert "is being written by another run" in line


def test_ray_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_checkpoint: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(monkeypatch, capsys, tiny_checkpoint, "--engine", "ray", "--data", "mini")
    assert said == "cme-bench: engine ray: ray is not installed; install the extra 'ray' (README, Install)"
