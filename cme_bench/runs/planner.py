"""Tasks to plans: every item that a run asks of a model, as token ids, and the key of each answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cme_bench.engines.base import TokenIds
from cme_bench.prompts.formats import PromptFormat, resolve_format
from cme_bench.prompts.items import Item, build_items
from cme_bench.prompts.vocabulary import check_requests
from cme_bench.runs.identity import response_key
from cme_bench.runs.options import AskOptions
from cme_bench.runs.records import TaskRecord
from cme_bench.runs.responder import Responder
from cme_bench.tasks.build import Task

ItemsKey: TypeAlias = tuple[str, str, int, int, TokenIds]
"""Task, prompt format, tokenizer, length, and what begins a prompt: alike for adapters of one base that are
asked alike."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task of a run, asked: its items and the keys of their responses.

    ``notes``: what a user must know of its prompt format.
    """

    task: Task
    items: Sequence[Item]
    keys: Sequence[str]
    format_name: str
    policy: str
    limit: int | None
    notes: tuple[str, ...] = ()

    @property
    def generated(self) -> bool:
        """Whether answers are texts; else choices are scored."""
        return self.task.spec.generated

    def describe(self, source: str) -> TaskRecord:
        return TaskRecord(
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
    """Return sha256 of everything that decides a task's scores except the model: the task's own hash, the
    prompt format and the tokenisation policy."""
    return hashlib.sha256(f"{task.hash}:{format_name}:{policy}".encode()).hexdigest()


class Planner:
    """Plans the tasks of a run for one responder after the other; equal items are made once."""

    def __init__(self, options: AskOptions) -> None:
        self._options = options
        self._items: dict[ItemsKey, list[Item]] = {}

    def plan(self, task: Task, responder: Responder) -> TaskPlan:
        """Return the items that ``task`` asks of ``responder``, with the keys of their responses."""
        prompt_format, items = self.items(task, responder)
        identity = responder.identity
        return TaskPlan(
            task=task,
            items=items,
            keys=[response_key(identity, item.request) for item in items],
            format_name=prompt_format.name,
            policy=prompt_format.policy,
            limit=self._options.limit,
            notes=prompt_format.notes,
        )

    def items(self, task: Task, responder: Responder) -> tuple[PromptFormat, list[Item]]:
        """Return the items that ``task`` asks of ``responder``, and their prompt format."""
        prompt_format = self._format(task, responder)
        begin = responder.encoder.bos.prefix
        key = (task.name, prompt_format.name, id(responder.tokenizer), responder.max_length, begin)
        if key not in self._items:
            self._items[key] = self._built(task, responder, prompt_format)
        return prompt_format, self._items[key]

    def _format(self, task: Task, responder: Responder) -> PromptFormat:
        return resolve_format(
            self._options.prompt_format,
            responder.tokenizer,
            saved=responder.saved_format,
            generated=task.spec.generated,
            system=self._options.system,
            described=bool(task.lm_eval.config.description),
        )

    def _built(self, task: Task, responder: Responder, prompt_format: PromptFormat) -> list[Item]:
        items = build_items(
            task,
            responder.encoder,
            prompt_format,
            max_length=responder.max_length,
            limit=self._options.limit,
            seed=self._options.seed,
        )
        requests = (item.request for item in items)
        check_requests(responder.tokenizer, responder.embeddings, requests, model=responder.model.place)
        return items
