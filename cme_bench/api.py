"""The functions of ``import cme_bench``; the command line calls the same ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, fields
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cme_bench.run import Run, compare, table
from cme_bench.runs.options import RunOptions, parse_settings
from cme_bench.runs.progress import Listener
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import Engine, described

__all__ = ["compare", "dry_run", "evaluate", "list_runs", "load_runs", "open_run", "table"]

if TYPE_CHECKING:
    import pandas as pd
    from peft import PeftModel
    from transformers import PreTrainedModel

    from cme_bench.runs.cost import DryRun

Name = str | PathLike[str]


def evaluate(
    model: Name | PreTrainedModel | PeftModel,
    *,
    adapters: Name | Sequence[Name | None] | None = None,
    tasks: str | Iterable[str] = "cme",
    data: Name = "hub",
    limit: int | None = None,
    engine: Literal["auto"] | Engine = "auto",
    out: Name | None = None,
    tokenizer: Any = None,
    name: str | None = None,
    progress: bool | Listener = True,
    **options: Any,
) -> list[Run]:
    """Evaluate a model alone, or with each of several adapters; return a run for each.

    The same call goes on where an earlier one stopped: an answer that is stored is not computed again.

    Args:
        model: A folder, a hub id, ``smollm2``, ``smollava`` or ``gemma3-270m``; or a model in memory, which
            is left as it is.
        adapters: Adapter folders; None among them is the model alone. Of a ``PeftModel`` in memory they are
            names of its adapters, and without them it is evaluated as it is now.
        tasks: Tasks, domains and suites: names, or one text of names with commas.
        data: ``hub``, ``mini``, or a folder of DATASET/SPLIT.jsonl.
        limit: Only so many items of each task, the first of a fixed shuffle.
        engine: ``hf``, ``vllm`` or ``ray``; ``auto`` chooses one of the first two, and says why.
        out: The run's folder, with one below it for each of several adapters; default: runs/MODEL-HASH.
        tokenizer: The tokenizer of a model in memory.
        name: What runs and tables call a model in memory; default: as its config says.
        progress: Whether progress is shown on stderr; or a listener, which is told of it.
        options: Other options of ``cme-bench run``, by the names of the fields of
            :class:`~cme_bench.runs.options.RunOptions`.

    Raises UsageError for bad input before anything is computed, and InterruptedRun, with everything finished
    so far stored, if it is interrupted.
    """
    given = {"tasks": tasks, "data": data, "limit": limit, "engine": engine, "out": out, "adapters": adapters}
    with _listening(progress) as listener:
        if isinstance(model, str | PathLike):
            from cme_bench.runs.runner import run

            for option, value in (("tokenizer", tokenizer), ("name", name)):
                if value is not None:
                    raise UsageError(f"{option}= is for a model in memory; a folder has its own")
            return [Run(folder) for folder in run(_options(fspath(model), given | options), listener)]
        from cme_bench.runs.live_source import run_live

        asked = _options("", given | options)
        return [Run(folder) for folder in run_live(model, tokenizer, asked, listener, name=name)]


def dry_run(
    model: Name, *, adapters: Name | Sequence[Name | None] | None = None, **options: Any
) -> list[DryRun]:
    """Say what ``evaluate`` would ask with the same arguments, and about how long it would take here.

    Nothing is asked or written, and no weights are loaded. ``print`` shows a table of each. Raises UsageError
    for what ``evaluate`` refuses before its first question.
    """
    from cme_bench.runs.dry_run import dry_run as counted

    given = {"tasks": "cme", "data": "hub", "out": None, "adapters": adapters} | options
    return counted(_options(fspath(model), given))


def list_runs(folder: Name = "runs") -> pd.DataFrame:
    """List the runs below a folder as a frame, a row each: name, model, adapter, state, score, age, fault.

    ``scores`` holds a mapping of each form's average, ``score`` the first of them. No samples are read.
    Raises UsageError if there is no such folder.
    """
    from cme_bench.reports.listing import list_frame

    return list_frame(Path(folder))


def open_run(folder: Name) -> Run:
    """Open a run's folder. Raises UsageError if it is none, or has no finished task yet."""
    return Run(folder)


def load_runs(*folders: Name, items: bool = False) -> pd.DataFrame:
    """Load run folders as one tidy frame: a row for each task and metric; with ``items`` for each item and
    metric.

    Columns name the run (run, model, adapter, method, rank, experts, engine, dtype, quantisation, data), the
    task (domain, dataset, task, ...) and the number (metric, value; stderr and n for tasks). Values are
    shares in [0, 1]. Raises :class:`cme_bench.util.errors.UsageError` for a folder that is no run.
    """
    from cme_bench.reports.frame import load_frame

    return load_frame([Path(folder) for folder in folders], items=items)


def _options(model: str, given: Mapping[str, Any]) -> RunOptions:
    """Return the options of a run, from values as Python has them."""
    known = [option.name for option in fields(RunOptions) if option.name not in ("model", "command")]
    for option in given:
        if option not in known:
            raise UsageError(f"evaluate: unknown option {option!r}{did_you_mean(option, known)}")
    values = dict(given) | {"data": fspath(given["data"]), "adapters": _adapters(given["adapters"])}
    if not isinstance(given["tasks"], str):
        values["tasks"] = ",".join(given["tasks"])
    if given["out"] is not None:
        values["out"] = Path(given["out"])
    if "include" in given:
        include = given["include"]
        several = [include] if isinstance(include, str | PathLike) else include or ()
        values["include"] = tuple(map(Path, several))
    if "settings" in given:
        values["settings"] = parse_settings([f"{key}={value}" for key, value in given["settings"].items()])
    return RunOptions(model=model, **values)


def _adapters(given: Name | Sequence[Name | None] | None) -> tuple[str | None, ...]:
    if given is None:
        return ()
    several = [given] if isinstance(given, str | PathLike) else given
    if not several:
        raise UsageError("adapters is empty: leave it out, or give None, to evaluate the model alone")
    return tuple(None if adapter is None else fspath(adapter) for adapter in several)


def _listening(progress: bool | Listener) -> AbstractContextManager[Listener]:
    if isinstance(progress, Listener):
        return nullcontext(progress)
    if not progress:
        return nullcontext(Listener())
    from cme_bench.runs.display import show_progress

    return show_progress()


def _full_signature() -> inspect.Signature:
    """Return the signature of ``evaluate`` with every option of a run, each with its own default."""
    shown = inspect.signature(evaluate)
    named = [p for p in shown.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    taken = {parameter.name for parameter in named} | {"command"}
    defaults = {option.name: option.default for option in fields(RunOptions)}
    more = [
        inspect.Parameter(
            option,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if defaults[option] is MISSING else defaults[option],
            annotation=kind,
        )
        for option, kind, _ in described(RunOptions)
        if option not in taken
    ]
    return shown.replace(parameters=[*named, *more])


evaluate.__signature__ = _full_signature()  # type: ignore[attr-defined]  # what help() and notebooks show
