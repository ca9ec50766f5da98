"""Stock lm-eval on exported tasks and cme-bench on its own: the same scores, item by item, in float32.

200 items a task are the measure; CME_AGREEMENT_ITEMS asks for another number (the default keeps CI short).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from cme_bench.authoring.export import export_tasks
from cme_bench.models.checkpoint import resolve_model
from cme_bench.prompts.items import limited_ids
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.macro_f1 import f1_macro
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.suite import load_suite

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("CME_SHARED_DATA") or ROOT.parent / "shared" / "data")
ITEMS = int(os.environ.get("CME_AGREEMENT_ITEMS", "10"))
GENERATED_ITEMS = min(ITEMS // 2, 50)

LIKELIHOOD = (
    "cme_winogrande_ll",
    "cme_rte_ll",
    "cme_arc_easy_ll",
    "cme_arc_challenge_ll",
    "cme_mmlu_ll",
    "cme_boolq_ll",
    "cme_sst2_ll",
    "cme_openbookqa_ll",
)
GENERATED = ("cme_rte", "cme_triviaqa", "cme_tldr", "cme_sciq")

Samples: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
Both: TypeAlias = tuple[Samples, Samples, Mapping[str, Any]]


def score_both(tasks: Sequence[str], items: int, prompt_format: str, folder: Path) -> Both:
    """(our records, lm-eval's samples, lm-eval's results), each by task and in item order."""
    if not DATA.is_dir():
        pytest.skip(f"no real data in {DATA} (set CME_SHARED_DATA)")
    exported = folder / "exported"
    specs, source = load_suite().select(tasks), open_source(str(DATA), offline=True)
    export_tasks(specs, source, exported)
    rows = {spec.name: len(source.rows(spec, spec.eval_split).table) for spec in specs}
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(resolve_model("smollm2").path), "dtype": "float32"},
        device="cpu",
        batch_size=8,
        tasks=list(tasks),
        samples={name: limited_ids(range(count), items) for name, count in rows.items()},
        task_manager=TaskManager(include_path=str(exported), include_defaults=False),
        apply_chat_template=prompt_format == "chat",
        log_samples=True,
        bootstrap_iters=0,
    )
    assert found is not None
    theirs = {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in found["samples"].items()}
    options = RunOptions(
        "smollm2",
        tasks=",".join(tasks),
        data=str(DATA),
        limit=items,
        prompt_format=prompt_format,
        dtype="float32",
        out=folder / "run",
    )
    [ran] = run(options)
    ours = {name: list(read_records(samples_file(ran, name))) for name in tasks}
    return {n: sorted(rows, key=lambda r: r.id) for n, rows in ours.items()}, theirs, found["results"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return score_both(LIKELIHOOD, ITEMS, "plain", tmp_path_factory.mktemp("scored"))


@pytest.mark.parametrize("task", LIKELIHOOD)
def test_likelihoods_agree(scored: Both, task: str) -> None:
    ours, theirs, results = scored
    assert len(ours[task]) == len(theirs[task]) == ITEMS
    worst = 0.0
    for mine, other in zip(ours[task], theirs[task], strict=True):
        expected = [float(response[0][0]) for response in other["resps"]]
        logprobs = mine.response.logprobs
        assert mine.doc == other["doc"]
        assert len(logprobs) == len(expected)
        worst = max(worst, *(abs(a - b) for a, b in zip(logprobs, expected, strict=True)))
        assert logprobs.index(max(logprobs)) == expected.index(max(expected)), mine.id
        assert (mine.scores["acc"], mine.scores["acc_char"]) == (other["acc"], other["acc_norm"])
    print(f"\n{task}: {ITEMS} items, largest difference of a log-likelihood {worst:.2e}")
    assert worst < 1e-3
    for name, alias in (("acc", "acc,none"), ("acc_char", "acc_norm,none")):
        mean = sum(record.scores[name] for record in ours[task]) / ITEMS
        assert mean == pytest.approx(results[task][alias], abs=1e-12)


@pytest.fixture(scope="module", params=["plain", "chat"])
def generated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return score_both(GENERATED, GENERATED_ITEMS, request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("task", GENERATED)
def test_generated_answers_agree(generated: Both, task: str) -> None:
    ours, theirs, results = generated
    assert len(ours[task]) == len(theirs[task]) == GENERATED_ITEMS
    for mine, other in zip(ours[task], theirs[task], strict=True):
        assert mine.prompt == other["arguments"][0][0]
        assert mine.response.text == other["resps"][0][0]
        assert {name: other[name] for name in mine.scores} == mine.scores
    for name in ours[task][0].scores:
        scores = [record.scores[name] for record in ours[task]]
        total = f1_macro(scores) if name == "f1_macro" else sum(scores) / GENERATED_ITEMS
        assert total == pytest.approx(results[task][f"{name},none"], abs=1e-12)


LLM_ADAPTERS = tuple(
    f"commonsense8_{name}"
    for name in ("boolq", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return score_both(LLM_ADAPTERS, min(GENERATED_ITEMS, 3), "auto", tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("task", LLM_ADAPTERS)
def test_the_tasks_of_llm_adapters_agree_in_their_own_format(published: Both, task: str) -> None:
    """The model has a chat template, and neither program uses it: the tasks have a format of their own."""
    ours, theirs, _ = published
    assert len(ours[task]) == len(theirs[task]) == min(GENERATED_ITEMS, 3)
    for mine, other in zip(ours[task], theirs[task], strict=True):
        assert mine.prompt == other["arguments"][0][0]
        assert mine.prompt.startswith("Below is an instruction that describes a task. Write a response")
        assert mine.response.text == other["resps"][0][0]
        assert {name: other[name] for name in mine.scores} == mine.scores
