"""Tasks to plans: every item that a run asks of a model, as token ids, and the key of each answer."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import orjson

from cme_bench.engines.base import GenerateRequest, Request, Thought, TokenIds
from cme_bench.models.vision import Vision
from cme_bench.prompts.formats import PromptFormat, kept_bos, resolve_format
from cme_bench.prompts.generation import (
    DEFAULT_THINKING_BUDGET,
    Generation,
    GenerationOptions,
    generation_of,
)
from cme_bench.prompts.items import Item, build_items
from cme_bench.prompts.thinking import Thinking
from cme_bench.prompts.vocabulary import check_requests
from cme_bench.runs.identity import response_key
from cme_bench.runs.options import AskOptions
from cme_bench.runs.records import TaskRecord
from cme_bench.runs.responder import Responder
from cme_bench.scoring.marks import Marks
from cme_bench.tasks.build import Task
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import UsageError

ItemsKey: TypeAlias = tuple[str, str, int, int, TokenIds, TokenIds]
"""Task, prompt format with thinking, tokenizer, length, and what begins a prompt: alike for adapters of one
base that are asked alike."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task of a run, asked: its items and the keys of their responses.

    ``made_keys``: makes the keys, once; ``notes``: what a user must know of how it is asked; ``generation``:
    how answers are generated, None where choices are scored; ``thinking``: what was decided of thoughts;
    ``overrides``: as a :class:`~cme_bench.runs.records.TaskRecord` has them.
    """

    task: Task
    items: Sequence[Item]
    made_keys: Callable[[], Sequence[str]]
    format_name: str
    policy: str
    limit: int | None
    notes: tuple[str, ...] = ()
    generation: Generation | None = None
    thinking: Thinking | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def keys(self) -> Sequence[str]:
        """The keys of the items' responses, made when they are first asked for."""
        return self.made_keys()

    @property
    def repeats(self) -> int:
        """How many answers each item gets."""
        return 1 if self.generation is None else self.generation.repeats

    @property
    def combined(self) -> bool:
        """Whether the task's own filters make one score of an item's answers."""
        return self.generation is not None and self.generation.combined

    @property
    def marks(self) -> Marks | None:
        """The texts that begin and end a thought of its model."""
        return None if self.thinking is None else self.thinking.marks

    @property
    def generated(self) -> bool:
        """Whether answers are texts; else choices are scored."""
        return self.task.spec.generated

    def describe(self, source: str) -> TaskRecord:
        sampling = None if self.generation is None else self.generation.sampling
        drawn = None
        if sampling is not None:
            drawn = {k: float(v) for k, v in asdict(sampling).items() if k != "seed"}
        first = [item for item in self.items if item.repeat == 0]
        return TaskRecord(
            domain=self.task.spec.domain,
            dataset=self.task.spec.dataset,
            primary=self.task.spec.primary,
            output_type=self.task.spec.output_type,
            hash=task_hash(self.task, self.format_name, self.policy, self.overrides),
            n=len(first),
            rows=len(self.task.docs),
            limit=self.limit,
            shots=self.task.shots,
            prompt_format=self.format_name,
            policy=self.policy,
            source=source,
            origin=self.task.rows.origin,
            revision=self.task.revision,
            truncated=sum(item.truncated > 0 for item in first),
            repeats=self.repeats,
            combined=self.combined,
            sampling=drawn,
            thinking=None if self.thinking is None else self.thinking.mode,
            thinking_budget=self.overrides.get("thinking_budget"),
            overrides=dict(self.overrides),
            random_baseline=_number(self.task.spec, "random_baseline"),
            majority_baseline=_number(self.task.spec, "majority_baseline"),
        )


def _number(spec: TaskSpec, key: str) -> float | None:
    """Return a number that a task's metadata say, None where they do not."""
    value = spec.metadata.get(key)
    return float(value) if isinstance(value, int | float) else None


def task_hash(
    task: Task, format_name: str, policy: str, overrides: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """Return sha256 of everything that decides a task's scores except the model: the task's own hash, the
    prompt format, the tokenisation policy, and what a user set in place of the task's own."""
    more = f":{orjson.dumps(dict(overrides), option=orjson.OPT_SORT_KEYS).decode()}" if overrides else ""
    return hashlib.sha256(f"{task.hash}:{format_name}:{policy}{more}".encode()).hexdigest()


class Planner:
    """Plans the tasks of a run for one responder after the other; equal items are made once."""

    def __init__(self, options: AskOptions) -> None:
        self._options = options
        self._asked = GenerationOptions(
            **{name: getattr(options, name) for name in GenerationOptions.__dataclass_fields__}
        )
        self._items: dict[ItemsKey, tuple[Any, list[Item]]] = {}  # and the tokenizer, which keeps its id

    def plan(self, task: Task, responder: Responder) -> TaskPlan:
        """Return the items that ``task`` asks of ``responder``, with the keys of their responses."""
        prompt_format, items = self.items(task, responder)
        identity = responder.identity
        thinking, asked = prompt_format.thinking, self._asked
        generation = None
        overrides: dict[str, Any] = {}
        notes = (*prompt_format.notes, *kept_bos(responder.encoder.bos, prompt_format))
        if task.spec.generated:
            generation = generation_of(task.name, task.lm_eval, asked)
            requests = [item.request for item in items]
            overrides = asked.overrides | thought_overrides(thinking, requests, asked)
            notes += (*generation.notes, *_thought_notes(task.name, _thoughts(requests), overrides))
        notes += tuple(_image_notes(task, items))
        return TaskPlan(
            task=task,
            items=items,
            made_keys=functools.cache(lambda: [response_key(identity, item.request) for item in items]),
            format_name=prompt_format.name,
            policy=prompt_format.policy,
            limit=self._options.limit,
            notes=notes,
            generation=generation,
            thinking=thinking,
            overrides=overrides,
        )

    def items(self, task: Task, responder: Responder) -> tuple[PromptFormat, list[Item]]:
        """Return the items that ``task`` asks of ``responder``, and their prompt format."""
        prompt_format = self._format(task, responder)
        encoder = responder.encoder
        thinking = "" if prompt_format.thinking is None else prompt_format.thinking.mode
        how = f"{prompt_format.name}:{thinking}:{responder.saved_format}"
        key = (
            task.name,
            how,
            id(responder.tokenizer),
            responder.max_length,
            encoder.bos.prefix,
            encoder.ends,
        )
        if key not in self._items:
            self._items[key] = responder.tokenizer, self._built(task, responder, prompt_format)
        return prompt_format, self._items[key][1]

    def _format(self, task: Task, responder: Responder) -> PromptFormat:
        return resolve_format(
            self._options.prompt_format,
            responder.tokenizer,
            saved=responder.saved_format,
            own=task.spec.prompt_format,
            generated=task.spec.generated,
            system=self._options.system,
            described=bool(task.lm_eval.config.description),
            thinking=self._options.thinking,
            vision=_vision(task, responder),
        )

    def _built(self, task: Task, responder: Responder, prompt_format: PromptFormat) -> list[Item]:
        items = build_items(
            task,
            responder.encoder,
            prompt_format,
            max_length=responder.max_length,
            limit=self._options.limit,
            seed=self._options.seed,
            generation=self._asked,
            vision=_vision(task, responder),
        )
        requests = (item.request for item in items)
        place = responder.tokenizer_place
        check_requests(responder.tokenizer, responder.embeddings, requests, model=place)
        return items


def _vision(task: Task, responder: Responder) -> Vision | None:
    """Return how the model reads the images that a task shows; None where there are none, or it reads none.

    Raises UsageError if its processor cannot be loaded.
    """
    return None if task.lm_eval.row_images is None else responder.vision


def _image_notes(task: Task, items: Sequence[Item]) -> Iterator[str]:
    """Say how many items of a task that shows images have none. UsageError if no row has one."""
    if task.lm_eval.row_images is None:
        return
    first = [item for item in items if item.repeat == 0]
    blind = sum(not item.images for item in first)
    if blind == len(task.docs):
        raise UsageError(
            f"{task.spec.line('doc_to_image')}: task {task.name}: no row has an image, so all would be asked "
            "as text alone; leave doc_to_image out if that is meant"
        )
    if blind:
        yield f"task {task.name}: {blind} of {len(first)} items have no image and are asked as text alone"


def thought_overrides(
    thinking: Thinking | None, requests: Sequence[Request], asked: GenerationOptions
) -> dict[str, Any]:
    """Return what a thought adds to what decides a score; nothing where there is none."""
    if thinking is None or not _thoughts(requests):
        return {}
    budget = DEFAULT_THINKING_BUDGET if asked.thinking_budget is None else asked.thinking_budget
    return {"thinking": thinking.mode, "thinking_budget": budget}


def _thoughts(requests: Sequence[Request]) -> list[Thought]:
    return [r.thought for r in requests if isinstance(r, GenerateRequest) and r.thought is not None]


def _thought_notes(task: str, thoughts: Sequence[Thought], overrides: Mapping[str, Any]) -> list[str]:
    """Return what a user must know of the budgets of thoughts."""
    if not thoughts:
        return []
    budget = int(overrides["thinking_budget"])
    notes = [f"a thought has {budget} tokens (--thinking-budget), then it is closed and the answer follows"]
    if less := [thought.budget for thought in thoughts if thought.budget < budget]:
        notes.append(
            f"task {task}: {len(less)} prompts leave less room than {budget} tokens to think (the least: "
            f"{min(less)})"
        )
    return notes
