"""Tasks without their images: the same questions and answers, no image, a name and a hash of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.harness.task_result import task_result
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.scoring.aggregate import summarize
from cme_bench.scoring.record import Scored, StoredResponse, scored_item
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from tests.support.workshop import Workshop

SUITE = load_suite()
PLAIN = resolve_format("plain", None, generated=False)


def test_the_questions_are_the_same_without_the_image() -> None:
    seeing = build_task(SUITE.task("cme_mm_flags"), SUITE, mini_source(), shots=1)
    blind = build_task(SUITE.task("cme_mm_flags_blind"), SUITE, mini_source(), shots=1)
    assert seeing.hash != blind.hash
    for index in range(len(seeing.docs)):
        one, other = render_item(seeing, index, PLAIN), render_item(blind, index, PLAIN)
        assert len(one.images) == 2 and not other.images
        assert other.contexts == tuple(text.replace("<image>\n", "") for text in one.contexts)
        assert (other.choices, other.target) == (one.choices, one.target)


def test_no_average_is_over_both(tmp_path: Path) -> None:
    results = []
    for name in ("cme_mm_digits", "cme_mm_digits_blind"):
        task = build_task(SUITE.task(name), SUITE, mini_source())
        scored = scored_item(0, Scored(scores={"acc": 1.0}), StoredResponse(text="5", finish="stop"))
        results.append(task_result(task.spec, task.lm_eval, [scored]))
    assert list(summarize(results)) == ["other generated", "other blind generated"]


def test_suites_and_domains_have_a_blind_form() -> None:
    seeing, blind = SUITE.select("cme_mm_ll"), SUITE.select("cme_mm_ll_blind")
    assert [spec.name for spec in blind] == [f"{spec.name}_blind" for spec in seeing]
    assert {spec.domain for spec in blind} == {"multimodal_blind"}  # no mean over both
    assert not any(spec.in_cme for spec in blind)
    both = SUITE.select("cme_mm_digits,cme_mm_digits_blind,cme_mm_digits_blind")
    assert [spec.name for spec in both] == ["cme_mm_digits", "cme_mm_digits_blind"]


def test_a_mark_in_the_text_goes_too(workshop: Workshop) -> None:
    workshop.write_yaml(more="doc_to_image: picture\n")
    text = workshop.yaml.read_text()
    line = next(line for line in text.splitlines() if line.startswith("doc_to_text"))
    workshop.yaml.write_text(text.replace(line, 'doc_to_text: "<image> and <image>, {{ text }}"'))
    suite = load_suite((workshop.yaml,))
    assert suite.task("own_ll_blind").config["doc_to_text"] == "and , {{ text }}"
    assert "<image>" in str(suite.task("own_ll").config["doc_to_text"])


def test_what_shows_no_image_has_no_blind_form() -> None:
    for name in ("cme_rte_blind", "cme_blind", "entailment_blind"):
        with pytest.raises(UsageError, match="shows no images"):
            SUITE.select(name)
    with pytest.raises(UsageError, match="unknown task 'nosuch_blind'"):
        SUITE.select("nosuch_blind")
