"""Evaluate the model that transformers' Trainer trains, while it trains it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from cme_bench.runs.folder import read_results
from cme_bench.runs.live_source import check_live, run_live
from cme_bench.runs.options import AskOptions, RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.util.errors import UsageError, did_you_mean
from cme_bench.util.options import FormatName

FOLDER = "evaluations"
"""Below the training's output folder."""


class EvaluateCallback(TrainerCallback):  # type: ignore[misc]  # transformers carries no types here
    """Evaluates the live model every so many steps and at the end; the training goes on as if it had not.

    No second copy of the model is made, and its weights, mode, cache setting and all random states are as
    before: a training with the callback gives the weights that it gives without. Under several processes
    the first one evaluates and the others wait.

    Scores stand in ``trainer.state.log_history``: ``eval_TASK`` (the task's main score, a share in [0, 1]
    where it is one), ``eval_TASK_stderr``, and ``eval_average_FORM`` with ``eval_average_FORM_stderr``, FORM
    being ``generated`` or ``likelihood``. Every evaluation is a run folder, which ``open_run`` opens.

    Args:
        tasks: Tasks, domains and suites: names, or one text of names with commas.
        every: Steps from one evaluation to the next.
        data: ``hub``, ``mini``, or a folder of DATASET/SPLIT.jsonl.
        limit: Only so many items of each task, the first of a fixed shuffle.
        tokenizer: The model's tokenizer; default: the trainer's ``processing_class``.
        prompt_format: As in ``evaluate``; an adapter in training does not say its own.
        out: Where run folders are made; default: ``evaluations`` below the training's output folder.
        log: Called with the scores in place of the log history: ``trainer.log`` sends them to trackers too.
        listener: Told of the progress of evaluations.
        options: Other fields of :class:`~cme_bench.runs.options.AskOptions`, and ``settings``.

    Raises UsageError for bad input when the training begins, before its first step.
    """

    def __init__(
        self,
        tasks: str | Iterable[str] = "cme",
        *,
        every: int = 500,
        data: str | PathLike[str] = "hub",
        limit: int | None = None,
        tokenizer: Any = None,
        prompt_format: FormatName = "auto",
        out: str | PathLike[str] | None = None,
        log: Callable[[dict[str, float]], None] | None = None,
        listener: Listener | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise UsageError(f"every: a whole number of steps, at least 1, not {every!r}")
        known = [option.name for option in fields(AskOptions) if option.name != "adapters"] + ["settings"]
        for name in options:
            if name not in known:
                raise UsageError(f"EvaluateCallback: unknown option {name!r}{did_you_mean(name, known)}")
        self._asked = RunOptions(
            model="",
            tasks=tasks if isinstance(tasks, str) else ",".join(tasks),
            data=str(data),
            limit=limit,
            prompt_format=prompt_format,
            **options,
        )
        self.every = every
        self.runs: dict[int, Path] = {}
        """The run folder of every step that was evaluated."""
        self._tokenizer = tokenizer
        self._out = None if out is None else Path(out)
        self._log = log
        self._listener = listener or Listener()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_live(kwargs["model"], self._tokenizer_of(kwargs), self._asked)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._evaluate(args, state, kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step not in self.runs or args.load_best_model_at_end:
            self._evaluate(args, state, kwargs)

    def _tokenizer_of(self, kwargs: dict[str, Any]) -> Any:
        return self._tokenizer if self._tokenizer is not None else kwargs.get("processing_class")

    def _evaluate(self, args: Any, state: Any, kwargs: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            (folder,) = run_live(
                kwargs["model"],
                self._tokenizer_of(kwargs),
                self._asked,
                self._listener,
                name=f"step-{state.global_step}",
                root=self._out or Path(args.output_dir) / FOLDER,
            )
            self.runs[state.global_step] = folder
            scores = dict(_scores(folder))
            if self._log is not None:
                self._log(scores)
            else:
                state.log_history.append({"epoch": state.epoch, "step": state.global_step} | scores)
        if args.world_size > 1:
            torch.distributed.barrier()


def _scores(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield the scores of a run by the names under which they are logged."""
    results = read_results(folder)
    found: dict[str, Any] = {name: task.score for name, task in results.tasks.items()}
    forms = results.forms.items()
    found |= {f"average_{form}": part.average for form, part in forms if part.average is not None}
    for name, estimate in found.items():
        for key, value in ((name, estimate.value), (f"{name}_stderr", estimate.stderr)):
            if value is not None and math.isfinite(value):
                yield f"eval_{key}", float(value)
