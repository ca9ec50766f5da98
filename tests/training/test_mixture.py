"""Which rows are trained on, how often, and that none of them is evaluated."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cme_bench.tasks.sources import MINI_FOLDER, DataSource, FolderSource, mini_source
from cme_bench.tasks.suite import load_suite
from cme_bench.training.mixture import (
    allot,
    draw_epoch,
    evaluated_rows,
    load_training_set,
    mixture_weights,
)
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import load_sets
from cme_bench.training.templates import load_templates
from cme_bench.util.errors import UsageError

TEMPLATES = load_templates(load_suite())


def test_weights() -> None:
    assert mixture_weights([1, 3], "proportional") == [0.25, 0.75]
    assert mixture_weights([1, 3], "equal") == [0.5, 0.5]
    assert mixture_weights([1, 9], "temperature", 2.0) == [0.25, 0.75]
    assert mixture_weights([1, 3], "temperature", 1.0) == [0.25, 0.75]
    with pytest.raises(UsageError, match="did you mean 'equal'"):
        mixture_weights([1], "equals")
    with pytest.raises(UsageError, match="temperature"):
        mixture_weights([1], "temperature", 0.0)


def test_allot_sums_to_the_total() -> None:
    assert allot(10, [1 / 3, 1 / 3, 1 / 3]) == [4, 3, 3]
    assert allot(7, [0.25, 0.75]) == [2, 5]


def test_draws_depend_on_seed_epoch_and_dataset_only() -> None:
    names, sizes, counts = ["a", "b"], [10, 4], [10, 8]
    first = draw_epoch(names, sizes, counts, seed=1, epoch=0)
    assert first == draw_epoch(names, sizes, counts, seed=1, epoch=0)
    assert first != draw_epoch(names, sizes, counts, seed=2, epoch=0)
    assert first != draw_epoch(names, sizes, counts, seed=1, epoch=1)
    alone = draw_epoch(["a"], [10], [10], seed=1, epoch=0)
    assert {(d.index, d.turn) for d in alone} == {(d.index, d.turn) for d in first if d.dataset == 0}


OLD_DRAWS = [(1, 1, 26386), (0, 1, 2871), (0, 0, 19589), (1, 0, 34553), (0, 0, 19590), (0, 2, 52497)]


def test_the_first_draws_are_those_of_a_whole_epoch() -> None:
    given = (["a", "b", "c"], [10, 4, 7], [12, 8, 0])
    whole = draw_epoch(*given, seed=3, epoch=1)
    assert len(whole) == 20
    assert draw_epoch(*given, seed=3, epoch=1, most=6) == whole[:6]
    assert draw_epoch(*given, seed=3, epoch=1, most=99) == whole


def test_draws_are_those_of_every_version() -> None:
    """An epoch's draws are part of what a training is: another order would be another training."""
    draws = draw_epoch(["a", "b"], [3, 2], [4, 2], seed=5, epoch=1)
    assert [(d.dataset, d.index, d.turn) for d in draws] == OLD_DRAWS


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_are_sifted_by_what_their_whole_template_says(name: str) -> None:
    template, source = TEMPLATES[name], mini_source()
    for part in load_training_set(template, source).parts:
        for row in part.table:
            whole, sifted = (make(row, part.columns) for make in (template.widened, template.sifting))
            assert template.item_key(sifted) == template.item_key(whole)
            assert template.kept(sifted) == template.kept(whole)


def test_each_item_comes_once_before_any_comes_again_and_is_then_asked_anew() -> None:
    draws = draw_epoch(["a"], [4], [10], seed=0, epoch=0)
    counts = Counter(d.index for d in draws)
    assert set(counts.values()) == {2, 3}
    assert len({(d.index, d.turn) for d in draws}) == len(draws)


def trained_and_evaluated(name: str, source: DataSource) -> tuple[set[str], set[str]]:
    """Keys of both, read independently of what the mixture dropped."""
    template = TEMPLATES[name]
    loaded = load_training_set(template, source)
    trained = {
        template.item_key(template.widened(part.table[int(i)], part.columns))
        for part in loaded.parts
        for i in part.kept
    }
    evaluated = set()
    for task in {part.task.name: part.task for part in template.parts}.values():
        rows = evaluated_rows(task, source)
        assert rows is not None
        evaluated |= {template.item_key(template.widened(row)) for row in rows.table}
        assert all(part.origin != rows.origin for part in loaded.parts)
    return trained, evaluated


@pytest.mark.parametrize("name", TEMPLATES)
def test_no_mini_item_is_trained_and_evaluated(name: str) -> None:
    trained, evaluated = trained_and_evaluated(name, mini_source())
    assert trained and evaluated and not trained & evaluated


@pytest.mark.slow
@pytest.mark.parametrize("name", TEMPLATES)
def test_no_real_item_is_trained_and_evaluated(name: str, shared_data: Path) -> None:
    trained, evaluated = trained_and_evaluated(name, FolderSource(shared_data))
    assert len(trained) > 500 and evaluated and not trained & evaluated


def test_a_hub_split_is_never_one_that_the_suite_scores() -> None:
    for template in TEMPLATES.values():
        for part in template.parts:
            assert part.hub != part.task.eval_split
            stems = {file.stem for file in part.files if file.folder is None}
            assert part.task.file_stem(part.task.eval_split) not in stems


def test_an_evaluated_row_in_a_training_file_is_dropped_and_counted(tmp_path: Path) -> None:
    shutil.copytree(MINI_FOLDER / "rte", tmp_path / "rte")
    leaked = (tmp_path / "rte" / "validation.jsonl").read_text().splitlines()[0]
    with (tmp_path / "rte" / "train.jsonl").open("a") as file:
        file.write(leaked + "\n")
    (part,) = load_training_set(TEMPLATES["rte"], FolderSource(tmp_path)).parts
    assert part.evaluated == 1
    assert len(part.kept) == 5


def test_a_folder_without_evaluated_rows_says_that_it_was_not_checked(tmp_path: Path) -> None:
    shutil.copytree(MINI_FOLDER / "rte", tmp_path / "rte")
    (tmp_path / "rte" / "validation.jsonl").unlink()
    (part,) = load_training_set(TEMPLATES["rte"], FolderSource(tmp_path)).parts
    assert part.describe()["in_evaluated_split"] is None


def test_missing_rows_and_bad_rows_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none of rte/train.jsonl"):
        load_training_set(TEMPLATES["rte"], FolderSource(tmp_path))
    (tmp_path / "rte").mkdir()
    (tmp_path / "rte" / "train.jsonl").write_text(json.dumps({"sentence1": "a", "label": 0}) + "\n")
    with pytest.raises(UsageError, match=r"train.jsonl:1: rte.yaml: .*sentence2"):
        load_training_set(TEMPLATES["rte"], FolderSource(tmp_path))


def test_a_row_is_rendered_when_it_is_drawn(tmp_path: Path) -> None:
    """What only its prompts need may be missing in a row that nobody draws."""
    rows = [{"activity_label": "Run", "ctx_a": "He", "ctx_b": "", "endings": list("abcd"), "label": "0"}] * 2
    (tmp_path / "hellaswag").mkdir()
    file = tmp_path / "hellaswag" / "train.jsonl"
    file.write_text(
        "\n".join(json.dumps(row | {"ctx_a": text}) for row, text in zip(rows, "xy", strict=True))
    )
    template = replace(
        TEMPLATES["hellaswag"], columns=TEMPLATES["hellaswag"].columns | {"late": "{{ 1 / (ctx_a == 'x') }}"}
    )
    loaded = load_training_set(template, FolderSource(tmp_path))
    assert len(loaded) == 2
    loaded.prompted(0, 0)
    with pytest.raises(UsageError, match=r"train.jsonl:2: hellaswag.yaml: .*"):
        loaded.prompted(1, 0)


def test_cap_takes_the_first_rows() -> None:
    loaded = load_training_set(TEMPLATES["anli"], mini_source(), cap=7)
    assert [len(part.kept) for part in loaded.parts] == [5, 2, 0]


@pytest.fixture
def snli_folder(tmp_path: Path) -> Path:
    """The mini rows of SNLI, its validation rows under the name that a data folder has for them."""
    shutil.copytree(MINI_FOLDER / "snli", tmp_path / "snli")
    (tmp_path / "snli" / "validation.jsonl").rename(tmp_path / "snli" / "train_from_validation.jsonl")
    return tmp_path


def test_rows_of_spared_tasks_are_not_trained_on(snli_folder: Path) -> None:
    source, suite = FolderSource(snli_folder), load_suite()
    task = suite.task("cme_snli_2way")
    rows = source.rows(task, task.eval_split)
    assert len(rows.table) == 12, "the file that a data folder has for them"
    kept = [len(part.kept) for part in load_training_set(TEMPLATES["snli"], source).parts]
    assert kept == [5, 12]
    spared = load_training_set(TEMPLATES["snli"], source, spared=[rows])
    assert [(len(part.kept), part.evaluated) for part in spared.parts] == [(5, 0), (0, 12)]
    other = load_training_set(TEMPLATES["rte"], mini_source(), spared=[rows])
    assert len(other) == 5, "rows of other columns are no items of this dataset"


def test_spared_rows_that_are_not_there_are_asked_for(snli_folder: Path) -> None:
    options = TrainOptions(
        model="m",
        method="lora",
        out=snli_folder / "out",
        data=str(snli_folder),
        datasets="snli",
        spare="cme_rte",
    )
    with pytest.raises(UsageError, match=r"rte/validation\.jsonl: no such file \(task cme_rte"):
        load_sets(options, note=lambda _: None)
    assert "spare" in options.identity() and "spare" not in replace(options, spare=None).identity()


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_suite_can_be_spared_by_every_dataset(name: str) -> None:
    """Rows of other datasets may have some of a template's columns: a sentence, a label, a question."""
    source, suite = mini_source(), load_suite()
    rows = [source.rows(task, task.eval_split) for task in suite.select("cme2,cme2_ll")]
    free, spared = (load_training_set(TEMPLATES[name], source, spared=given) for given in ((), rows))
    assert [part.kept.tolist() for part in spared.parts] == [part.kept.tolist() for part in free.parts]
