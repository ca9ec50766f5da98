"""Adapters with parameters of several tasks (PEFT's Poly, multitask prompt tuning): one task for every row.

PEFT takes ``task_ids`` with each batch. A run names one task for all its rows, ``ADAPTER#task=N``, which the
adapter's own modules then take where a forward gives none.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.multitask_prompt_tuning.model import MultitaskPromptEmbedding
from peft.tuners.poly.layer import PolyLayer
from peft.tuners.poly.router import PolyRouter
from torch import Tensor

_COUNTS = {"POLY": "n_tasks", "MULTITASK_PROMPT_TUNING": "num_tasks"}
"""By method, the field that says how many tasks there are."""
_CHOSEN = "row_task"
"""Attribute of a loaded adapter's config: the task that was chosen."""


def task_count(config: PeftConfig) -> int | None:
    """Return how many tasks an adapter has parameters of; None if its method knows no tasks."""
    method = str(getattr(config.peft_type, "value", config.peft_type))
    return int(getattr(config, _COUNTS[method])) if method in _COUNTS else None


def why_no_task(config: PeftConfig, task: int | None) -> str | None:
    """Return why an adapter cannot be computed with ``task``; None if it can."""
    count = task_count(config)
    if count is None:
        return None if task is None else "#task is for methods with parameters of several tasks, such as POLY"
    if task is None:
        last = f" to #task={count - 1}" if count > 1 else ""
        return f"it has parameters of {count} tasks; choose that of all rows: ADAPTER#task=0{last}"
    if task >= count:
        return f"#task={task}: it has {count} tasks, 0 to {count - 1}"
    return None


def chosen_task(config: PeftConfig) -> int | None:
    """Return the task that ``choose_task`` chose for a loaded adapter."""
    return getattr(config, _CHOSEN, None)


def choose_task(model: PeftModel, name: str, task: int) -> None:
    """Make adapter ``name`` of ``model`` compute every row as one of task ``task``.

    A forward that is given ``task_ids`` still follows those. Raises ValueError if there is no such task.
    """
    if reason := why_no_task(model.peft_config[name], task):
        raise ValueError(reason)
    for module in model.modules():
        if isinstance(module, PolyLayer) and name in module.poly_router:
            _fix(module.poly_router[name], _RouterOfTask, task)
    encoder = getattr(model, "prompt_encoder", {})
    if name in encoder and isinstance(encoder[name], MultitaskPromptEmbedding):
        _fix(encoder[name], _PromptOfTask, task)
    setattr(model.peft_config[name], _CHOSEN, task)


def _fix(module: Any, kind: type, task: int) -> None:
    module.__class__ = kind
    module.task = task


class _RouterOfTask(PolyRouter):  # type: ignore[misc]  # PEFT has no types
    task: int

    def forward(self, task_ids: Tensor | None, input_ids: Tensor) -> Tensor:
        if task_ids is None:
            task_ids = torch.full((len(input_ids),), self.task)
        return cast("Tensor", super().forward(task_ids, input_ids))


class _PromptOfTask(MultitaskPromptEmbedding):  # type: ignore[misc]
    task: int

    def forward(self, indices: Tensor, task_ids: Tensor | None) -> Tensor:
        if task_ids is None:
            task_ids = torch.full((len(indices),), self.task, device=indices.device)
        return cast("Tensor", super().forward(indices, task_ids))
