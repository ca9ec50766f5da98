"""A run: tasks -> requests -> engine -> responses -> scores -> store, resumable at any moment.

Everything that can be wrong with the input is found before the first answer: tasks, rows, labels, model
folder, output folder. Weights are loaded while prompts are made. Then each task's stored responses are reused
by key, the rest is computed, and every finished window of items is appended to the store at once.
"""

from __future__ import annotations

import itertools
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cme_bench.engines.logits import OverflowedError
from cme_bench.harness.task_result import task_result
from cme_bench.models.float16 import ASKED
from cme_bench.prompts.encode import Encoder
from cme_bench.runs.engine_choice import Waiting
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.engine_source import EngineSource, never
from cme_bench.runs.folders import DEFAULT_ROOT, check_distinct, goes_on, overflowed, run_folder
from cme_bench.runs.manifest import Manifest
from cme_bench.runs.options import HALF, AskOptions, RunOptions, check_model
from cme_bench.runs.planner import Planner, TaskPlan
from cme_bench.runs.progress import Listener
from cme_bench.runs.questions import KeptQuestions, Questions
from cme_bench.runs.recorder import Recorder
from cme_bench.runs.reporting import LateReport, RunReport
from cme_bench.runs.responder import Responder
from cme_bench.runs.results import write_results
from cme_bench.runs.session import Session
from cme_bench.runs.store import RunWriter
from cme_bench.runs.together import Company, Stopping, run_together
from cme_bench.scoring.aggregate import TaskResult
from cme_bench.scoring.record import Record
from cme_bench.scoring.ties import rounds_as
from cme_bench.tasks.build import Task
from cme_bench.util.building import builds_end
from cme_bench.util.collection import rarely_collected
from cme_bench.util.errors import CmeError, InterruptedRun, UsageError
from cme_bench.util.notes import Note
from cme_bench.util.phases import phase


def run(options: RunOptions, listener: Listener | None = None) -> list[Path]:
    """Evaluate one checkpoint, or one base with each of several adapters; return the run folders.

    Raises UsageError for bad input before the first answer, InterruptedRun after SIGINT or SIGTERM with
    everything finished so far stored, CmeError at the end if no worker of engine ray survived some items.
    """
    listener = listener or Listener()
    check_model(options)
    with builds_end(), rarely_collected():
        with phase("tasks"):
            questions = Questions(options, offline=options.offline)
        with open_engines(options, listener.note) as engines:
            return _run_all(questions, engines, listener, DEFAULT_ROOT)


def ask(
    engines: EngineSource,
    options: AskOptions,
    listener: Listener | None = None,
    *,
    root: Path = DEFAULT_ROOT,
    kept: KeptQuestions | None = None,
) -> list[Path]:
    """Evaluate as ``run`` does, by engines that are open already and stay open.

    ``root``: where folders are made that ``options`` do not name; ``kept``: what earlier calls asked of the
    same base.
    """
    offline = options.offline or engines.options.offline

    def asked() -> list[Path]:
        """Ask; what only this call knows of is free afterwards, before garbage is searched for again."""
        questions = (KeptQuestions() if kept is None else kept).of(options, offline=offline)
        return _run_all(questions, engines, listener or Listener(), root)

    with builds_end(), rarely_collected():
        return asked()


@dataclass(frozen=True)
class _Shared:
    """The parts that the runs of all adapters share. ``done``: the folders of those that are finished."""

    options: AskOptions
    tasks: Sequence[Task]
    source: str
    planner: Planner
    listener: Listener
    stopping: Stopping
    rows: int
    told: set[str] = field(default_factory=set)
    done: set[Path] = field(default_factory=set)

    def tell(self, notes: Sequence[str]) -> None:
        """Tell each note once."""
        for note in notes:
            if note not in self.told:
                self.listener.note(f"note: {note}")
        self.told.update(notes)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Who will be asked, by which planner, and where the answers will be: a folder for each responder."""

    responders: Sequence[Responder]
    planner: Planner
    folders: Sequence[Path]


def prepare(
    questions: Questions,
    engines: EngineSource,
    note: Note,
    root: Path = DEFAULT_ROOT,
    stopping: Callable[[], bool] = never,
) -> Prepared:
    """Decide everything that is decided before the first question; no weights are loaded."""
    options, model = questions.options, engines.model
    for each in model.notes:
        note(each)
    responders = [
        Responder(engines, adapter, bos=options.bos, stopping=stopping)
        for adapter in options.adapters or (None,)
    ]
    questions.refuse_trained(responders)
    _decide(questions, responders, root)
    quantised = "" if model.quantisation is None else f" on {model.quantisation}"
    note(f"{model.dtype_name}{quantised} ({model.dtype_because})")
    folders = [run_folder(options, responder, root) for responder in responders]
    check_distinct(folders)
    for responder, folder in zip(responders, folders, strict=True):
        responder.overflowed = overflowed(folder) if responder.in_float16 else None
    for each in dict.fromkeys(filter(None, map(_computed_note, responders))):
        note(each)
    return Prepared(responders, questions.planner, folders)


def _computed_note(responder: Responder) -> str | None:
    """Return what a user is told of the type that vLLM computes in, where it may be another than asked."""
    if (found := responder.computed) is None or found.because == ASKED:
        return None
    if responder.in_float16:
        return (
            f"vLLM computes it in float16 ({found.because}); --set {HALF}=0 computes in bfloat16, as before"
        )
    return f"vLLM computes it in bfloat16 and not in float16: {found.because}"


def planned(
    options: AskOptions, tasks: Sequence[Task], planner: Planner, responder: Responder
) -> list[TaskPlan]:
    """Return the plans of all tasks. UsageError if they ask what may not, or cannot, be asked."""
    with phase("prompts"):
        plans = [planner.plan(task, responder) for task in tasks]
        _check_truncation(plans, options.max_truncated)
        responder.engines.check(item.request for plan in plans for item in plan.items)
        _check_budget(plans, options.thinking_budget)
    return plans


def _run_all(questions: Questions, engines: EngineSource, listener: Listener, root: Path) -> list[Path]:
    options = questions.options
    stopping = Stopping()
    ready = prepare(questions, engines, listener.note, root, stopping.is_set)
    responders, folders = ready.responders, list(ready.folders)
    if not all((folder / "run.json").exists() for folder in folders):
        engines.begin()  # a run that goes on may have nothing left to ask
    shared = _Shared(
        options, questions.tasks, questions.source, ready.planner, listener, stopping, len(folders)
    )
    unanswered: list[str] = []
    with _interruptible(stopping):
        for group in _groups(engines, responders):
            for i, manifest in zip(group, _answered(shared, responders, folders, group), strict=True):
                unanswered += [f"{folders[i]}: {line}" for line in manifest.unanswered_lines()]
    if unanswered:
        raise CmeError(f"no worker survived {'; '.join(unanswered)}; all other items are scored")
    return folders


def _groups(engines: EngineSource, responders: Sequence[Responder]) -> Iterator[list[int]]:
    """Yield which responders answer at the same time, by place: those that are computed in one type."""
    left = list(range(len(responders)))
    while left:
        alike = [i for i in left if responders[i].in_float16 == responders[left[0]].in_float16]
        for group in engines.groups([responders[i].adapter for i in alike]):
            members = [alike[i] for i in group]
            if len({responders[i].in_float16 for i in members}) > 1:
                break  # float16 has overflowed meanwhile
            yield members
            left = [i for i in left if i not in members]


def _answered(
    shared: _Shared, responders: Sequence[Responder], folders: Sequence[Path], group: Sequence[int]
) -> list[Manifest]:
    """Have the runs of ``group`` done, in one type each.

    Where float16 overflows, all of a run is asked again, in bfloat16; so are the adapters that come later.
    """

    def works() -> list[Callable[[Company], Manifest]]:
        return [_work(shared, responders[i], folders[i], alone=len(group) == 1) for i in group]

    try:
        return run_together(works(), shared.stopping)
    except OverflowedError as error:
        if shared.stopping.asked:
            raise
        shared.stopping.clear()
        shared.listener.note(f"{error}: all is asked again, of vLLM in bfloat16")
        for i, (responder, folder) in enumerate(zip(responders, folders, strict=True)):
            if i in group and folder not in shared.done:
                (folder / "results.json").unlink(missing_ok=True)
                responder.overflowed = str(error)
            elif not (folder / "run.json").exists():
                responder.overflowed = str(error)
    return run_together(works(), shared.stopping)


def _decide(questions: Questions, responders: Sequence[Responder], root: Path) -> None:
    """Have the engine chosen where it was left open, one for all adapters."""
    options = questions.options

    def waiting() -> Waiting:
        generated = [task for task in questions.tasks if task.spec.generated]  # choices decide nothing
        items = (item for task in generated for item in questions.planner.items(task, responders[0])[1])
        return Waiting.of((item.request for item in items), len(responders))

    def begun(engine: str) -> bool:
        folders = [run_folder(options, responder, root, engine) for responder in responders]
        return any(goes_on(folder, engine, questions.names, options) for folder in folders)

    responders[0].engines.decide([responder.adapter for responder in responders], waiting, begun)


def _work(
    shared: _Shared, responder: Responder, folder: Path, *, alone: bool
) -> Callable[[Company], Manifest]:
    """Return what runs one adapter, in the company of others or alone."""

    def work(company: Company) -> Manifest:
        if shared.rows > 1:
            shared.listener.note(f"{responder.name} -> {folder}")
        listener = shared.listener if alone else shared.listener.beside(responder.name)
        try:
            return _run_one(shared, responder, folder, listener, company)
        finally:
            responder.close()

    return work


def _run_one(
    shared: _Shared, responder: Responder, folder: Path, listener: Listener, company: Company
) -> Manifest:
    encoder, stopping = responder.encoder, shared.stopping
    with RunWriter(folder) as writer:
        manifest = Manifest.open(folder, shared.options, responder)
        plans = planned(shared.options, shared.tasks, shared.planner, responder)
        manifest.note(notes := _notes(plans, encoder, responder))
        shared.tell(notes)
        manifest.plan({plan.task.name: plan.describe(shared.source) for plan in plans})
        requests = (item.request for plan in plans for item in plan.items)
        responder.generated = Waiting.of(requests, shared.rows).generated
        longest = max((item.request.n_tokens for plan in plans for item in plan.items), default=1)
        longest = company.agree(longest)
        session = Session(responder, Recorder(writer), manifest, listener, stopping, longest)
        results: list[TaskResult] = []
        kind = RunReport if company.alone else LateReport
        report = kind(folder, shared.options, manifest.run, listener.note)

        def finished(plan: TaskPlan, stored: int) -> None:
            """Score a task of whose items so many have an answer."""
            with phase("results"):
                dtype = rounds_as(responder.identity["dtype"], responder.identity.get("states"))
                results.append(_result(plan, session.records(plan), stored, dtype))
                write_results(folder, manifest.run, results, more=len(results) < len(plans))
                report.task(results[-1])
                listener.finish(plan.task.name, _outcome(results[-1]))

        try:
            for _, alike in itertools.groupby(plans, lambda plan: plan.generated):
                with phase("answers"):
                    for plan, stored in session.answer(list(alike)):
                        if stored:
                            finished(plan, stored)
                if stopping.is_set():
                    raise InterruptedRun(f"stopped; the same command resumes the run in {folder}")
            manifest.finish()
            report.finish()
            shared.done.add(folder)
        finally:
            report.close()
            manifest.note(_notes(plans, encoder, responder))  # loading may have told more
            manifest.save(responder.loaded)
    return manifest


def _notes(plans: Sequence[TaskPlan], encoder: Encoder, responder: Responder) -> list[str]:
    """Return the notes for the user on the adapter and on how the prompts are made."""
    warnings = [] if encoder.bos.warning is None else [encoder.bos.warning]
    if responder.trained_end is not None and any(plan.generated for plan in plans):
        warnings.append(responder.trained_end.note)
    return list(
        dict.fromkeys([*responder.notes, *warnings, *(note for plan in plans for note in plan.notes)])
    )


def _result(plan: TaskPlan, records: Iterable[Record], stored: int, dtype: str) -> TaskResult:
    """Return the result of the items that have an answer, ``stored`` in all; ``quality`` gives the share that
    has none."""
    result = task_result(plan.task.spec, plan.task.lm_eval, records, dtype=dtype, repeats=plan.repeats)
    if missing := len(plan.items) - stored:
        result.quality["unanswered"] = missing / len(plan.items)
    return result


def _check_truncation(plans: Sequence[TaskPlan], allowed: int | None) -> None:
    cut = {
        plan.task.name: sum(item.truncated > 0 and item.repeat == 0 for item in plan.items) for plan in plans
    }
    if allowed is not None and sum(cut.values()) > allowed:
        worst = max(cut, key=lambda name: cut[name])
        raise UsageError(
            f"{sum(cut.values())} prompts do not fit the model's context (most in {worst}: {cut[worst]}), "
            f"but --max-truncated is {allowed}"
        )


def _check_budget(plans: Sequence[TaskPlan], asked: int | None) -> None:
    if asked is not None and not any("thinking_budget" in plan.overrides for plan in plans):
        raise UsageError(
            "--thinking-budget is for thoughts, and no task has one: give --thinking on, or leave it out"
        )


def _outcome(result: TaskResult) -> str:
    score, measure = result.score, result.measure
    if not math.isfinite(score.value):
        return f"{result.primary} is no finite number (n={score.n})"
    if measure.scale.factor == 100:
        return f"{result.primary} {100 * score.value:.1f} ± {100 * score.stderr:.1f} (n={score.n})"
    return f"{result.primary} {measure.shown(score.value)} ± {measure.shown(score.stderr)} (n={score.n})"


@contextmanager
def _interruptible(stopping: Stopping) -> Iterator[None]:
    """Set ``stopping`` on the first SIGINT or SIGTERM, so that the current window is stored; the second one
    kills."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.ask()

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
