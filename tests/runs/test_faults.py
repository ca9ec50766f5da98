"""What happens to a run when memory, the model, the clock or its own files fail it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from cme_bench.cli import main
from cme_bench.models import loaded as loaded_models
from cme_bench.runs import manifest
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run as run_all
from cme_bench.runs.store import RunWriter, read_records, samples_file
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.files import read_json

TASKS = ("cme_rte", "cme_rte_ll")


def run(model: Path, out: Path, tasks: str = ",".join(TASKS)) -> Any:
    """Our part of the results of a run on our own items."""
    small_batches = {"tokens_per_batch": 700}
    run_all(RunOptions(model=str(model), tasks=tasks, data="mini", out=out, settings=small_batches))
    return read_json(out / "results.json")["cme"]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The results of a run that nothing happens to."""
    return run(tiny_checkpoint, tmp_path_factory.mktemp("whole"))


def harm(monkeypatch: pytest.MonkeyPatch, act: Callable[[torch.nn.Module], object]) -> None:
    """Have the model changed when a run has loaded it."""
    load = loaded_models.load_model

    def loaded(*arguments: Any, **settings: Any) -> Any:
        model = load(*arguments, **settings)
        act(model)
        return model

    monkeypatch.setattr(loaded_models, "load_model", loaded)


def stored(folder: Path, task: str) -> list[int]:
    return [record.id for record in read_records(samples_file(folder, task))]


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("task", TASKS)
def test_logits_that_are_no_numbers_name_task_and_item_and_lose_nothing(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Any,
    task: str,
    value: str,
) -> None:
    calls = last = 0

    def broken(module: Any, arguments: Any, output: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == last:
            output.logits[-1, -1, 5] = float(value)

    with monkeypatch.context() as patch:
        harm(patch, lambda model: model.register_forward_hook(broken))
        run(tiny_checkpoint, tmp_path / "counted", task)
        calls, last = 0, calls
        message = rf"^task {task}, item \d+.*: the model's logits are NaN or infinite; .* is stored\)$"
        with pytest.raises(CmeError, match=message):
            run(tiny_checkpoint, tmp_path / "r", task)
    assert stored(tmp_path / "r", task), "what was computed before the fault is stored"
    assert run(tiny_checkpoint, tmp_path / "r") == whole
    assert sorted(stored(tmp_path / "r", task)) == list(range(12)), "nothing twice"


def test_a_gpu_that_runs_out_of_memory_halves_the_batch(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any
) -> None:
    refused = 0

    def full(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        nonlocal refused
        if given["input_ids"].numel() > 400:
            refused += 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    harm(monkeypatch, lambda model: model.register_forward_pre_hook(full, with_kwargs=True))
    assert run(tiny_checkpoint, tmp_path / "r") == whole
    assert refused


def test_a_model_that_does_not_fit_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.nn.Module, *arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 86.00 MiB.\nmore")

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(CmeError, match=r"the weights do not fit on cpu \(CUDA out of memory\. [^\n]*\)$"):
        run(tiny_checkpoint, tmp_path / "r", "cme_rte")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 1, "cme-bench: out of memory; what was stored is intact"),
        (KeyboardInterrupt(), 3, "cme-bench: interrupted"),
    ],
)
def test_out_of_memory_and_an_early_interrupt_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def raises(*arguments: object, **_: object) -> None:
        raise error

    monkeypatch.setattr("cme_bench.runs.questions.load_suite", raises)
    monkeypatch.setattr(sys, "argv", ["cme-bench", "run", "smollm2", "--data", "mini"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(line)


def test_a_clock_that_goes_backwards_changes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any
) -> None:
    class Falling(datetime):
        now_is = datetime.now(UTC)

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            cls.now_is -= timedelta(hours=1)
            return cls.now_is

    monkeypatch.setattr(manifest, "datetime", Falling)
    monkeypatch.setattr("time.time", lambda: Falling.now().timestamp())
    run(tiny_checkpoint, tmp_path / "r", "cme_rte")
    assert run(tiny_checkpoint, tmp_path / "r") == whole
    sessions = read_json(tmp_path / "r" / "run.json")["sessions"]
    assert [session["seconds"] >= 0 for session in sessions] == [True, True]
    assert sessions[1]["started"] < sessions[0]["started"]
    assert sorted(stored(tmp_path / "r", "cme_rte")) == list(range(12)), "nothing was computed again"


def test_a_broken_results_file_is_written_anew(tiny_checkpoint: Path, tmp_path: Path, whole: Any) -> None:
    run(tiny_checkpoint, tmp_path / "r")
    (tmp_path / "r" / "results.json").write_bytes(b'{"results": {')
    assert run(tiny_checkpoint, tmp_path / "r") == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\xff", r"run\.json: broken JSON"),
        (b"{}", r"run\.json: 'identity' is missing$"),
        (
            b'{"identity": {}, "sessions": [{"seconds": "1"}]}',
            r"sessions: 0: seconds: must be a number, not text$",
        ),
    ],
)
def test_a_broken_run_json_is_named(
    tiny_checkpoint: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        run(tiny_checkpoint, tmp_path)


def test_a_line_that_is_no_record_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(tiny_checkpoint, tmp_path, "cme_rte")
    file = samples_file(tmp_path, "cme_rte")
    file.write_bytes(b'{"id": 3}\n' + file.read_bytes())
    with pytest.raises(UsageError, match=r"cme_rte\.jsonl:1: broken record \('key' is missing"):
        run(tiny_checkpoint, tmp_path, "cme_rte")


@pytest.mark.parametrize("keep", [0, 7, 2000])
def test_weights_cut_short_are_one_line(tiny_checkpoint: Path, tmp_path: Path, keep: int) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CmeError, match="the weights cannot be loaded") as caught:
        run(tmp_path / "model", tmp_path / "r", "cme_rte")
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_full_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(CmeError, match=r"cannot write .*\.lock .*run the same command again"):
        RunWriter(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere; benchmarks/faults.py mounts read-only")
def test_a_folder_that_may_not_be_written(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="cannot be written"):
        run(tiny_checkpoint, tmp_path / "r", "cme_rte")


@pytest.mark.parametrize("task", TASKS)
def test_weights_that_are_no_numbers_are_told_with_task_and_item(
    tiny_checkpoint: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(model: Any) -> None:
        model.get_input_embeddings().weight.data.fill_(float("nan"))

    harm(monkeypatch, fill)
    with pytest.raises(CmeError, match=rf"^task {task}, item \d+.*NaN or infinite"):
        run(tiny_checkpoint, tmp_path / "r", task)
