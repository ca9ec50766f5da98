"""Which splits `fetch` wants and how it writes them, without a hub (tests/test_fetch.py has a stand-in)."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.tasks.fetch import fetch_splits, wanted_splits, write_rows
from cme_bench.tasks.hub import HubSource
from cme_bench.tasks.row_files import Rows, read_jsonl
from cme_bench.tasks.sources import FolderSource, mini_source
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import CmeError
from tests.support.pictures import encoded, picture

SUITE = load_suite()


def test_splits_that_tasks_share_are_wanted_once_under_the_names_that_data_takes(tmp_path: Path) -> None:
    wanted = wanted_splits(SUITE.select("cme_anli_r1,cme_anli_r1_ll,cme_sciq"), tmp_path)
    assert [(w.spec.dataset, w.split, str(w.file.relative_to(tmp_path))) for w in wanted] == [
        ("anli", "test_r1", "anli_r1/test.jsonl"),
        ("anli", "dev_r1", "anli_r1/validation.jsonl"),
        ("sciq", "test", "sciq/validation.jsonl"),
        ("sciq", "train", "sciq/train.jsonl"),
    ]


def test_what_is_written_is_read_again_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(self: HubSource, spec: TaskSpec, split: str) -> Rows:
        if split == "train":
            raise CmeError("dataset: the hub did not deliver it (down)")
        return mini_source().rows(spec, split)

    monkeypatch.setattr(HubSource, "rows", rows)
    wanted = wanted_splits(SUITE.select("cme_squad,cme_triviaqa"), tmp_path)
    first = {str(f.wanted.file.relative_to(tmp_path)): f for f in fetch_splits(wanted, tmp_path)}
    assert {name: (f.rows, f.error is None) for name, f in first.items()} == {
        "squad/validation.jsonl": (12, True),
        "squad/train.jsonl": (None, False),
        "triviaqa/validation.jsonl": (12, True),
        "triviaqa/train.jsonl": (None, False),
    }
    spec = SUITE.task("cme_squad")
    read = FolderSource(tmp_path).rows(spec, "validation")
    assert read.fingerprint() == mini_source().rows(spec, "validation").fingerprint()
    assert not list(tmp_path.rglob("*.part"))
    again = [f for f in fetch_splits(wanted, tmp_path) if f.error is None]
    assert [f.rows for f in again] == [None, None]  # there already


def test_a_fetched_folder_knows_its_commits(tmp_path: Path) -> None:
    (tmp_path / "hub-lock.json").write_text('{"datasets/rajpurkar/squad": "abc"}')
    assert FolderSource(tmp_path).revision(SUITE.task("cme_squad")) == "abc"
    assert FolderSource(tmp_path).revision(SUITE.task("cme_rte")) is None


def test_images_inside_rows_become_files_beside_them(tmp_path: Path) -> None:
    first, second = encoded(picture(seed=1)), encoded(picture(seed=2), "JPEG")
    rows = [
        {"image": {"bytes": first, "path": "a.png"}, "more": [second, first], "q": "red?"},
        {"image": {"bytes": first, "path": None}, "more": [], "q": "blue?"},
        {"image": {"bytes": b"RIFF sound", "path": "b.wav"}, "more": None, "q": "none?"},
    ]
    write_rows(tmp_path / "own" / "test.jsonl", rows)
    read = list(read_jsonl(tmp_path / "own" / "test.jsonl").table)
    images = [read[0]["image"], *read[0]["more"], read[1]["image"]]
    assert [(tmp_path / "own" / name).read_bytes() for name in images] == [first, second, first, first]
    assert len(list((tmp_path / "own" / "images").iterdir())) == 2
    assert [row["q"] for row in read] == ["red?", "blue?", "none?"]
    assert read[2]["image"] == "b.wav"
