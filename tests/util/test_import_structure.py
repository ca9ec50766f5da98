"""What transformers reads of its model files is kept for one installation, and is the same."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.utils.import_utils import create_import_structure_from_path

from cme_bench.util.import_structure import _decoded, _encoded, kept_structure

FOUND = {
    "llama": {frozenset({"torch"}): {"modeling_llama": {"LlamaModel", "LlamaForCausalLM"}}},
    "deep": {"inner": {frozenset(): {"configuration_inner": {"InnerConfig"}}}},
    frozenset(): {"aside": {"Aside"}},
}


class Reader:
    """Says FOUND, and how often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, place: Any) -> dict[Any, Any]:
        self.times += 1
        return FOUND


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of models of an installed transformers."""
    monkeypatch.setenv("CME_BENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site" / "transformers" / "models"
    folder.mkdir(parents=True)
    record = tmp_path / "site" / "transformers-5.1.dist-info" / "RECORD"
    record.parent.mkdir()
    record.write_text("transformers/__init__.py,,\n")
    return folder


def kept(folder: Path) -> list[Path]:
    return list((folder.parents[2] / "cache" / "imports").glob("*"))


def test_it_is_read_once_for_an_installation(models: Path) -> None:
    reader = Reader()
    for place in (models, str(models), models / "__init__.py"):
        assert kept_structure(reader)(place) == FOUND
    assert reader.times == 1
    assert len(kept(models)) == 1


@pytest.mark.parametrize("change", ["record", "folder", "version"])
def test_another_installation_is_read_anew(change: str, models: Path) -> None:
    reader = Reader()
    kept_structure(reader)(models)
    info = models.parents[1] / "transformers-5.1.dist-info"
    if change == "record":
        (info / "RECORD").write_text("another\n")
    elif change == "folder":
        os.utime(models, ns=(1, 1))
    else:
        info.rename(info.with_name("transformers-5.2.dist-info"))
    assert kept_structure(reader)(models) == FOUND
    assert reader.times == 2


def test_what_is_no_wheels_is_never_kept(models: Path) -> None:
    reader = Reader()
    kept_structure(reader)(models / "llama")
    (models.parents[1] / "transformers-5.1.dist-info" / "RECORD").unlink()
    for _ in range(2):
        assert kept_structure(reader)(models) == FOUND
    assert reader.times == 3
    assert not kept(models)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"modules": 3}', '{"modules": [[1]], "folders": {}}', "\x00"]
)
def test_a_torn_file_is_written_anew(text: str, models: Path) -> None:
    reader = Reader()
    kept_structure(reader)(models)
    (file,) = kept(models)
    file.write_text(text)
    assert kept_structure(reader)(models) == FOUND
    assert kept_structure(reader)(models) == FOUND
    assert reader.times == 2


def test_a_cache_that_cannot_be_written_changes_nothing(models: Path) -> None:
    (models.parents[2] / "cache").write_text("a file")
    reader = Reader()
    for _ in range(2):
        assert kept_structure(reader)(models) == FOUND
    assert reader.times == 2


def test_the_structure_of_the_installed_transformers_survives() -> None:
    found = create_import_structure_from_path(str(Path(transformers.__file__).parent / "models"))
    assert _decoded(json.loads(json.dumps(_encoded(found)))) == found
    assert "llama" in found
