"""A run: tasks -> requests -> engine -> responses -> scores -> store, resumable at any moment.

Everything that can be wrong with the input is found before weights are loaded: tasks, rows, labels, model
folder, output folder. Then each task's stored responses are reused by key, the rest is computed, and every
finished window of items is appended to the store at once.
"""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from cme_bench.engines.base import TokenIds
from cme_bench.errors import CmeError, InterruptedRun, UsageError
from cme_bench.models.folder import adapter_note
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import Item, build_items, limited_ids
from cme_bench.prompts.vocabulary import check_requests
from cme_bench.runs.identity import response_key
from cme_bench.runs.manifest import Manifest, default_folder
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Silent
from cme_bench.runs.responder import BaseModel, Responder
from cme_bench.runs.results import write_results
from cme_bench.runs.session import Plan, Session
from cme_bench.runs.store import Record, RunWriter
from cme_bench.scoring.aggregate import TaskResult, task_result
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.references import refuse_unreadable
from cme_bench.tasks.sources import open_source
from cme_bench.tasks.suite import load_suite

Asked: TypeAlias = dict[tuple[str, str, int, int, TokenIds], list[Item]]
"""Items by task, prompt format, tokenizer, length and what begins a prompt: adapters of one base are asked
the same, built once."""


def run(options: RunOptions, listener: Silent | None = None, *, base: BaseModel | None = None) -> list[Path]:
    """Evaluate one checkpoint, or one base with each of several adapters; the run folders.

    ``base``: the model of ``options`` where it is loaded already; it stays loaded. Raises UsageError for bad
    input before weights are loaded, InterruptedRun after SIGINT or SIGTERM with everything finished so far
    stored, CmeError at the end if no worker of engine ray survived some items.
    """
    listener = listener or Silent()
    suite = load_suite(options.include, allow_code=options.allow_code)
    specs = suite.select(options.tasks)
    source = open_source(options.data, offline=options.offline)
    given, base = base, base or BaseModel(options)
    base.note = listener.note
    if beside := adapter_note(base.checkpoint.path):
        listener.note(beside)
    unanswered: list[str] = []
    try:
        responders = [Responder(options, base, adapter) for adapter in options.adapters or (None,)]
        listener.note(f"{str(base.dtype).removeprefix('torch.')} ({base.dtype_because})")
        folders = [run_folder(options, responder) for responder in responders]
        _check_distinct(folders)
        tasks = [build_task(spec, suite, source, shots=options.shots) for spec in specs]
        for task in tasks:
            refuse_unreadable(task, limited_ids(range(len(task.docs)), options.limit))
        asked: Asked = {}
        told: set[str] = set()
        with _interruptible() as stopping:
            base.stopping = stopping.is_set
            for responder, folder in zip(responders, folders, strict=True):
                if len(folders) > 1:
                    listener.note(f"{responder.name} -> {folder}")
                try:
                    manifest = _run_one(
                        options,
                        responder,
                        folder,
                        tasks,
                        asked,
                        told=told,
                        source=source.name,
                        listener=listener,
                        stopping=stopping,
                    )
                finally:
                    responder.close()
                unanswered += [f"{folder}: {line}" for line in manifest.unanswered_lines()]
    finally:
        if given is None:
            base.close()
    if unanswered:
        raise CmeError(f"no worker survived {'; '.join(unanswered)}; all other items are scored")
    return folders


def run_folder(options: RunOptions, responder: Responder) -> Path:
    """``--out``, with a folder for each of several adapters below it; else the default folder."""
    if options.out is None:
        return default_folder(options, responder.name, responder.identity)
    if len(options.adapters) > 1 and responder.adapter is not None:
        return (
            options.out
            / _distinct_names([name for name in options.adapters if name is not None])[responder.adapter.path]
        )
    return options.out


def _distinct_names(adapters: Sequence[str]) -> dict[Path, str]:
    """A folder's name for each adapter; where two are alike, as many of its parents' names before it as tell
    them apart: ``seed1-adapter``, ``seed2-adapter``."""
    paths = list(dict.fromkeys(Path(adapter).expanduser().resolve() for adapter in adapters))
    names = {}
    for path in paths:
        depth = 1
        while any(other != path and other.parts[-depth:] == path.parts[-depth:] for other in paths):
            depth += 1
        names[path] = "-".join(path.parts[-depth:])
    return names


def _check_distinct(folders: Sequence[Path]) -> None:
    for folder in folders:
        if folders.count(folder) > 1:
            raise UsageError(f"two adapters would write {folder}: name their folders differently")


def _run_one(
    options: RunOptions,
    responder: Responder,
    folder: Path,
    tasks: Sequence[Task],
    asked: Asked,
    *,
    told: set[str],
    source: str,
    listener: Silent,
    stopping: threading.Event,
) -> Manifest:
    encoder = responder.encoder
    with RunWriter(folder) as writer:
        manifest = Manifest.open(folder, options, responder)
        plans = [_plan(task, options, responder, asked) for task in tasks]
        _check_truncation(plans, options.max_truncated)
        manifest.note(notes := _notes(plans, encoder, responder))
        for note in notes:
            if note not in told:
                listener.note(f"note: {note}")
        told.update(notes)
        responder.longest = max((item.request.n_tokens for plan in plans for item in plan.items), default=1)
        manifest.plan({plan.task.name: plan.describe(source) for plan in plans})
        session = Session(responder, writer, manifest, listener, stopping)
        results: list[TaskResult] = []
        try:
            for _, alike in itertools.groupby(plans, lambda plan: plan.generated):
                for plan, stored in session.answer(list(alike)):
                    if not stored:
                        continue  # no item has an answer
                    dtype = responder.identity["dtype"]
                    results.append(_result(plan, session.records(plan), stored, dtype))
                    write_results(folder, manifest.content, results)
                    listener.finish(plan.task.name, _outcome(results[-1]))
                if stopping.is_set():
                    raise InterruptedRun(f"stopped; the same command resumes the run in {folder}")
            manifest.finish()
        finally:
            manifest.note(_notes(plans, encoder, responder))  # loading may have told more
            manifest.save(responder.loaded)
    return manifest


def _notes(plans: Sequence[Plan], encoder: Encoder, responder: Responder) -> list[str]:
    """What a user must know of the adapter and of how the prompts are made."""
    warning = [] if encoder.bos.warning is None else [encoder.bos.warning]
    return list(dict.fromkeys([*responder.notes, *warning, *(note for plan in plans for note in plan.notes)]))


def _result(plan: Plan, records: Iterable[Record], stored: int, dtype: str) -> TaskResult:
    """Of the items that have an answer, ``stored`` in all; ``quality`` says what share has none."""
    result = task_result(plan.task.spec, plan.task.lm_eval, records, dtype=dtype)
    if missing := len(plan.items) - stored:
        result.quality["unanswered"] = missing / len(plan.items)
    return result


def build_requests(task: Task, options: RunOptions, responder: Responder) -> tuple[PromptFormat, list[Item]]:
    """The items of ``task`` as the run of ``options`` asks them of ``responder``, and their prompt format."""
    prompt_format = _format(task, options, responder)
    return prompt_format, _items(task, options, responder, prompt_format)


def _format(task: Task, options: RunOptions, responder: Responder) -> PromptFormat:
    return resolve_format(
        options.prompt_format,
        responder.tokenizer,
        saved=responder.saved_format,
        generated=task.spec.output_type == "generate_until",
        system=options.system,
        described=bool(task.lm_eval.config.description),
    )


def _items(task: Task, options: RunOptions, responder: Responder, prompt_format: PromptFormat) -> list[Item]:
    items = build_items(
        task,
        responder.encoder,
        prompt_format,
        max_length=responder.max_length,
        limit=options.limit,
        seed=options.seed,
    )
    check_requests(
        responder.tokenizer,
        responder.embeddings,
        (item.request for item in items),
        model=str(responder.base.checkpoint.path),
    )
    return items


def _plan(task: Task, options: RunOptions, responder: Responder, asked: Asked) -> Plan:
    prompt_format = _format(task, options, responder)
    begin = responder.encoder.bos.prefix
    place = (task.name, prompt_format.name, id(responder.tokenizer), responder.max_length, begin)
    if place not in asked:
        asked[place] = _items(task, options, responder, prompt_format)
    identity = responder.identity
    keys = [response_key(identity, item.request) for item in asked[place]]
    return Plan(
        task=task,
        items=asked[place],
        keys=keys,
        format_name=prompt_format.name,
        policy=prompt_format.policy,
        limit=options.limit,
        notes=prompt_format.notes,
    )


def _check_truncation(plans: Sequence[Plan], allowed: int | None) -> None:
    cut = {plan.task.name: sum(item.truncated > 0 for item in plan.items) for plan in plans}
    if allowed is not None and sum(cut.values()) > allowed:
        worst = max(cut, key=lambda name: cut[name])
        raise UsageError(
            f"{sum(cut.values())} prompts do not fit the model's context (most in {worst}: {cut[worst]}), "
            f"but --max-truncated is {allowed}"
        )


def _outcome(result: TaskResult) -> str:
    score, measure = result.score, result.measure
    if measure.scale.factor == 100:
        return f"{result.primary} {100 * score.value:.1f} ± {100 * score.stderr:.1f} (n={score.n})"
    return f"{result.primary} {measure.shown(score.value)} ± {measure.shown(score.stderr)} (n={score.n})"


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Set on the first SIGINT or SIGTERM, so that the current window is stored; the second one kills."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(number: int, frame: object) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
