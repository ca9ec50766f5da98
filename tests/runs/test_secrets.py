"""The hub's tokens are in no file of a run, and a model's folder runs no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.fetch import fetch_model
from cme_bench.runs.options import RunOptions
from cme_bench.runs.rescore import rescore
from cme_bench.runs.runner import run
from cme_bench.util.errors import CmeError, UsageError

TOKEN = "hf_" + "aB3" * 11
OTHER = "a-token-of-another-form"


def test_no_token_is_written(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", OTHER)
    command = ("cme-bench", "run", "m", "--note", TOKEN, f"HF_TOKEN={OTHER}")
    out = tmp_path / "r"
    run(
        RunOptions(
            model=str(tiny_checkpoint), tasks="cme_rte", data="mini", limit=1, out=out, command=command
        )
    )
    content = json.loads((out / "run.json").read_bytes())["arguments"]["command"]
    assert content == ["cme-bench", "run", "m", "--note", "(hub token)", "HF_TOKEN=(hub token)"]
    for file in (f for f in out.rglob("*") if f.is_file()):
        assert TOKEN.encode() not in file.read_bytes()
        assert OTHER.encode() not in file.read_bytes()


CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


def test_code_beside_a_model_is_not_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    (model / "theirs.py").write_text(CODE.format(marker=str(marker)))
    config = json.loads((model / "config.json").read_text())
    theirs = {
        "AutoConfig": "theirs.Config",
        "AutoModelForCausalLM": "theirs.Model",
        "AutoTokenizer": "theirs.T",
    }
    for model_type in ("llama", "theirs"):
        (model / "config.json").write_text(
            json.dumps(config | {"model_type": model_type, "auto_map": theirs})
        )
        asked = RunOptions(model=str(model), tasks="cme_rte", data="mini", limit=1, out=tmp_path / model_type)
        try:
            run(asked)
        except CmeError as err:
            assert model_type == "theirs", err
        assert not marker.exists()


def test_a_run_folder_cannot_ask_for_code(tiny_checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "code.py").write_text(
        CODE.format(marker=str(marker)) + "def text(doc):\n    return doc['q'] + ':'\n"
    )
    (tasks / "rows.jsonl").write_text('{"q": "Is it", "label": 0}\n')
    (tasks / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: !function code.text\ndoc_to_choice: ["no", "yes"]\n'
        "doc_to_target: label\nmetadata: {dataset: own}\n"
    )
    asked = RunOptions(
        model=str(tiny_checkpoint),
        tasks="own",
        data="mini",
        out=tmp_path / "r",
        include=(tasks,),
        allow_code=True,
    )
    run(asked)
    assert marker.exists()
    marker.unlink()
    (tasks / "code.py").write_text((tasks / "code.py").read_text() + "# changed\n")
    with pytest.raises(UsageError, match="--allow-code"):
        rescore(tmp_path / "r")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../evil", "a/..", "a/.ssh", "a/b/../../c", "a\\b/c", "/etc/passwd"])
def test_a_name_that_leads_elsewhere_is_not_fetched(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a hub id"):
        fetch_model(name, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError):
        resolve_model(name, offline=True, lock_file=tmp_path / "lock")
