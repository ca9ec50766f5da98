"""Options in a file, and those of an earlier run: what is typed wins, and what is wrong is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import cme_bench.cli
from cme_bench.cli.given import ConfigFile, FromRun
from cme_bench.cli.help import command, group
from cme_bench.cli.plugins import Plugins
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.util.errors import CmeError, UsageError

GOT: list[RunOptions] = []


@pytest.fixture
def taker() -> typer.Typer:
    """A command with the options of ``run`` that only keeps them, below the project file's defaults."""
    app = group(name="t")
    app.callback()(cme_bench.cli.project.project)

    @command(app, {})
    def run(
        options: RunOptions, config: ConfigFile = None, again: FromRun = None, plugin: Plugins = ()
    ) -> None:
        """Keep what is given."""
        GOT.append(options)

    return app


def taken(app: typer.Typer, *words: str) -> RunOptions:
    done = CliRunner().invoke(app, ["run", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return GOT.pop()


def test_a_file_gives_every_kind_of_option(taker: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    (tmp_path / "rows").mkdir()
    file.write_text(
        'model = "m"\ntasks = ["nli", "cme_rte"]\nlimit = 5\nadapter = ["a", "b"]\ntemperature = 1\n'
        'format = "plain"\noffline = true\nout = "o"\nset = {tokens_per_batch = 64, block_size = 8}\n'
        'data = "rows"\nmax-new-tokens = 7\n'
    )
    got = taken(taker, "--config", str(file))
    assert got.model == "m" and got.tasks == "nli,cme_rte" and got.limit == 5 and got.adapters == ("a", "b")
    assert got.temperature == 1 and got.prompt_format == "plain" and got.offline and got.out == Path("o")
    assert dict(got.settings) == {"tokens_per_batch": 64, "block_size": 8}
    assert got.data == str(tmp_path / "rows"), "beside the file, since nothing is in the working folder"
    typed = taken(
        taker, "other", "--config", str(file), "--limit", "9", "--adapter", "c", "--set", "window=2"
    )
    assert (typed.model, typed.limit, typed.adapters) == ("other", 9, ("c",))
    assert dict(typed.settings) == {"window": 2} and typed.max_new_tokens == 7


def test_the_file_wins_over_the_project(
    taker: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cme-bench.toml").write_text('[defaults]\nlimit = 3\ndata = "mini"\n')
    (tmp_path / "run.toml").write_text("limit = 4\n", encoding="utf-8-sig")
    monkeypatch.chdir(tmp_path)
    got = taken(taker, "m", "--config", "run.toml")
    assert (got.limit, got.data) == (4, "mini")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("limitt = 3", "run.toml:2: unknown key 'limitt'; did you mean 'limit'?"),
        ('limit = "3"', "run.toml:2: 'limit' takes a whole number, not '3'"),
        ("limit = true", "run.toml:2: 'limit' takes a whole number, not True"),
        ("limit = 2.5", "run.toml:2: 'limit' takes a whole number, not 2.5"),
        ("limit = 0", "run.toml:2: 'limit' must be at least 1, not 0"),
        ("offline = 1", "run.toml:2: 'offline' takes true or false, not 1"),
        ("tasks = 4", "run.toml:2: 'tasks' takes a text, not 4"),
        ("adapter = [1]", "run.toml:2: 'adapter' takes a text, not 1"),
        ('dtype = "fp32"', "run.toml:2: unknown dtype 'fp32'; did you mean 'float32'? (one of"),
        ("set = {tokens = 1}", "run.toml:2: --set tokens=1: unknown setting 'tokens'"),
        ("[set]\ntokens = 1", "run.toml:2: --set tokens=1: unknown setting"),
        ("allow-code = true", "run.toml:2: 'allow-code' is only for the command line"),
        ('plugin = "a.py"', "run.toml:2: 'plugin' is only for the command line"),
        ("[defaults]\nlimit = 1", "run.toml:2: unknown key 'defaults'"),
        ("limit = ", "run.toml: Invalid value"),
    ],
)
def test_what_is_wrong_is_one_line(taker: typer.Typer, line: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f'data = "mini"\n{line}\n')
    with pytest.raises(UsageError) as error:
        taken(taker, "m", "--config", str(file))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_path_that_is_in_two_places_is_asked_for(
    taker: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "rows").mkdir(parents=True)
    (tmp_path / "in" / "run.toml").write_text('data = "rows"\n')
    monkeypatch.chdir(tmp_path)
    assert taken(taker, "m", "--config", "in/run.toml").data == "in/rows"
    (tmp_path / "rows").mkdir()
    with pytest.raises(UsageError, match=r"run.toml:1: .*rows or .*in/rows. Write one of them whole"):
        taken(taker, "m", "--config", "in/run.toml")


@pytest.fixture
def done(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A run of two items with settings of its own, on a copy of the tiny model."""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    asked = RunOptions(
        model=str(tmp_path / "model"),
        tasks="cme_rte_ll",
        data="mini",
        limit=2,
        out=tmp_path / "r",
        prompt_format="plain",
        engine="hf",
        settings={"tokens_per_batch": 256},
    )
    [folder] = run(asked)
    return folder


def test_a_run_is_repeated(taker: typer.Typer, done: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "cme-bench.toml").write_text("[defaults]\nshots = 3\nlimit = 9\n")
    monkeypatch.chdir(tmp_path)
    got = taken(taker, "--from", str(done))
    assert (got.model, got.tasks, got.limit, got.shots) == (str(tmp_path / "model"), "cme_rte_ll", 2, None)
    assert got.prompt_format == "plain" and dict(got.settings) == {"tokens_per_batch": 256}
    assert got.out is None and got.adapters == ()
    typed = taken(taker, "--from", str(done), "--limit", "1", "--out", str(tmp_path / "again"))
    [folder] = run(typed)
    again = json.loads((folder / "run.json").read_bytes())
    assert again["identity"] == json.loads((done / "run.json").read_bytes())["identity"]


def edited(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "run.json").read_bytes())
    content["arguments"] |= changes
    (folder / "run.json").write_text(json.dumps(content))


def test_only_its_own_adapter_is_repeated(taker: typer.Typer, done: Path, tmp_path: Path) -> None:
    content = json.loads((done / "run.json").read_bytes())
    named = [str(tmp_path / name) for name in ("a", "b")]
    content["adapter"] = {"name": "b", "path": named[1], "method": "lora"}
    content["arguments"]["adapters"] = named
    (done / "run.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"its adapter .*/b is not there any more"):
        taken(taker, "--from", str(done))
    (tmp_path / "b").mkdir()
    assert taken(taker, "--from", str(done)).adapters == (named[1],)
    edited(done, adapters=named[:1] * 2)
    with pytest.raises(UsageError, match="which of its adapters was b"):
        taken(taker, "--from", str(done))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flash": True}, "its setting flash = True is no option of this version"),
        ({"model": "gone/model"}, "its model gone/model is not there any more"),
        ({"data": "gone"}, "its data gone is not there any more"),
        ({"include": ["gone"]}, "its include gone is not there any more"),
        ({"allow_code": True}, "it ran code of its task files"),
        ({"model": None}, "does not say what it was asked"),
    ],
)
def test_what_is_no_more_is_refused(
    taker: typer.Typer, done: Path, changes: dict[str, Any], said: str
) -> None:
    edited(done, **changes)
    with pytest.raises(UsageError, match=said):
        taken(taker, "--from", str(done))


def test_an_empty_setting_of_another_version_does_not_matter(taker: typer.Typer, done: Path) -> None:
    edited(done, flash=None, quick=False)
    assert taken(taker, "--from", str(done)).limit == 2


def test_both_are_refused_and_no_run_is_said(taker: typer.Typer, done: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("limit = 1\n")
    with pytest.raises(UsageError, match="give one of them"):
        taken(taker, "--from", str(done), "--config", str(tmp_path / "c.toml"))
    with pytest.raises(CmeError, match=r"no such file; is .* a run folder"):
        taken(taker, "--from", str(tmp_path / "model"))
