"""Every dataset can be asked in at least four ways, and one of them is exactly how it is evaluated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import SandboxedEnvironment

from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import DataSource, FolderSource, mini_source
from cme_bench.tasks.spec import GENERATED
from cme_bench.tasks.suite import DOMAINS, load_suite
from cme_bench.training.mixture import load_training_set
from cme_bench.training.templates import (
    MIN_PARAPHRASES,
    DatasetTemplate,
    _environment,
    holds,
    load_templates,
    render,
    select_datasets,
)
from cme_bench.util.errors import UsageError

SUITE = load_suite()
TEMPLATES = load_templates(SUITE)


def check_renders(template: DatasetTemplate, source: DataSource, rows: int) -> None:
    loaded = load_training_set(template, source)
    for part in loaded.parts:
        for index in part.kept[:: max(1, len(part.kept) // rows)]:
            wide = template.widened(part.table[int(index)], part.columns)
            ways = template.eligible(wide)
            assert len(ways) >= MIN_PARAPHRASES
            asked = [template.prompted(wide, way, part.task) for way in ways]
            assert len({a.source for a in asked}) == len(ways)
            assert all(a.target == a.target.strip() and "{{" not in a.source for a in asked)


def test_there_is_a_template_for_each_of_the_22_datasets() -> None:
    evaluated = {spec.dataset for spec in SUITE.select(GENERATED)}
    assert set(TEMPLATES) == evaluated
    assert len(TEMPLATES) == 22
    assert {t.domain for t in TEMPLATES.values()} == set(DOMAINS)


def test_every_evaluated_task_has_its_training_part() -> None:
    trained = {part.task.name for t in TEMPLATES.values() for part in t.parts}
    assert trained == {spec.name for spec in SUITE.select(GENERATED)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_on_mini_items(name: str) -> None:
    check_renders(TEMPLATES[name], mini_source(), rows=30)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_on_real_data(name: str, shared_data: Path) -> None:
    check_renders(TEMPLATES[name], FolderSource(shared_data), rows=60)


@pytest.mark.parametrize("spec", SUITE.select(GENERATED), ids=lambda s: s.name)
def test_evaluation_wording_is_lm_evals_and_its_answer_the_gold_one(spec: Any) -> None:
    template = TEMPLATES[spec.dataset]
    task = build_task(spec, SUITE, mini_source())
    way = next(p for p in template.paraphrases if p.source is None)
    for index in range(len(task.docs)):
        doc = task.docs[index]
        asked = template.prompted(template.widened(doc), way, spec)
        assert asked.source == task.lm_eval.doc_to_text(doc)
        assert task.lm_eval.score_text(doc, asked.target).scores[spec.primary] == 1.0


def test_templates_are_sandboxed_and_strict() -> None:
    with pytest.raises(ValueError, match="SecurityError"):
        render("{{ ''.__class__.__mro__ }}", {})
    with pytest.raises(ValueError, match="missing"):
        render("{{ missing }}", {})
    assert holds("label in [0, 1]", {"label": 1})
    assert not holds("label in [0, 1]", {"label": -1})


def step_by_step(template: DatasetTemplate, row: dict[str, Any]) -> tuple[bool, str] | str:
    try:
        wide = template.sifting(row)
        return template.kept(wide), template.item_key(wide)
    except ValueError as error:
        return str(error)


def sifted(template: DatasetTemplate, row: dict[str, Any]) -> tuple[bool, str] | str:
    try:
        return template.sifter()(row)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", TEMPLATES)
def test_rows_are_sifted_as_step_by_step(name: str) -> None:
    template = TEMPLATES[name]
    for part in load_training_set(template, mini_source()).parts:
        sift = template.sifter(part.columns)
        for row in part.table:
            wide = template.sifting(row, part.columns)
            assert sift(row) == (template.kept(wide), template.item_key(wide))


@pytest.mark.parametrize(
    ("columns", "keep", "key"),
    [
        ({"text": "{{ text | trim }}"}, None, "{{ text }}"),
        ({"text": "{{ text if text is defined else 'none' }}"}, None, "{{ text }}"),
        ({"first": "{{ text }}", "text": "{{ label }}"}, None, "{{ first }}/{{ text }}"),
        ({"upper": "{{ text | upper }}\n"}, "'A' in upper", "{{ upper }}{{ label }}"),
        ({}, "label in [1, 2]", "{{ text }}"),
        ({}, "absent", "{{ text }}"),
        ({}, "label / nothing", "{{ text }}"),
        ({}, None, "{{ absent }}"),
        ({"both": "{% for word in words %}{{ loop.index }}{{ word }}{% endfor %}"}, "both", "{{ both }}"),
        ({}, None, "{{ label.__class__ }}"),
        ({}, None, "{{ fields.items }} {{ fields.keys() | list }}"),
        ({}, None, "{{ fields.items }}{{ fields.other }}"),
    ],
)
def test_a_row_is_sifted_as_step_by_step_by_any_template(
    columns: dict[str, str], keep: str | None, key: str
) -> None:
    row = {"text": " a b ", "label": 1, "nothing": 0, "words": ["x", "y"], "fields": {"items": 3, "own": 4}}
    template = replace(TEMPLATES["sst2"], columns=columns, keep=keep, key=key)
    for one in (row, row | {"label": 0}, row | {"words": []}, row | {"fields": {"other": None}}):
        expected = step_by_step(template, one)
        found = sifted(template, one)
        assert str(found).partition(" at 0x")[0] == str(expected).partition(" at 0x")[0]


def test_fields_are_found_as_in_the_sandbox() -> None:
    plain, fields = SandboxedEnvironment(), {"text": 1, "items": 2, "_x": 3}
    for attribute in ("text", "_x"):
        assert _environment().getattr(fields, attribute) == plain.getattr(fields, attribute)
    assert _environment().getattr(fields, "items")() == fields.items()
    for attribute in ("absent", "__class__"):
        found, expected = (e.getattr(fields, attribute) for e in (_environment(), plain))
        assert found._undefined_message == expected._undefined_message


def test_unlabelled_rows_are_not_kept() -> None:
    row = {"premise": "a", "hypothesis": "b", "label": -1}
    assert not TEMPLATES["snli"].kept(row)


def test_datasets_are_selected_by_name_and_domain() -> None:
    assert [t.dataset for t in select_datasets(TEMPLATES, "rte,nli")] == ["rte", "anli", "mnli", "snli"]
    assert len(select_datasets(TEMPLATES, "all")) == 22
    with pytest.raises(UsageError, match="did you mean 'squad'"):
        select_datasets(TEMPLATES, "sqaud")


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    text = "dataset: rte\nparts:\n  - {task: cme_rte}\nkey: x\noutput: y\nparaphrase: []\n"
    (tmp_path / "rte.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"rte.yaml:6: unknown key 'paraphrase'; did you mean 'paraphrases'"):
        load_templates(SUITE, tmp_path)
    text = text.replace("paraphrase:", "paraphrases:")
    (tmp_path / "rte.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"rte.yaml:6: 0 paraphrases"):
        load_templates(SUITE, tmp_path)
