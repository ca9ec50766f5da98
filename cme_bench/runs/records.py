"""The contents of a run folder as types: the writer fills them in, every reader gets them back.

``run.json`` is a :class:`RunRecord`; the part ``cme`` of ``results.json`` is :class:`Results`; a line of
``samples/TASK.jsonl`` is a :class:`~cme_bench.scoring.record.Record`. A field with a default may be missing
in the folders of older versions. In a class with ``omit_defaults`` a field that is None is not written.
"""

from __future__ import annotations

import math
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from cme_bench.engines.base import EngineStats
from cme_bench.models.records import AdapterRecord as AdapterRecord  # noqa: PLC0414 - reports take it from here
from cme_bench.models.records import ModelRecord
from cme_bench.scoring.record import Count
from cme_bench.scoring.scales import Measure, measure_from
from cme_bench.scoring.thoughts import ThinkingSummary
from cme_bench.stats.estimates import Estimate


class Identity(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The identity that every response of a run has: hashes of model and adapter, dtype, engine, data and
    format.

    ``quantised``: how the base was quantised while it was loaded; ``tokenizer``: hash of the one beside the
    adapter; ``processor``: of the settings by which a model reads images; ``logits``: their type where the
    model's has 16 bits; ``states``: that of hidden states, where it is another than the model's.
    """

    model: str
    adapter: str
    dtype: str
    engine: str
    quantised: str | None = None
    tokenizer: str | None = None
    processor: str | None = None
    logits: str | None = None
    states: str | None = None
    data: str
    prompt_format: str | None = None


class ComputedRecord(Struct, frozen=True, kw_only=True):
    """The type that vLLM computed a model in, which was ``asked`` for in bfloat16, and why."""

    asked: str
    dtype: str
    because: str


class BosRecord(Struct, frozen=True, kw_only=True):
    """How prompts begin. ``prefix``: the token ids; ``own``: those that the tokenizer adds by itself."""

    prefix: list[int]
    own: list[int]
    mode: str = "auto"
    reason: str = ""
    warning: str | None = None


class TaskRecord(Struct, frozen=True, kw_only=True):
    """One task that a run was asked for.

    ``n`` of the split's ``rows`` are scored; ``truncated`` prompts were cut to fit; ``hash`` covers all that
    decides a score but the model; ``policy``: how prompt and answer become tokens. ``thinking``: on, off, or
    as the template has it, where the model can think, with at most ``thinking_budget`` tokens. ``sampling``:
    temperature, top_p and top_k; greedy if None. ``repeats``: answers of each item, of which ``combined``
    says that the task's own filters make one score. ``overrides``: what the user set in place of the task's
    own, and what a thought may take. ``random_baseline``, ``majority_baseline``: scores of guessing and of
    the most frequent answer, where the task says so.
    """

    domain: str
    dataset: str
    primary: str
    output_type: str
    hash: str
    n: Count
    rows: Count
    limit: Count | None = None
    shots: Count = 0
    prompt_format: str
    policy: str
    source: str | None = None
    origin: str | None = None
    revision: str | None = None
    truncated: int = 0
    repeats: Count = 1
    combined: bool = False
    sampling: dict[str, float] | None = None
    thinking: str | None = None
    thinking_budget: int | None = None
    overrides: dict[str, Any] = {}
    random_baseline: float | None = None
    majority_baseline: float | None = None


class SessionRecord(Struct, kw_only=True, omit_defaults=True):
    """One start of a run: when it began, how long it took, how many items it computed, and after how many
    seconds the first of them was there."""

    started: str | None = None
    seconds: float = 0.0
    items: int = 0
    first_answer: float | None = None
    engine: EngineStats | None = None


class RescoreRecord(Struct, frozen=True, kw_only=True):
    """One ``cme-bench rescore`` of a run: when, and by which code."""

    at: str
    commit: str | None = None
    versions: dict[str, str] = {}


class ReadArguments(Struct, frozen=True, kw_only=True):
    """The arguments of a run that later commands need again."""

    command: list[str] | None = None
    include: list[str] | None = None
    offline: bool = False
    bos: str = "auto"
    settings: dict[str, int] = {}


class RunRecord(Struct, kw_only=True):
    """``run.json``: what was run, with what, by which command, and how long it took.

    ``arguments``: those of the command, by name; ``engine_because``: why that engine, where it was not asked
    for by name; ``computed``: the type that vLLM computes a bfloat16 model in; ``notes``: what a user must
    know of the prompts; ``engine``: what computed, and how; ``unanswered``: by task and item, what the last
    worker died of that was asked it.
    """

    schema: int = 1
    identity: Identity
    model: ModelRecord
    adapter: AdapterRecord | None = None
    arguments: dict[str, Any] | None = None
    seed: int = 0
    bos: BosRecord | None = None
    notes: list[str] = []
    versions: dict[str, str]
    commit: str | None = None
    machine: dict[str, Any] | None = None
    engine: dict[str, Any] = {}
    tasks: dict[str, TaskRecord] = {}
    unanswered: dict[str, dict[str, str]] = {}
    finished: bool = False
    sessions: list[SessionRecord] = field(default_factory=list)
    rescored: list[RescoreRecord] | UnsetType = UNSET
    engine_because: str | UnsetType = UNSET
    computed: ComputedRecord | UnsetType = UNSET

    @property
    def logits(self) -> str:
        """The type to which its logits are exact: float32, or where they were rounded the model's."""
        return str(self.engine.get("logits") or self.identity.logits or self.identity.dtype)

    @property
    def states(self) -> str:
        """The type of its hidden states."""
        told = str(self.engine.get("states") or self.identity.states or self.identity.dtype)
        return told.partition(":")[0]

    @property
    def stats(self) -> EngineStats:
        """The engine's counters over all sessions."""
        return EngineStats.total(session.engine for session in self.sessions if session.engine)

    @property
    def seconds(self) -> float:
        """Wall time over all sessions."""
        return sum(session.seconds for session in self.sessions)


class EstimateRecord(Struct, frozen=True):
    """A score with its standard error over ``n`` items; None where it is no finite number."""

    value: float | None
    stderr: float | None
    n: int

    @classmethod
    def of(cls, estimate: Estimate) -> EstimateRecord:
        """Return what is written of an estimate."""
        return cls(_finite(estimate.value), _finite(estimate.stderr), estimate.n)


class MeasureRecord(Struct, frozen=True, omit_defaults=True):
    """How a score is read; a share where an older run says nothing."""

    scale: str | None = None
    better: str | None = None
    aggregation: str | None = None

    @classmethod
    def of(cls, measure: Measure) -> MeasureRecord:
        """Return what is written of a measure."""
        return cls(measure.scale.name, measure.better, measure.aggregation)

    def read(self) -> Measure:
        """Return what scoring and reports take."""
        return measure_from(self.scale, self.better, self.aggregation)


class MetricRecord(Struct, frozen=True, omit_defaults=True):
    """One metric of a task: its estimate, and how it is read."""

    value: float | None
    stderr: float | None
    n: int
    scale: str | None = None
    better: str | None = None
    aggregation: str | None = None

    @classmethod
    def of(cls, estimate: Estimate, measure: Measure) -> MetricRecord:
        """Return what is written of a metric."""
        value, stderr = _finite(estimate.value), _finite(estimate.stderr)
        return cls(value, stderr, estimate.n, measure.scale.name, measure.better, measure.aggregation)

    @property
    def measure(self) -> Measure:
        """Return what scoring and reports take."""
        return measure_from(self.scale, self.better, self.aggregation)


class FormRecord(Struct, frozen=True, kw_only=True):
    """The macro means of one form. ``average`` is None where its scores have no common mean."""

    measure: MeasureRecord = MeasureRecord()
    average: EstimateRecord | None = None
    domains: dict[str, EstimateRecord]
    datasets: dict[str, EstimateRecord] = {}


class ResultRecord(Struct, frozen=True, kw_only=True):
    """One finished task. ``primary`` names the metric that stands for it; ``quality`` holds shares;
    ``thinking`` says what stood before the answers, if anything did."""

    form: str
    domain: str
    dataset: str
    primary: str
    metrics: dict[str, MetricRecord]
    quality: dict[str, float] = {}
    thinking: ThinkingSummary | None = None
    hash: str

    @property
    def score(self) -> MetricRecord:
        """The metric that stands for the task."""
        return self.metrics[self.primary]


class Results(Struct, frozen=True, kw_only=True):
    """Our part of ``results.json``. ``near_tie_nats``: choices that lie closer were counted as near ties."""

    average_is: str | None = None
    near_tie_nats: float | None = None
    forms: dict[str, FormRecord]
    tasks: dict[str, ResultRecord]

    @property
    def unscored(self) -> list[str]:
        """The tasks whose main metric is no finite number: an item has none, or their sum is infinite."""
        return [name for name, task in self.tasks.items() if task.score.value is None]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
