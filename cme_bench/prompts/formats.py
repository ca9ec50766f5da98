"""Prompt formats: how messages become one text, and how that text is cut into tokens.

A format is explicit: it is named on the command line or saved beside the adapter, and recorded in the run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cme_bench.models.vision import Vision
from cme_bench.prompts.alpaca import WRAPPERS
from cme_bench.prompts.bos import Bos
from cme_bench.prompts.chat import ChatTemplate, Message
from cme_bench.prompts.thinking import Thinking, decide_thinking
from cme_bench.util.errors import UsageError
from cme_bench.util.options import FormatName, check_choice

Policy: TypeAlias = Literal["joint", "separate"]
"""``joint``: context and continuation are tokenised as one text and split (lm-eval's way). ``separate``:
each is tokenised alone, as TeamLoRA's training does."""

TEAMLORA_SEPARATOR = "</s>"


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How messages become one text.

    ``render(messages, add_generation_prompt)`` gives the text before the answer; None joins plain text as
    lm-eval does. ``system``: what a chat begins with; its hash is part of ``name``, so that two of them are
    two formats. ``template``: the chat template behind ``render``, if it is one. ``notes``: what a user must
    know of it. ``takes_input``: whether a message may hold an ``input`` beside its content, which gets a
    place of its own; elsewhere the input is a further line of the content. ``thinking``: what was decided of
    thoughts, where the template has some.
    """

    name: str
    policy: Policy
    render: Callable[..., str] | None
    system: str | None = None
    template: ChatTemplate | None = None
    notes: tuple[str, ...] = ()
    takes_input: bool = False
    thinking: Thinking | None = None

    @property
    def renders_bos(self) -> bool:
        """Whether the BOS may stand in the text that it renders, and not only at its beginning."""
        return self.template is not None and self.template.renders_bos

    @property
    def places_images(self) -> bool:
        """Whether it puts the model's own placeholders in the place of marks of images."""
        return self.template is not None and self.template.places_images


def kept_bos(bos: Bos, prompt_format: PromptFormat) -> tuple[str, ...]:
    """Return a note where ``--bos never`` meets a chat template that writes the BOS itself."""
    if bos.mode != "never" or not prompt_format.renders_bos:
        return ()
    return ("--bos never: the chat template writes a BOS of its own, which stays; --format plain has none",)


def resolve_format(
    name: str,
    tokenizer: Any,
    *,
    saved: str | None = None,
    own: str | None = None,
    generated: bool,
    system: str | None = None,
    described: bool = False,
    thinking: str | None = None,
    vision: Vision | None = None,
) -> PromptFormat:
    """Return the format called ``name`` for this tokenizer.

    ``auto`` is the format saved with the adapter (``saved``) if there is one; else the one that the task's
    file names (``own``); else ``chat`` for generated tasks of a model with a chat template; else ``plain``.
    ``described``: whether the task has a description. ``thinking``: auto, on, off or template
    (:func:`~cme_bench.prompts.thinking.decide_thinking`); None leaves thoughts to the template and gives them
    no budget. ``vision``: how the model reads images, for a task that shows some.

    Raises UsageError for unknown names, for ``chat`` without a template, for a template that fails
    whatever the row, for a ``system`` prompt in another format or in a template that has no place for it, and
    for thinking ``on`` where there is none.
    """
    check_choice(name, FormatName, "prompt format")
    asked = name
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if name == "auto":
        name = saved or own or ("chat" if generated and has_template else "plain")
    if system and name != "chat":
        raise UsageError(f"--system: prompt format {name!r} has no place for it; use --format chat")
    if thinking == "on" and generated and name != "chat":
        raise UsageError(f"--thinking on: prompt format {name!r} has no thoughts; use --format chat")
    if name == "plain":
        return PromptFormat("plain", "joint", None)
    if name == "teamlora":
        return PromptFormat("teamlora", "separate", render_teamlora)
    if wrapper := WRAPPERS.get(name):
        return PromptFormat(name, "separate", wrapper, takes_input=True)
    if not has_template:
        raise UsageError("prompt format 'chat': the tokenizer has no chat template; use --format plain")
    placeholder, framed = (None, "") if vision is None else (vision.placeholder, vision.framed)
    template = ChatTemplate(tokenizer, system=bool(system), placeholder=placeholder, framed=framed)
    trained = asked == "auto" and saved == "chat"
    decided = None if thinking is None else _thinking(template, thinking, generated, trained=trained)
    notes = template.notes(described=described)
    if decided is not None:
        template.mode = decided.mode
        notes += (decided.note,) if decided.note else ()
    label = "chat" if not system else f"chat+system {hashlib.sha256(system.encode()).hexdigest()[:8]}"
    return PromptFormat(label, "joint", template, system or None, template, notes, thinking=decided)


def _thinking(template: ChatTemplate, asked: str, generated: bool, *, trained: bool) -> Thinking | None:
    """Return what is decided of a template's thinking; None where it has none."""
    if template.thinker is not None:
        name = template.name
        return decide_thinking(template.thinker, asked, generated=generated, trained=trained, name=name)
    if asked == "on" and generated:
        raise UsageError(
            f"--thinking on: the chat template of {template.name} offers no way to think; leave it out"
        )
    return None


def render_teamlora(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """Return ``instruction[\ninput]</s>``, then the answer: the authors' training prompt (their data loader,
    2024-08). Exemplars come before as further ``instruction</s>answer</s>`` pairs."""
    parts = [message["content"] for message in messages]
    text = TEAMLORA_SEPARATOR.join(parts)
    return text + TEAMLORA_SEPARATOR if add_generation_prompt else text
