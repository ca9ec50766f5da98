"""A run: tasks -> requests -> engine -> responses -> scores -> store, resumable at any moment.

Everything that can be wrong with the input is found before weights are loaded: tasks, rows, labels, model
folder, output folder. Then each task's stored responses are reused by key, the rest is computed, and every
finished window of items is appended to the store at once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from cme_bench.engines.base import GenerateRequest, UnansweredError
from cme_bench.engines.logits import LogitsError
from cme_bench.errors import CmeError, InterruptedRun, UsageError
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import Item, build_items
from cme_bench.runs.identity import response_key
from cme_bench.runs.manifest import Manifest, PlannedTask, default_folder
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Silent
from cme_bench.runs.responder import BaseModel, Responder
from cme_bench.runs.results import write_results
from cme_bench.runs.store import Record, RunWriter, read_records
from cme_bench.scoring.aggregate import TaskResult, task_result
from cme_bench.scoring.items import response_record, score_record
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import open_source
from cme_bench.tasks.suite import load_suite

WINDOW_ITEMS = 16
WINDOW_SECONDS = 1.0
"""A flush window: finished items are stored once there are this many or they are this old."""

Asked: TypeAlias = dict[tuple[str, str], list[Item]]
"""Items by task and prompt format: adapters of one base are asked the same, built once."""


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
    unanswered: list[str] = []
    try:
        responders = [Responder(options, base, adapter) for adapter in options.adapters or (None,)]
        folders = [run_folder(options, responder) for responder in responders]
        _check_distinct(folders)
        tasks = [build_task(spec, suite, source, shots=options.shots) for spec in specs]
        asked: Asked = {}
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
        return options.out / responder.adapter.name
    return options.out


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
    source: str,
    listener: Silent,
    stopping: threading.Event,
) -> Manifest:
    with RunWriter(folder) as writer:
        manifest = Manifest.open(folder, options, responder)
        encoder = Encoder(responder.tokenizer)
        plans = [_plan(task, options, responder, encoder, asked) for task in tasks]
        _check_truncation(plans, options.max_truncated)
        responder.longest = max((item.request.n_tokens for plan in plans for item in plan.items), default=1)
        manifest.plan({plan.task.name: plan.describe(source) for plan in plans})
        session = _Session(responder, writer, manifest, listener, stopping)
        results: list[TaskResult] = []
        try:
            for plan in plans:
                stored = session.run_task(plan)
                if stopping.is_set():
                    raise InterruptedRun(f"stopped; the same command resumes the run in {folder}")
                if not stored:
                    continue  # no item has an answer
                results.append(_result(plan, session.records(plan), stored))
                write_results(folder, manifest.content, results)
                listener.finish(plan.task.name, _outcome(results[-1]))
            manifest.finish()
        finally:
            manifest.save(responder.loaded)
    return manifest


def _result(plan: _Plan, records: Iterable[Record], stored: int) -> TaskResult:
    """Of the items that have an answer, ``stored`` in all; ``quality`` says what share has none."""
    result = task_result(plan.task.spec, plan.task.lm_eval, records)
    if missing := len(plan.items) - stored:
        result.quality["unanswered"] = missing / len(plan.items)
    return result


@dataclass(frozen=True, slots=True)
class _Plan:
    """One task of a run, asked: its items and the keys of their responses."""

    task: Task
    items: Sequence[Item]
    keys: Sequence[str]
    format_name: str
    policy: str
    limit: int | None

    def describe(self, source: str) -> PlannedTask:
        return PlannedTask(
            domain=self.task.spec.domain,
            dataset=self.task.spec.dataset,
            primary=self.task.spec.primary,
            output_type=self.task.spec.output_type,
            hash=task_hash(self.task, self.format_name, self.policy),
            n=len(self.items),
            rows=len(self.task.docs),
            limit=self.limit,
            shots=self.task.shots,
            prompt_format=self.format_name,
            policy=self.policy,
            source=source,
            origin=self.task.rows.origin,
            revision=self.task.revision,
            truncated=sum(item.truncated > 0 for item in self.items),
        )


def task_hash(task: Task, format_name: str, policy: str) -> str:
    """sha256 of everything that decides a task's scores except the model: the task's own hash, the prompt
    format and the tokenisation policy."""
    import hashlib

    return hashlib.sha256(f"{task.hash}:{format_name}:{policy}".encode()).hexdigest()


def build_requests(
    task: Task, options: RunOptions, responder: Responder, encoder: Encoder
) -> tuple[PromptFormat, list[Item]]:
    """The items of ``task`` as the run of ``options`` asks them of ``responder``, and their prompt format."""
    prompt_format = _format(task, options, responder)
    return prompt_format, _items(task, options, responder, encoder, prompt_format)


def _format(task: Task, options: RunOptions, responder: Responder) -> PromptFormat:
    return resolve_format(
        options.prompt_format,
        responder.tokenizer,
        saved=responder.saved_format,
        generated=task.spec.output_type == "generate_until",
        system=options.system,
    )


def _items(
    task: Task, options: RunOptions, responder: Responder, encoder: Encoder, prompt_format: PromptFormat
) -> list[Item]:
    return build_items(
        task,
        encoder,
        prompt_format,
        max_length=responder.max_length,
        limit=options.limit,
        seed=options.seed,
    )


def _plan(task: Task, options: RunOptions, responder: Responder, encoder: Encoder, asked: Asked) -> _Plan:
    prompt_format = _format(task, options, responder)
    place = (task.name, prompt_format.name)
    if place not in asked:
        asked[place] = _items(task, options, responder, encoder, prompt_format)
    identity = responder.identity
    keys = [response_key(identity, item.request) for item in asked[place]]
    return _Plan(task, asked[place], keys, prompt_format.name, prompt_format.policy, options.limit)


def _check_truncation(plans: Sequence[_Plan], allowed: int | None) -> None:
    cut = {plan.task.name: sum(item.truncated > 0 for item in plan.items) for plan in plans}
    if allowed is not None and sum(cut.values()) > allowed:
        worst = max(cut, key=lambda name: cut[name])
        raise UsageError(
            f"{sum(cut.values())} prompts do not fit the model's context (most in {worst}: {cut[worst]}), "
            f"but --max-truncated is {allowed}"
        )


@dataclass(frozen=True, slots=True)
class _Session:
    """One start of a run: what its tasks share."""

    responder: Responder
    writer: RunWriter
    manifest: Manifest
    listener: Silent
    stopping: threading.Event

    def run_task(self, plan: _Plan) -> int:
        """Have a record of every item in the store: what is there is reused, the rest computed and stored.

        Some are missing if the run was asked to stop, or if no worker survived them. Gives how many are
        there; records are not held, so that memory does not grow with them.
        """
        name = plan.task.name
        hash_ = self.manifest.tasks[name].hash
        done = len(stored := _stored(plan, self.writer, hash_))
        pending = [i for i, item in enumerate(plan.items) if item.id not in stored]
        self.listener.start(name, total=len(plan.items), done=done)
        try:
            for window in _windows(_ask(self.responder, [plan.items[i].request for i in pending])):
                places = [(pending[position], response) for position, response in window]
                self.writer.append(
                    name,
                    [
                        _record(plan, plan.items[i], plan.keys[i], hash_, response_record(response))
                        for i, response in places
                    ],
                )
                done += len(window)
                self.manifest.count(len(window), self.responder.loaded)
                self.listener.advance(len(window))
                if self.stopping.is_set():
                    break
        except UnansweredError as error:
            lost = {plan.items[pending[i]].id: reason for i, reason in error.reasons.items()}
            self.manifest.unanswered[name] = lost
        except LogitsError as err:
            item = None if err.request is None else plan.items[pending[err.request]].id
            raise err.within(name, item) from err
        return done

    def records(self, plan: _Plan) -> Iterator[Record]:
        """The stored records of a task as it is now, one at a time."""
        hash_ = self.manifest.tasks[plan.task.name].hash
        keys = _keys(plan)
        for record in read_records(self.writer.samples_file(plan.task.name)):
            if record["task"] == hash_ and keys.get(record["id"]) == record["key"]:
                yield record


def _ask(responder: Responder, requests: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    if not requests:
        return
    engine = responder.engine(requests[0])
    if isinstance(requests[0], GenerateRequest):
        yield from engine.generate(requests)
    else:
        yield from engine.loglikelihood(requests)


def _windows(responses: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """What is stored at a time. If the engine fails, what it finished before comes out first."""
    window: list[tuple[int, Any]] = []
    opened = time.monotonic()
    failure: CmeError | None = None
    try:
        for response in responses:
            window.append(response)
            if len(window) >= WINDOW_ITEMS or time.monotonic() - opened > WINDOW_SECONDS:
                yield window
                window = []
                opened = time.monotonic()
    except CmeError as err:
        failure = err
    if window:
        yield window
    if failure is not None:
        raise failure


def _keys(plan: _Plan) -> dict[int, str]:
    return {item.id: key for item, key in zip(plan.items, plan.keys, strict=True)}


def _stored(plan: _Plan, writer: RunWriter, hash_: str) -> set[int]:
    """Ids of this plan's items that need no computing.

    A response counts if its key is the item's; where it was scored under another version of the task, or
    lies behind a later record of the same item, it is scored again and appended, so that the last record of
    every item is the current one.
    """
    file = writer.samples_file(plan.task.name)
    keys, wanted = _keys(plan), set(plan.keys)
    answered: set[str] = set()
    current: set[int] = set()
    for record in read_records(file):
        number, key = record["id"], record["key"]
        if key in wanted:
            answered.add(key)
        if record["task"] == hash_ and keys.get(number) == key:
            current.add(number)
        else:
            current.discard(number)
    stale = [i for i, item in enumerate(plan.items) if item.id not in current and plan.keys[i] in answered]
    if stale:
        responses = _responses(file, {plan.keys[i] for i in stale})
        for i in stale:
            item, key = plan.items[i], plan.keys[i]
            response = responses.get((item.id, key)) or responses[None, key]
            writer.append(plan.task.name, [_record(plan, item, key, hash_, response)])
            current.add(item.id)
    return current


def _responses(file: Path, wanted: Set[str]) -> dict[tuple[int | None, str], dict[str, Any]]:
    """The last stored response of each key that is ``wanted``, by item and key, and by None and key."""
    found: dict[tuple[int | None, str], dict[str, Any]] = {}
    for record in read_records(file):
        if record["key"] in wanted:
            found[record["id"], record["key"]] = found[None, record["key"]] = record["response"]
    return found


def _record(plan: _Plan, item: Item, key: str, hash_: str, response: dict[str, Any]) -> Record:
    scored = score_record(plan.task.lm_eval, item.doc, item.instances, response)
    return {
        "id": item.id,
        "key": key,
        "task": hash_,
        **scored,
        "response": response,
        "target": item.target,
        "truncated": item.truncated,
        "prompt": item.prompt,
        "choices": list(item.choices),
        "doc": item.doc,
    }


def _outcome(result: TaskResult) -> str:
    score = result.score
    return f"{result.primary} {100 * score.value:.1f} ± {100 * score.stderr:.1f} (n={score.n})"


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
