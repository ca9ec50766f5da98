"""The adapter that ships with the package: found by name, small, with its card; a folder here is not it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cme_bench
from cme_bench.models.packaged import FOLDER, adapter_folder, packaged
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json


def test_a_name_a_folder_or_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert packaged() == ["teamlora-demo"]
    assert adapter_folder("teamlora-demo") == FOLDER / "teamlora-demo"
    with pytest.raises(UsageError, match="no such folder; did you mean 'teamlora-demo'"):
        adapter_folder("teamlora_demo")
    (tmp_path / "mine").mkdir()
    assert adapter_folder("mine") == tmp_path / "mine"
    (tmp_path / "teamlora-demo").mkdir()
    with pytest.raises(UsageError, match=r"Write \./teamlora-demo for the folder") as error:
        adapter_folder("teamlora-demo")
    assert str(FOLDER / "teamlora-demo") in str(error.value)
    assert adapter_folder("./teamlora-demo") == tmp_path / "teamlora-demo"
    assert adapter_folder(str(FOLDER / "teamlora-demo")) == FOLDER / "teamlora-demo"


def test_it_is_small_whole_and_described() -> None:
    folder = FOLDER / "teamlora-demo"
    weights = folder / "adapter_model.safetensors"
    assert weights.stat().st_size <= 3 * 2**20
    tensors = load_file(weights)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    training = read_json(folder / "cme_training.json")
    assert training["finished"] and training["prompt_format"] == "teamlora"
    assert sum(tensor.numel() for tensor in tensors.values()) == training["adapter"]["trainable_parameters"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "More Information Needed" not in card
    assert training["commit"] in card and f"{training['adapter']['trainable_parameters']:,}" in card
    told = (*folder.glob("*.json"), folder / "README.md")
    assert not [file.name for file in told if "/root/" in file.read_text(encoding="utf-8")]


@pytest.mark.slow
def test_it_answers_with_its_own_prompts_and_differs_from_the_base(tmp_path: Path) -> None:
    base, adapted = cme_bench.evaluate(
        "smollm2",
        adapters=[None, "teamlora-demo"],
        tasks="cme_emotion_ll",
        data="mini",
        prompt_format="teamlora",
        out=tmp_path,
        progress=False,
    )
    assert base.scores["cme_emotion_ll"] < 0.4 and adapted.scores["cme_emotion_ll"] > 0.9
    own = read_json(adapted.folder / "run.json")
    assert own["adapter"]["name"] == "teamlora-demo" and own["adapter"]["rank"] == 1
    assert own["tasks"]["cme_emotion_ll"]["prompt_format"] == "teamlora"
