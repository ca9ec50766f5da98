"""From a task to requests: every item rendered, tokenised, checked and ready for an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest, TokenIds
from cme_bench.errors import UsageError
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import PromptFormat


class AskableTask(Protocol):
    """What this module needs of a task (:class:`cme_bench.tasks.build.Task`)."""

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
class Item:
    """One item of a task, asked.

    ``prompt``: the text before the answer (of the first choice, where contexts differ); ``choices``: the
    continuations that are scored, empty for generation; ``target``: the gold answer as text;
    ``truncated``: tokens cut from the left of its longest context; ``instances``: lm-eval's own requests.
    """

    id: int
    doc: dict[str, Any]
    prompt: str
    choices: tuple[str, ...]
    target: str
    request: LoglikelihoodRequest | GenerateRequest
    instances: tuple[Any, ...]
    truncated: int


def build_items(
    task: AskableTask,
    encoder: Encoder,
    prompt_format: PromptFormat,
    *,
    max_length: int,
    limit: int | None = None,
    seed: int = 0,
) -> list[Item]:
    """The first ``limit`` items of ``task``, in order.

    A prompt longer than ``max_length`` (less what is to be generated) loses tokens from its left, never the
    BOS and never its last token; the count is kept. Raises UsageError with the row's place for labels out of
    range, templates that fail on a row, and generation settings other than greedy.
    """
    count = len(task.docs) if limit is None else min(limit, len(task.docs))
    drafts = [_draft(task, index, prompt_format, seed) for index in range(count)]
    if task.lm_eval.OUTPUT_TYPE == "generate_until":
        return _generate_items(task, drafts, encoder, max_length)
    return _loglikelihood_items(drafts, encoder, prompt_format, max_length)


@dataclass(frozen=True, slots=True)
class _Draft:
    id: int
    doc: dict[str, Any]
    target: str
    instances: tuple[Any, ...]


def _draft(task: AskableTask, index: int, prompt_format: PromptFormat, seed: int) -> _Draft:
    lm_task = task.lm_eval
    task.seed_fewshot(seed, index)
    doc = task.docs[index]
    chat = {"apply_chat_template": prompt_format.render is not None, "chat_template": prompt_format.render}
    try:
        target = _check_gold(lm_task, doc)
        context = lm_task.fewshot_context(
            doc,
            task.shots,
            fewshot_as_multiturn=prompt_format.render is not None,
            gen_prefix=lm_task.doc_to_prefix(doc),
            **chat,
        )
        built = lm_task.construct_requests(doc=doc, ctx=context, metadata=(task.name, index, 1), **chat)
    except Exception as err:  # a template may raise anything on a row it does not fit
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise UsageError(f"{task.place(index)}: task {task.name}: {reason}") from err
    return _Draft(index, doc, target, tuple(built) if isinstance(built, list) else (built,))


def _check_gold(lm_task: Any, doc: dict[str, Any]) -> str:
    """The gold answer as text; ValueError if its label is out of range."""
    target = lm_task.doc_to_target(doc)
    if lm_task.config.doc_to_choice is None:
        return str(target[0]) if isinstance(target, list) and target else str(target)
    choices = lm_task.doc_to_choice(doc)
    gold = lm_task.doc_to_text(doc) if lm_task.multiple_input else target
    for label in gold if isinstance(gold, list) else [gold]:
        if isinstance(label, str) and label in choices:
            continue
        if not isinstance(label, int) or not 0 <= label < len(choices):
            raise ValueError(f"label {label!r} is out of range: there are {len(choices)} choices")
    first = gold[0] if isinstance(gold, list) else gold
    return str(choices[first]) if isinstance(first, int) else str(first)


def _loglikelihood_items(
    drafts: Sequence[_Draft], encoder: Encoder, prompt_format: PromptFormat, max_length: int
) -> list[Item]:
    pairs = [(i.args[0], i.args[1]) for draft in drafts for i in draft.instances]
    encoded = iter(encoder.encode_pairs(pairs, prompt_format.policy))
    items = []
    for draft in drafts:
        rows: list[tuple[TokenIds, TokenIds]] = []
        cut = 0
        for _ in draft.instances:
            context, continuation = next(encoded)
            kept = truncate(context, max_length - len(continuation), encoder.prefix_length)
            cut = max(cut, len(context) - len(kept))
            rows.append((kept, continuation))
        items.append(
            Item(
                id=draft.id,
                doc=draft.doc,
                prompt=draft.instances[0].args[0],
                choices=tuple(i.args[1] for i in draft.instances),
                target=draft.target,
                request=LoglikelihoodRequest(_share_contexts(rows)),
                instances=draft.instances,
                truncated=cut,
            )
        )
    return items


def _generate_items(
    task: AskableTask, drafts: Sequence[_Draft], encoder: Encoder, max_length: int
) -> list[Item]:
    max_new_tokens, stop = _generation_settings(task)
    encoded = encoder.encode(draft.instances[0].args[0] for draft in drafts)
    items = []
    for draft in drafts:
        prompt = draft.instances[0].args[0]
        ids = encoded[prompt] or (encoder.start_token,)
        kept = truncate(ids, max_length - max_new_tokens, encoder.prefix_length)
        items.append(
            Item(
                id=draft.id,
                doc=draft.doc,
                prompt=prompt,
                choices=(),
                target=draft.target,
                request=GenerateRequest(kept, max_new_tokens, stop),
                instances=draft.instances,
                truncated=len(ids) - len(kept),
            )
        )
    return items


def _generation_settings(task: AskableTask) -> tuple[int, tuple[str, ...]]:
    settings = task.lm_eval.config.generation_kwargs or {}
    if settings.get("do_sample") and float(settings.get("temperature", 1.0)) > 0:
        raise UsageError(f"task {task.name}: only greedy generation is supported (do_sample: false)")
    until = settings.get("until") or []
    stop = (until,) if isinstance(until, str) else tuple(str(s) for s in until)
    return int(settings.get("max_gen_toks", settings.get("max_new_tokens", 256))), stop


def truncate(ids: TokenIds, room: int, prefix: int) -> TokenIds:
    """``ids`` cut from the left to ``room`` tokens, keeping its first ``prefix`` and at least one more."""
    if len(ids) <= room:
        return ids
    tail = max(1, room - prefix)
    return ids[:prefix] + ids[len(ids) - tail :]


def _share_contexts(
    rows: Sequence[tuple[TokenIds, TokenIds]],
) -> tuple[tuple[TokenIds, TokenIds], ...]:
    """Equal contexts as one object: a question's context is held once, however many choices it has."""
    seen: dict[TokenIds, TokenIds] = {}
    return tuple((seen.setdefault(context, context), continuation) for context, continuation in rows)
