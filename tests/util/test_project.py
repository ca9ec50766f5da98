"""The project file: task folders and defaults, found from below, and its errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.util.errors import UsageError
from cme_bench.util.project import find_project, read_project
from tests.support.command import called

TASK = "task: own\ntest_split: test\ndataset_path: x/y\ndoc_to_text: x\ndoc_to_target: y\n"


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str
) -> tuple[int, str]:
    monkeypatch.chdir(folder)
    code, out, err = called(monkeypatch, capsys, *arguments)
    return code, out + err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.yaml").write_text(TASK)
    (tmp_path / "below").mkdir()
    return tmp_path


def write(folder: Path, text: str) -> Path:
    file = folder / "cme-bench.toml"
    file.write_text(text)
    return file


def test_task_folders_are_included_from_anywhere_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write(folder, 'include = ["own"]\n')
    for place in (folder, folder / "below"):
        code, text = call(monkeypatch, capsys, place, "tasks", "ls", "own")
        assert (code, text.splitlines()[-1].split()[2]) == (0, "own")
    (folder / "cme-bench.toml").unlink()
    code, text = call(monkeypatch, capsys, folder, "tasks", "ls", "own")
    assert code == 2


def test_defaults_give_way_to_flags(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write(folder, "[defaults]\nshots = 2\n")
    _, text = call(monkeypatch, capsys, folder, "tasks", "preview", "cme_rte_ll")
    assert "policy joint, 2 shots" in text
    _, text = call(monkeypatch, capsys, folder, "tasks", "preview", "cme_rte_ll", "--shots", "1")
    assert "policy joint, 1 shots" in text


def test_paths_are_from_the_file(folder: Path) -> None:
    (folder / "data").mkdir()
    file = write(folder, '[defaults]\ndata = "data"\ntasks = "own"\n')
    project = find_project(folder / "below")
    assert project is not None
    assert project.file == file
    assert project.defaults == {"data": str(folder / "data"), "tasks": "own"}
    write(folder, '[defaults]\ndata = "mini"\n')
    assert read_project(file).defaults == {"data": "mini"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include = [", ": broken project file ("),
        ('inclde = ["own"]\n', ":1: unknown key 'inclde'; did you mean 'include'?"),
        ('include = "own"\n', ":1: 'include' must be a list of paths"),
        ('# mine\ninclude = ["nosuch"]\n', ":2: {folder}/nosuch: no such file or folder"),
        ("defaults = 3\n", ":1: 'defaults' must be a table"),
        ("[defaults]\n\nallow-code = true\n", ":3: 'allow-code' is only for the command line"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(folder: Path, text: str, message: str) -> None:
    file = write(folder, text)
    with pytest.raises(UsageError) as caught:
        read_project(file)
    assert str(caught.value).startswith(f"{file}{message.format(folder=folder)}")


def test_an_option_that_no_command_has_is_named_with_its_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    file = write(folder, "[defaults]\nshots = 1\nlimitt = 3\n")
    code, text = call(monkeypatch, capsys, folder, "tasks", "ls")
    assert (code, text) == (2, f"cme-bench: {file}:3: no option --limitt; did you mean 'limit'?\n")


@pytest.mark.parametrize("tasks", ['["own", "nope"]', '"own,nope"'])
def test_a_list_of_the_file_is_what_commas_are_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, tasks: str
) -> None:
    write(folder, f'include = ["own"]\n\n[defaults]\ntasks = {tasks}\n')
    code, text = call(monkeypatch, capsys, folder, "fetch", "--out", "rows")
    assert (code, text.startswith("cme-bench: unknown task 'nope'")) == (2, True), text


def test_a_default_is_checked_as_the_option_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    write(folder, '[defaults]\nengine = "vlm"\n')
    code, text = call(monkeypatch, capsys, folder, "run", "nothere")
    assert (code, text) == (
        2,
        "cme-bench: unknown engine 'vlm'; did you mean 'vllm'? (one of auto, hf, vllm, ray, server)\n",
    )
