"""Which prompts show a router at work: those stored in a run, or those of tasks asked anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cme_bench.adapters.files import CONFIG_FILE, read_config
from cme_bench.engines.base import TokenIds
from cme_bench.experiments.options import RouterOptions
from cme_bench.models.hub_name import parse_hub_name
from cme_bench.models.packaged import adapter_folder, packaged
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.items import limited_ids, truncate
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.folder import is_run, last_records, read_arguments, read_run, run_file
from cme_bench.runs.options import AskOptions, ModelOptions
from cme_bench.runs.planner import Planner
from cme_bench.runs.records import Identity, TaskRecord
from cme_bench.runs.responder import Responder
from cme_bench.runs.store import read_records, samples_file
from cme_bench.tasks.build import build_task
from cme_bench.tasks.open_source import open_source
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import DType


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """Token ids of the prompts of a task, or of its items with one value of a field."""

    task: str
    domain: str
    group: str
    prompts: tuple[TokenIds, ...]


def open_responder(options: RouterOptions) -> Responder:
    """Open the model and the routed adapter that ``options.source`` names; no weights are loaded.

    Raises UsageError if it is neither a run nor an adapter, has no router, or is a run of other weights than
    those found now.
    """
    folder = options.source
    if is_run(folder):
        run = read_run(folder)
        if run.adapter is None:
            raise UsageError(f"{folder} is a run of a base model: only adapters have a router")
        model, adapter = options.model or run.model.path or "", run.adapter.path or ""
        dtype = options.dtype or cast("DType", run.identity.dtype)
        arguments = read_arguments(run, run_file(folder))
        settings, bos = arguments.settings, arguments.bos
    else:
        place = _adapter(options)
        model, adapter = options.model or _recorded_base(place), str(options.source)
        dtype, settings, bos, run = options.dtype or "auto", {}, "auto", None
    asked = ModelOptions(model=model, dtype=dtype, offline=options.offline, settings=settings)
    responder = Responder(open_engines(asked), adapter, bos=bos)
    if run is not None:
        _check_same_weights(folder, run.identity, responder)
    _check_routed(responder)
    return responder


def _adapter(options: RouterOptions) -> Path:
    """Return the adapter folder that the source names. UsageError if it is none."""
    source = options.source
    hub = not source.exists() and parse_hub_name(str(source)) is not None
    if hub or str(source) in packaged():
        return adapter_folder(source, offline=options.offline)
    if (source / CONFIG_FILE).is_file():
        return source
    raise UsageError(f"{source} is neither a run folder (run.json) nor an adapter folder ({CONFIG_FILE})")


def _recorded_base(adapter: Path) -> str:
    config = read_config(adapter)
    base, revision = config.base_model_name_or_path, config.revision
    if not base:
        raise UsageError(f"{adapter / CONFIG_FILE} records no base model; name it with --model")
    name = None if Path(base).exists() else parse_hub_name(str(base))
    return str(base) if name is None or not revision else str(name.at(revision))


def _check_same_weights(folder: Path, run: Identity, responder: Responder) -> None:
    for part, recorded in (("model", run.model), ("adapter", run.adapter)):
        if recorded != responder.identity[part]:
            raise UsageError(
                f"{folder}: the {part} has changed since that run (its weights hash differently)"
            )


def _check_routed(responder: Responder) -> None:
    from cme_bench.adapters.registry import routed_names

    assert responder.adapter is not None
    found = responder.adapter.record
    if found.experts is None:
        raise UsageError(
            f"{found.path} is a {found.method} adapter, which has no router "
            f"(methods that have one: {', '.join(routed_names())})"
        )


def prompt_groups(options: RouterOptions, responder: Responder) -> list[PromptGroup]:
    """Return the prompts to forward: at most ``limit`` of each task, or of each value of the field ``by``.

    A prompt longer than the context loses tokens from its left, as in a run. Tasks whose items lack the field
    are left out. Raises UsageError for unknown tasks, and if no task has the field.
    """
    asked = _stored(options, responder) if is_run(options.source) else _anew(options, responder)
    groups: list[PromptGroup] = []
    for task, domain, items in asked:
        by_value: dict[str, list[TokenIds]] = {}
        for ids, doc in items:
            if options.by is None or options.by in doc:
                value = "" if options.by is None else str(doc[options.by])
                kept = by_value.setdefault(value, [])
                if options.limit is None or len(kept) < options.limit:
                    kept.append(ids)
        groups += [PromptGroup(task, domain, value, tuple(kept)) for value, kept in by_value.items()]
    if not groups:
        raise UsageError(f"--by {options.by}: no item of the tasks has this field")
    return groups


Items = Sequence[tuple[TokenIds, Mapping[str, Any]]]


def _stored(options: RouterOptions, responder: Responder) -> Iterator[tuple[str, str, Items]]:
    """Yield the prompts that a run keeps with its records, tokenised as the run did."""
    run = read_run(options.source)
    planned = run.tasks
    # runs before --bos took what the tokenizer adds
    encoder = responder.encoder if run.bos else Encoder(responder.tokenizer)
    for task in _selected(options, planned):
        last = last_records(read_records(samples_file(options.source, task)))
        records = [last[id_] for id_ in limited_ids(last, None if options.by else options.limit)]
        _refuse_images(task, any(record.images for record in records))
        rendered = planned[task].prompt_format.startswith("chat")
        encoded = encoder.encode((r.prompt for r in records), rendered=rendered)
        items = []
        for record in records:
            ids, room = encoded[record.prompt] or (encoder.start_token,), responder.max_length
            items.append((truncate(ids, room, encoder.kept(ids, room)), record.doc))
        yield task, planned[task].domain, items


def _selected(options: RouterOptions, planned: Mapping[str, TaskRecord]) -> list[str]:
    if options.tasks is None:
        return list(planned)
    names = [name.strip() for name in options.tasks.split(",") if name.strip()]
    known = {*planned, *(task.domain for task in planned.values())}
    for name in names:
        if name not in known:
            raise UsageError(
                f"{options.source} has no task or domain {name!r}{did_you_mean(name, sorted(known))}"
            )
    return [task for task, plan in planned.items() if task in names or plan.domain in names]


def _anew(options: RouterOptions, responder: Responder) -> Iterator[tuple[str, str, Items]]:
    """Yield the prompts that a run of the tasks would ask."""
    asked = AskOptions(
        tasks=options.tasks or "cme",
        data=options.data,
        limit=None if options.by else options.limit,
        prompt_format=options.prompt_format,
        offline=options.offline,
    )
    suite = load_suite()
    source = open_source(asked.data, offline=asked.offline)
    planner = Planner(asked)
    for spec in suite.select(asked.tasks):
        task = build_task(spec, suite, source, shots=asked.shots)
        _refuse_images(spec.name, bool(spec.config.get("doc_to_image")))
        _, items = planner.items(task, responder)
        yield spec.name, spec.domain, [(item.request.prompt, item.doc) for item in items]


def _refuse_images(task: str, shown: bool) -> None:
    if shown:
        raise UsageError(
            f"task {task} shows images, which are not forwarded here: name tasks of text alone with --tasks"
        )
