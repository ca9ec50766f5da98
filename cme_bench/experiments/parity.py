"""Do two engines answer alike? The same token ids through both, compared item by item and score by score."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cme_bench.engines.base import GenerateRequest, GenerateResponse, LoglikelihoodRequest, Request
from cme_bench.engines.logits import OVERFLOWED, LogitsError
from cme_bench.harness.task_result import task_result
from cme_bench.prompts import items as prompts
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import AskOptions, RunOptions
from cme_bench.runs.planner import Planner
from cme_bench.runs.responder import Responder
from cme_bench.scoring.aggregate import TaskResult, summarize
from cme_bench.scoring.items import score_record
from cme_bench.scoring.record import Record, scored_item, stored_response
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.options import Engine

TOLERANCES = {"float32": 1e-4, "bfloat16": 1.0, "float16": 0.125}
"""Nats a token. In 16 bits hidden states are rounded, by each engine in its own places."""


@dataclass(frozen=True, slots=True)
class ParityItem:
    """One question of a task, and how it was made."""

    of: Task
    made: prompts.Item

    @property
    def task(self) -> str:
        return self.of.name

    @property
    def id(self) -> int:
        return self.made.id

    @property
    def request(self) -> Request:
        return self.made.request


@dataclass(frozen=True, slots=True)
class ParityDifference:
    """One item on which the engines differ more than they may: its answers, first engine first."""

    task: str
    id: int
    answers: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Scores:
    """A task, a domain or the average of one form: its score with each engine, first engine first."""

    kind: str
    form: str
    name: str
    scores: tuple[float, float]

    @property
    def gap(self) -> float:
        """The second engine's score less the first's."""
        return self.scores[1] - self.scores[0]


@dataclass(frozen=True, slots=True)
class Parity:
    """Two engines compared on the same token ids.

    choices: log-likelihoods compared; max_difference, mean_difference: of them, in nats a token (a
    continuation's difference divided by its length); labels, labels_equal: questions, and those whose
    likeliest choice is the same; texts, texts_equal: generated answers; first: the first item that differs;
    scores: every task, domain and average; tolerance: the most that a log-likelihood may differ by.
    """

    engines: tuple[str, str]
    dtype: str
    choices: int
    max_difference: float
    mean_difference: float
    labels: int
    labels_equal: int
    texts: int
    texts_equal: int
    first: ParityDifference | None
    scores: tuple[Scores, ...]
    tolerance: float

    @property
    def alike(self) -> bool:
        """Whether no log-likelihood differs by more than the tolerance and, in float32, every answer is the
        same. In 16 bits near ties may fall either way."""
        same = self.labels == self.labels_equal and self.texts == self.texts_equal
        return (same or self.dtype != "float32") and self.max_difference <= self.tolerance


def measure_parity(
    options: RunOptions, engines: tuple[Engine, Engine], tolerance: float | None = None
) -> Parity:
    """Ask both engines the items of ``options``, with its first adapter if it has any.

    An item is the ``first`` if its label or text differs, or a log-likelihood by more than ``tolerance``
    (nats a token; by default what the type allows).
    """
    items: list[ParityItem] = []
    answers: list[list[Any]] = []
    dtype = ""
    for engine in engines:
        with open_engines(replace(options, engine=engine)) as source:
            responder = Responder(source, *options.adapters[:1], bos=options.bos)
            items = items or list(task_items(options, responder))
            answers.append(_answers(responder, [item.request for item in items]))
        dtype = responder.identity["dtype"]
    allowed = TOLERANCES[dtype] if tolerance is None else tolerance
    return compare_answers(items, answers[0], answers[1], engines=engines, dtype=dtype, tolerance=allowed)


def task_items(options: AskOptions, responder: Responder) -> Iterator[ParityItem]:
    """Yield the items that a run of ``options`` asks of ``responder``."""
    suite = load_suite(options.include, allow_code=options.allow_code)
    source = open_source(options.data, offline=options.offline)
    planner = Planner(options)
    for spec in suite.select(options.tasks):
        task = build_task(spec, suite, source, shots=options.shots)
        for item in planner.items(task, responder)[1]:
            yield ParityItem(task, item)


def _answers(responder: Responder, requests: Sequence[Request]) -> list[Any]:
    """Return what a responder answers, as a run would record it: of one type, in which it gives numbers."""
    try:
        return _asked(responder, requests)
    except LogitsError:
        if not responder.in_float16:
            raise
    finally:
        responder.close()
    responder.overflowed = OVERFLOWED
    return _answers(responder, requests)


def _asked(responder: Responder, requests: Sequence[Request]) -> list[Any]:
    found: list[Any] = [None] * len(requests)
    longest = max(request.n_tokens for request in requests)
    for kind in (LoglikelihoodRequest, GenerateRequest):
        places = [i for i, request in enumerate(requests) if isinstance(request, kind)]
        if places:
            engine = responder.engine(requests[places[0]], longest)
            ask: Any = engine.loglikelihood if kind is LoglikelihoodRequest else engine.generate
            for index, response in ask([requests[i] for i in places]):
                found[places[index]] = response
    return found


def compare_answers(
    items: Sequence[ParityItem],
    ours: Sequence[Any],
    theirs: Sequence[Any],
    *,
    engines: tuple[str, str],
    dtype: str,
    tolerance: float,
) -> Parity:
    """Compare two lists of responses to ``items``."""
    gaps: list[float] = []
    labels = labels_equal = texts = texts_equal = 0
    first: ParityDifference | None = None
    for item, one, other in zip(items, ours, theirs, strict=True):
        if isinstance(one, GenerateResponse):
            texts += 1
            same = one == other
            texts_equal += same
            shown = (one.text, other.text)
        else:
            assert isinstance(item.request, LoglikelihoodRequest)
            found = [
                abs(a - b) / max(1, len(continuation))
                for a, b, (_, continuation) in zip(
                    one.logprobs, other.logprobs, item.request.rows, strict=True
                )
            ]
            gaps += found
            chosen = [max(range(len(r.logprobs)), key=r.logprobs.__getitem__) for r in (one, other)]
            labels += 1
            labels_equal += chosen[0] == chosen[1]
            same = chosen[0] == chosen[1] and max(found) <= tolerance
            shown = (
                f"choice {chosen[0]} {_numbers(one.logprobs)}",
                f"choice {chosen[1]} {_numbers(other.logprobs)}",
            )
        if not same and first is None:
            first = ParityDifference(item.task, item.id, shown)
    return Parity(
        engines=engines,
        dtype=dtype,
        choices=len(gaps),
        max_difference=max(gaps, default=0.0),
        mean_difference=sum(gaps) / len(gaps) if gaps else 0.0,
        labels=labels,
        labels_equal=labels_equal,
        texts=texts,
        texts_equal=texts_equal,
        first=first,
        scores=tuple(compare_scores(items, ours, theirs)),
        tolerance=tolerance,
    )


def compare_scores(
    items: Sequence[ParityItem], ours: Sequence[Any], theirs: Sequence[Any]
) -> Iterator[Scores]:
    """Yield the scores of every task, domain and average that two lists of responses to ``items`` get."""
    both = [_results(items, answers) for answers in (ours, theirs)]
    for one, other in zip(*both, strict=True):
        yield Scores("task", one.form, one.task, (one.score.value, other.score.value))
    first, second = (summarize(results) for results in both)
    for form, summary in first.items():
        for domain, estimate in summary.domains.items():
            yield Scores("domain", form, domain, (estimate.value, second[form].domains[domain].value))
        if (average := summary.average) and (other_average := second[form].average):
            yield Scores("average", form, "average", (average.value, other_average.value))


def _results(items: Sequence[ParityItem], answers: Sequence[Any]) -> list[TaskResult]:
    paired = zip(items, answers, strict=True)
    found = []
    for _, alike in itertools.groupby(paired, lambda pair: pair[0].task):
        own = list(alike)
        records = (_record(item, answer) for item, answer in own)
        found.append(task_result(own[0][0].of.spec, own[0][0].of.lm_eval, records))
    return found


def _record(item: ParityItem, answer: Any) -> Record:
    response, made = stored_response(answer), item.made
    scored = score_record(item.of.lm_eval, made.doc, made.instances, response)
    return scored_item(
        made.id, scored, response, truncated=made.truncated, choices=made.choices, doc=made.doc
    )


def _numbers(logprobs: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.4f}" for value in logprobs) + "]"
