"""Questions that several runs of one process share."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from cme_bench.runs import planner, questions
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import AskOptions, ModelOptions
from cme_bench.runs.questions import KeptQuestions
from cme_bench.runs.runner import ask
from cme_bench.runs.store import read_records, samples_file

ASKED = AskOptions(tasks="cme_rte_ll,cme_emotion", data="mini", limit=3)


def stored(folder: Path) -> list[bytes]:
    """What a run folder holds of items, and of its tasks' results."""
    return [(folder / name).read_bytes() for name in ("samples/cme_rte_ll.jsonl", "results.json")]


def test_runs_that_ask_the_same_share_rows_and_prompts(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, made = [], []
    build, items = questions.build_task, planner.build_items
    monkeypatch.setattr(questions, "build_task", lambda *a, **k: built.append(1) or build(*a, **k))
    monkeypatch.setattr(planner, "build_items", lambda *a, **k: made.append(1) or items(*a, **k))
    kept = KeptQuestions()
    with open_engines(ModelOptions(model=str(tiny_checkpoint), engine="hf")) as engines:
        (first,) = ask(engines, replace(ASKED, out=tmp_path / "first"), kept=kept)
        (second,) = ask(engines, replace(ASKED, out=tmp_path / "second"), kept=kept)
        assert len(built) == len(made) == 2, "two tasks, read and asked once"
        ask(engines, replace(ASKED, limit=2, out=tmp_path / "fewer"), kept=kept)
        assert len(built) == len(made) == 4, "another limit asks otherwise"
        (alone,) = ask(engines, replace(ASKED, out=tmp_path / "alone"))
    assert stored(first) == stored(second) == stored(alone)
    assert len(list(read_records(samples_file(tmp_path / "fewer", "cme_rte_ll")))) == 2


def test_what_is_shared_is_asked_by_the_options_at_hand(tmp_path: Path) -> None:
    kept = KeptQuestions()
    first = kept.of(replace(ASKED, out=tmp_path / "a"), offline=True)
    second = kept.of(replace(ASKED, out=tmp_path / "b", adapters=("x",)), offline=True)
    assert first.tasks is second.tasks
    assert first.planner is second.planner
    assert (first.options.out, second.options.out) == (tmp_path / "a", tmp_path / "b")
    assert kept.of(replace(ASKED, seed=1), offline=True).planner is not first.planner


def test_what_one_run_asked_is_free_when_it_is_done_without_a_search_for_garbage(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[questions.Questions]] = []
    plain = questions.Questions.__init__

    def noted(self: questions.Questions, *args: object, **kwargs: object) -> None:
        made.append(weakref.ref(self))
        plain(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(questions.Questions, "__init__", noted)
    with open_engines(ModelOptions(model=str(tiny_checkpoint), engine="hf")) as engines:
        gc.disable()
        try:
            ask(engines, replace(ASKED, out=tmp_path / "run"))
            assert [each() for each in made] == [None]
        finally:
            gc.enable()
