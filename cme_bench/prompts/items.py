"""From a task to requests: every item rendered, tokenised, checked and ready for an engine."""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest, Request, Thought, TokenIds
from cme_bench.images.image import MARK, Image, ImageError
from cme_bench.images.marks import check_marks
from cme_bench.models.vision import Vision
from cme_bench.prompts.chat import ChatTemplateError
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import PromptFormat
from cme_bench.prompts.generation import DEFAULT_THINKING_BUDGET, GenerationOptions, generation_of
from cme_bench.prompts.seen import Reading
from cme_bench.scoring.generation import GENERATE_UNTIL
from cme_bench.util.errors import UsageError, template_problem

NOTHING_ASKED = GenerationOptions()


class AskableTask(Protocol):
    """The part of a task (:class:`cme_bench.tasks.build.Task`) that this module needs."""

    @property
    def name(self) -> str: ...
    @property
    def shots(self) -> int: ...
    @property
    def lm_eval(self) -> Any: ...
    @property
    def docs(self) -> Any: ...
    def place(self, index: int) -> str: ...
    def seed_fewshot(self, seed: int, index: int) -> None: ...


@dataclass(frozen=True, slots=True)
class RenderedItem:
    """One item of a task as text, before any tokenizer.

    ``target``: the gold answer as text; ``instances``: lm-eval's own requests, one a choice, or one;
    ``images``: those of its prompt, exemplars' included, in the order of their marks ``<image>`` in it.
    """

    id: int
    doc: dict[str, Any]
    target: str
    instances: tuple[Any, ...]
    images: tuple[Image, ...] = ()

    @property
    def contexts(self) -> tuple[str, ...]:
        """The text before the answer, of every request."""
        return tuple(str(instance.args[0]) for instance in self.instances)

    @property
    def choices(self) -> tuple[str, ...]:
        """The continuations that are scored; empty for generation."""
        scored = self.instances[0].request_type == "loglikelihood"
        return tuple(str(instance.args[1]) for instance in self.instances) if scored else ()


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a task, asked.

    ``prompt``: the text before the answer (of the first choice, where contexts differ); ``choices``: the
    continuations that are scored, empty for generation; ``target``: the gold answer as text;
    ``truncated``: tokens cut from the left of its longest context; ``instances``: lm-eval's own requests;
    ``repeat``: which of several answers is asked for; ``images``: those of its prompt, in order.
    """

    id: int
    doc: dict[str, Any]
    prompt: str
    choices: tuple[str, ...]
    target: str
    request: Request
    instances: tuple[Any, ...]
    truncated: int
    repeat: int = 0
    images: tuple[Image, ...] = ()


def build_items(
    task: AskableTask,
    encoder: Encoder,
    prompt_format: PromptFormat,
    *,
    max_length: int,
    limit: int | None = None,
    seed: int = 0,
    generation: GenerationOptions = NOTHING_ASKED,
    vision: Vision | None = None,
) -> list[Item]:
    """Build the items of ``task`` in order, or the ``limit`` of them that :func:`limited_ids` names.

    Where ``generation`` or the task asks for several answers, each is an item; those of one prompt follow
    one another.

    ``max_length``: most tokens the model is fed. A prompt that does not fit loses tokens from its left, never
    the BOS and never its last token; the count is kept. As in lm-eval, the last token of what is scored needs
    no place, since it is not fed, and what is generated is counted in full. Raises UsageError with the row's
    place for labels out of range, templates that fail on a row, answers that leave no room for a prompt or
    for its images, and generation settings that are not supported. ``vision``: how the model reads images.
    """
    if vision is None:
        refuse_images(task)
    ids = limited_ids(range(len(task.docs)), limit)
    docs = rows_at(task.docs, ids)
    rendered = [render_item(task, i, prompt_format, seed, doc) for i, doc in zip(ids, docs, strict=True)]
    reading = Reading(vision, encoder, lambda index: f"{task.place(index)}: task {task.name}")
    if task.lm_eval.OUTPUT_TYPE == GENERATE_UNTIL:
        return _generate_items(
            task, rendered, encoder, prompt_format, max_length, options=generation, reading=reading
        )
    return _loglikelihood_items(task, rendered, encoder, prompt_format, max_length, reading=reading)


def refuse_images(task: AskableTask) -> None:
    """Raise UsageError for a task that shows images: asked of a text model, its score would say nothing."""
    if task.lm_eval.row_images is not None:
        raise UsageError(
            f"task {task.name} shows images (doc_to_image), and this model reads text alone; "
            "name a vision-language model, or leave the task out"
        )


def limited_ids(ids: Collection[int], limit: int | None) -> list[int]:
    """Return the ``ids`` that a limit keeps, ascending: the first ``limit`` in the order of a fixed shuffle.

    Splits are often sorted by label or subject (IMDB's, MMLU's), so that their first rows would say nothing
    about the whole. The shuffle orders ids by their own sha256: it needs no seed, a smaller limit is a subset
    of a larger one, and both forms of a dataset keep the same rows.
    """
    if limit is None or limit >= len(ids):
        return sorted(ids)
    return sorted(heapq.nsmallest(limit, ids, key=_place_in_shuffle))


@functools.cache
def _place_in_shuffle(index: int) -> bytes:
    """Return what an id is ordered by; all splits have the small ones."""
    return hashlib.sha256(str(index).encode()).digest()


def rows_at(docs: Any, ids: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield the rows of these ids, in their order. A ``datasets.Dataset`` decodes many at a time faster."""
    if not hasattr(docs, "column_names"):
        yield from (docs[index] for index in ids)
        return
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        batch = docs[list(ids[start : start + _ROWS_AT_ONCE])]
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


_ROWS_AT_ONCE = 256
"""Rows may hold images, which are decoded with them."""


def render_item(
    task: AskableTask,
    index: int,
    prompt_format: PromptFormat,
    seed: int = 0,
    doc: dict[str, Any] | None = None,
) -> RenderedItem:
    """Render item ``index`` of ``task`` as text, its few-shot exemplars drawn by (seed, index).

    ``doc``: its row, if it was read before.

    Raises UsageError with the row's place for a label out of range or a template that fails on the row.
    """
    lm_task = task.lm_eval
    task.seed_fewshot(seed, index)
    doc = task.docs[index] if doc is None else doc
    chat = {"apply_chat_template": prompt_format.render is not None, "chat_template": prompt_format.render}
    try:
        target = _check_gold(lm_task, doc)
        context = lm_task.fewshot_context(
            doc,
            task.shots,
            system_instruction=prompt_format.system,
            fewshot_as_multiturn=prompt_format.render is not None,
            gen_prefix=lm_task.doc_to_prefix(doc),
            **chat,
        )
        built = lm_task.construct_requests(doc=doc, ctx=context, metadata=(task.name, index, 1), **chat)
        item = RenderedItem(index, doc, target, tuple(built) if isinstance(built, list) else (built,))
        if lm_task.row_images is None:
            return item
        return _with_images(item, lm_task, placed=prompt_format.places_images)
    except ImageError as error:
        raise ImageError(f"{task.place(index)}: task {task.name}: {error}") from error
    except (ChatTemplateError, UsageError):
        raise  # the row is not to blame; an exemplar names its own place
    except Exception as error:  # a template may raise anything on a row it does not fit
        raise UsageError(f"{task.place(index)}: task {task.name}: {template_problem(error)}") from error


def _with_images(item: RenderedItem, lm_task: Any, *, placed: bool) -> RenderedItem:
    """Return the item with the images of its prompt. ImageError if they are not those that it marks.

    ``placed``: whether the model's own placeholders stand there; they are counted where they are read.
    """
    images = lm_task.prompt_images(item.doc)
    for context in () if placed else dict.fromkeys(item.contexts):
        check_marks(context, len(images))
    if any(MARK in choice for choice in item.choices):
        raise ImageError(f"a choice has a mark {MARK}: images stand in the prompt only")
    return replace(item, images=images)


def _check_gold(lm_task: Any, doc: dict[str, Any]) -> str:
    """Return the gold answer as text; ValueError if its label is out of range, or if there is none."""
    target = lm_task.doc_to_target(doc)
    if isinstance(target, bytes):
        raise ValueError("the right answer is bytes, no text")
    if lm_task.config.doc_to_choice is None:
        if getattr(lm_task, "answer", None) and (target is None or target == []):
            raise ValueError("there is no right answer")
        return str(target[0]) if isinstance(target, list) and target else str(target)
    choices = lm_task.doc_to_choice(doc)
    if isinstance(choices, str):
        raise ValueError(f"doc_to_choice gives the text {choices[:60]!r}, no list of options")
    if None in choices:
        raise ValueError(f"option {list(choices).index(None) + 1} is null")
    gold = lm_task.doc_to_text(doc) if lm_task.multiple_input else target
    for label in gold if isinstance(gold, list) else [gold]:
        if isinstance(label, str) and label in choices:
            continue
        if not isinstance(label, int) or not 0 <= label < len(choices):
            raise ValueError(f"label {label!r} is out of range: there are {len(choices)} choices")
    first = gold[0] if isinstance(gold, list) else gold
    return str(choices[first]) if isinstance(first, int) else str(first)


def _loglikelihood_items(
    task: AskableTask,
    rendered: Sequence[RenderedItem],
    encoder: Encoder,
    prompt_format: PromptFormat,
    max_length: int,
    *,
    reading: Reading,
) -> list[Item]:
    pairs = [
        (reading.text(item.id, context, item.images), choice)
        for item in rendered
        for context, choice in zip(item.contexts, item.choices, strict=True)
    ]
    encoded = iter(encoder.encode_pairs(pairs, prompt_format.policy, rendered=prompt_format.renders_bos))
    items = []
    for item in rendered:
        rows: list[tuple[TokenIds, TokenIds]] = []
        cut = 0
        for _ in item.instances:
            told, continuation = next(encoded)
            context = reading.ids(item.id, told, item.images)
            room = max_length + 1 - len(continuation)
            if room <= encoder.prefix_length:
                raise UsageError(
                    f"{task.place(item.id)}: task {task.name}: a choice of {len(continuation)} tokens leaves "
                    f"no room for its prompt within {max_length}"
                )
            kept = truncate(context, room, prefix := encoder.kept(context, room))
            reading.check_cut(item.id, context, kept, prefix, item.images)
            cut = max(cut, len(context) - len(kept))
            rows.append((kept, continuation))
        items.append(
            Item(
                id=item.id,
                doc=item.doc,
                prompt=item.contexts[0],
                choices=item.choices,
                target=item.target,
                request=LoglikelihoodRequest(_share_contexts(rows), item.images),
                instances=item.instances,
                truncated=cut,
                images=item.images,
            )
        )
    return items


def _generate_items(
    task: AskableTask,
    rendered: Sequence[RenderedItem],
    encoder: Encoder,
    prompt_format: PromptFormat,
    max_length: int,
    *,
    options: GenerationOptions,
    reading: Reading,
) -> list[Item]:
    asked = generation_of(task.name, task.lm_eval, options)
    thought = _thought(task, prompt_format, encoder, options)
    between = 0 if thought is None else max(len(thought.after), len(thought.closing))
    room = max_length - asked.max_new_tokens - between
    if room <= encoder.prefix_length:
        raise UsageError(
            f"task {task.name}: max_gen_toks {asked.max_new_tokens} leaves no room for a prompt within "
            f"{max_length}"
        )
    contexts = [reading.text(item.id, item.contexts[0], item.images) for item in rendered]
    encoded = encoder.encode(contexts, rendered=prompt_format.renders_bos)
    items = []
    for item, context in zip(rendered, contexts, strict=True):
        ids = reading.ids(item.id, encoded[context] or (encoder.start_token,), item.images)
        kept = truncate(ids, room, prefix := encoder.kept(ids, room))
        reading.check_cut(item.id, ids, kept, prefix, item.images)
        for repeat in range(asked.repeats):
            request = GenerateRequest(
                kept,
                asked.max_new_tokens,
                asked.stop,
                sampling=asked.drawn(options.seed, task.name, item.id, repeat),
                thought=None if thought is None else _fitted(thought, room - len(kept)),
                repeat=repeat,
                images=item.images,
                ends=encoder.ends,
            )
            items.append(
                Item(
                    id=item.id,
                    doc=item.doc,
                    prompt=item.contexts[0],
                    choices=(),
                    target=item.target,
                    request=request,
                    instances=item.instances,
                    truncated=len(ids) - len(kept),
                    repeat=repeat,
                    images=item.images,
                )
            )
    return items


def _thought(
    task: AskableTask, prompt_format: PromptFormat, encoder: Encoder, options: GenerationOptions
) -> Thought | None:
    """Return the thought before each answer; None where there is none, or where the answer has begun."""
    thinking = prompt_format.thinking
    begun = getattr(task.lm_eval.config, "gen_prefix", None)
    if thinking is None or thinking.marks is None or not thinking.budgeted or begun:
        return None
    marks = thinking.marks
    budget = options.thinking_budget
    return Thought(
        budget=DEFAULT_THINKING_BUDGET if budget is None else budget,
        start=marks.start,
        end=marks.end,
        opened=thinking.thinker.opens(thinking.mode),
        after=encoder.encode_behind(marks.after),
        closing=encoder.encode_behind(f"{marks.blank}{marks.end}{marks.after}"),
    )


def _fitted(thought: Thought, room: int) -> Thought:
    """Return the thought with a budget that fits: a prompt loses no tokens for it."""
    return thought if thought.budget <= room else replace(thought, budget=max(0, room))


def truncate(ids: TokenIds, room: int, prefix: int) -> TokenIds:
    """Return ``ids`` cut from the left to ``room`` tokens (more than ``prefix``), its first ``prefix``
    kept."""
    if len(ids) <= room:
        return ids
    return ids[:prefix] + ids[len(ids) - (room - prefix) :]


def _share_contexts(
    rows: Sequence[tuple[TokenIds, TokenIds]],
) -> tuple[tuple[TokenIds, TokenIds], ...]:
    """Return equal contexts as one object: a question's context is held once, however many choices it has."""
    if all(context is rows[0][0] for context, _ in rows):
        return tuple(rows)
    seen: dict[TokenIds, TokenIds] = {}
    return tuple((seen.setdefault(context, context), continuation) for context, continuation in rows)
