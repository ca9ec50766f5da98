"""Every task file of the installed lm-eval: refused with a reason, or asked and scored as stock lm-eval does.

Rows are made up to the columns that templates use, answers are made up too: no model, no network is needed.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator_utils import _compute_task_aggregations
from lm_eval.tasks._yaml_loader import load_yaml
from rouge_score.scoring import BootstrapAggregator

from cme_bench.harness.task_result import task_result
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import RenderedItem, render_item
from cme_bench.runs.store import record_bytes
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import Record, StoredResponse, scored_item
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.sources import DataSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from tests.support.lm_eval_files import Survey, guesses, kind_of, missing_value, survey

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
SUITE = load_suite()
PLAIN = resolve_format("plain", None, generated=False)
ITEMS = 4
ENOUGH = 200
"""So many are compared; of the others no rows could be made up, or their code wants a network."""
SECONDS = 2
"""After so long no further rows are made up for a kind."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"


@pytest.fixture(scope="module")
def found() -> Survey:
    return survey()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no pool of processes in lm-eval.

    Half of all the time would go into a hash of each dataset's rows, and a thousand resamples of one text's
    ROUGE, which are all the same.
    """

    def refuse(*_: Any) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    numbers = itertools.count()
    monkeypatch.setattr(datasets.arrow_dataset, "generate_fingerprint", lambda _: f"{next(numbers):016x}")
    monkeypatch.setattr(BootstrapAggregator.__init__, "__defaults__", (0.95, 10))


def test_the_page_has_the_counts(found: Survey) -> None:
    """docs/tasks.md says how many files of lm-eval run, and why others do not."""
    text = PAGE.read_text()
    assert f"| run | {len(found.honoured)} |" in text
    assert f"| groups, which are not read | {found.groups} |" in text
    rows = dict(re.findall(r"^\| refused: (.*?) \| (\d+) \|$", text, re.MULTILINE))
    assert rows == {kind: str(count) for kind, count in found.refused.items()}


@dataclass(frozen=True, slots=True)
class Made(DataSource):
    """Rows that were made up, the same for every split but for their order."""

    table: Sequence[Mapping[str, Any]]
    name: str = "made"

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        rows = self.table if split == spec.eval_split else self.table[::-1]
        return Rows(datasets.Dataset.from_list([dict(row) for row in rows]), f"made/{split}")

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        return {}


def stock(spec: TaskSpec, source: Made) -> ConfigurableTask:
    """lm-eval's own object of the file, read by its own loader, on the same rows."""
    config = load_yaml(spec.path, resolve_func=True)
    for key in ("tag", "group", "dataset_kwargs"):
        config.pop(key, None)
    named = [config.get(f"{part}_split") for part in ("training", "validation", "test", "fewshot")]
    named.append((config.get("fewshot_config") or {}).get("split"))
    tables = {split: source.rows(spec, split).table for split in named if split}
    config |= {"custom_dataset": lambda **_: tables, "metadata": {}}
    return ConfigurableTask(config=config)


def stock_items(task: ConfigurableTask, spec: TaskSpec) -> Iterator[list[Any]]:
    """lm-eval's requests of each item, with exemplars drawn as ours are."""
    for index in range(ITEMS):
        digest = hashlib.sha256(f"0:{spec.name}:{index}".encode()).digest()
        task.sampler.rnd = random.Random(int.from_bytes(digest[:8], "big"))
        doc = task.task_docs[index]
        shots = task.config.num_fewshot or 0
        context = task.fewshot_context(doc, shots, gen_prefix=task.doc_to_prefix(doc))
        built = task.construct_requests(doc=doc, ctx=context, metadata=(spec.name, index, 1))
        yield built if isinstance(built, list) else [built]


def answers(item: RenderedItem, index: int) -> StoredResponse:
    """A made-up response: any choice may be the most likely one; texts are right, wrong, and none."""
    if not item.choices:
        text = (item.target, f"The answer is {item.target}.", "(B) 12", "")[index % 4]
        return StoredResponse(text=text, finish="stop")
    source = random.Random(index)
    return StoredResponse(
        logprobs=[-5 * source.random() - 0.1 for _ in item.choices],
        greedy=[source.random() < 0.5 for _ in item.choices],
    )


def stock_results(task: ConfigurableTask, items: Sequence[list[Any]], made: Sequence[Any]) -> dict[str, Any]:
    """lm-eval's aggregates: its filters over all items at once, its metrics, its aggregations."""
    for instances, response in zip(items, made, strict=True):
        for instance, value in zip(instances, response.values, strict=True):
            instance.resps = [value] * (task.config.repeats or 1)
    every = [instance for instances in items for instance in instances]
    for pipeline in task._filters:
        pipeline.apply(every)
    values: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for index, instances in enumerate(items):
        for name in instances[0].filtered_resps:
            filtered = [instance.filtered_resps[name] for instance in instances]
            for metric, value in task.process_results(task.task_docs[index], filtered).items():
                values[metric, name].append(value)
    found, _ = _compute_task_aggregations(task, values, bootstrap_iters=100)
    return found


def _as_item(task: ConfigurableTask, instances: Sequence[Any]) -> RenderedItem:
    """Stock requests as our item, whose right answer is the text that lm-eval has."""
    target = task.doc_to_target(instances[0].doc)
    return RenderedItem(0, instances[0].doc, str(target), tuple(instances))


def compare(spec: TaskSpec, task: Task, theirs: ConfigurableTask) -> str:
    """The first difference between ours and theirs; empty if there is none."""
    items = [render_item(task, index, PLAIN) for index in range(ITEMS)]
    expected = list(stock_items(theirs, spec))
    for mine, other in zip(items, expected, strict=True):
        if [i.args for i in mine.instances] != [i.args[:2] for i in other]:  # images come third there
            return f"asks {mine.instances[0].args}, not {other[0].args}"
    made = [answers(item, index) for index, item in enumerate(items)]
    records = [
        scored_item(
            item.id,
            score_record(task.lm_eval, item.doc, item.instances, response),
            response,
            choices=item.choices,
            doc=item.doc,
        )
        for item, response in zip(items, made, strict=True)
    ]
    stored = [msgspec.json.decode(record_bytes(record), type=Record) for record in records]
    ours = task_result(spec, task.lm_eval, stored)
    wanted = stock_results(theirs, expected, made)
    if len(wanted) != 2 * len(ours.metrics):
        return f"metrics {list(ours.metrics)}, not {list(wanted)}"
    for name, estimate in ours.metrics.items():
        metric, pipeline = ours.origins[name]
        value, stderr = wanted[f"{metric},{pipeline}"], wanted[f"{metric}_stderr,{pipeline}"]
        error = math.nan if stderr == "N/A" else stderr
        for mine, other in ((estimate.value, value), (estimate.stderr, error)):
            if mine != pytest.approx(float(other), rel=1e-9, abs=1e-12, nan_ok=True):
                return f"{name} {estimate}, not {value} ± {stderr}"
    return ""


def outcome(spec: TaskSpec) -> str:
    """``equal``, or what differs, or why nothing could be compared."""
    if spec.fewshot_split == spec.eval_split and spec.num_fewshot:
        return "skipped: exemplars from the scored rows (an item is not its own exemplar here)"
    reason = "no rows"
    plain = {key: value for key, value in spec.config.items() if key != "dataset_kwargs"}
    changed = replace(spec, config=plain | {"dataset_path": "made/up"})
    deadline = time.monotonic() + SECONDS
    tried = list(guesses(spec.config))[::-1]
    while tried and time.monotonic() < deadline:
        rows = tried.pop()
        source = Made(rows)
        try:
            theirs = stock(spec, source)
            items = list(stock_items(theirs, spec))
            made = [answers(_as_item(theirs, one), index) for index, one in enumerate(items)]
            stock_results(theirs, items, made)
        except KeyError as err:  # code asks for a column that no template names
            reason = f"no rows: KeyError {err}"
            if isinstance(name := err.args[0], str) and name and name not in rows[0]:
                tried.append([row | {name: missing_value(name, i)} for i, row in enumerate(rows)])
            continue
        except (Exception, SystemExit) as err:  # these rows do not fit lm-eval's templates and code
            reason = f"no rows: {type(err).__name__} {str(err)[:80]}"
            continue
        try:
            task = build_task(changed, SUITE, source)
            return compare(changed, task, theirs) or "equal"
        except UsageError as err:
            reason = f"refused: {err}"
        except Exception as err:
            reason = f"failed: {type(err).__name__} {str(err)[:200]}"
    return reason


def test_kinds_of_tasks_are_asked_and_scored_as_there(found: Survey, alone: None) -> None:
    kinds: dict[Any, TaskSpec] = {}
    for spec in found.honoured:
        kinds.setdefault(kind_of(spec), spec)
    for spec in found.honoured:  # then others of the same kinds, on other datasets
        kinds.setdefault((kind_of(spec), spec.config.get("dataset_path")), spec)
    counts: Counter[str] = Counter()
    different: dict[str, str] = {}
    for name, spec in {spec.name: spec for spec in kinds.values()}.items():
        text = outcome(spec)
        counts[text.partition(":")[0]] += 1
        if text.partition(":")[0] not in ("equal", "skipped", "no rows", "refused"):
            different[name] = text
        if counts["equal"] == ENOUGH:
            break
    print(f"\n{dict(counts)}")
    assert not different
    assert counts["equal"] == ENOUGH
    assert counts["refused"] < ENOUGH / 10
