"""A model's chat template: tried out before any row is rendered, so that its faults are blamed on it.

The template is that of the tokenizer. Four properties of it decide what a model is shown, and none of them
may change a score without a word: whether it takes a system turn, whether it shows every turn, whether it
opens the answer's turn, and whether it asks for today's date.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

from cme_bench.images.image import MARK
from cme_bench.prompts.thinking import Thinker, ThinkingMode, find_thinker
from cme_bench.util.errors import UsageError, first_line

Message: TypeAlias = Mapping[str, str]
PINNED_DATE = datetime(2024, 7, 26)
"""Today's date for every template: the default of Llama 3.1's own, "26 Jul 2024"."""
_ASKED, _ANSWERED, _SYSTEM = "First question", "Some answer", "General instruction"
_USER = {"role": "user", "content": _ASKED}
_TURNS = (_USER, {"role": "assistant", "content": _ANSWERED}, {"role": "user", "content": "Second question"})
_INSTRUCTED = ({"role": "system", "content": _SYSTEM}, _USER)
_CHATS = ((_USER,), _INSTRUCTED, _TURNS)


class ChatTemplateError(UsageError):
    """A model's chat template cannot show what it is asked to show, whatever the row."""


class ChatTemplate:
    """Renders messages with the chat template of ``tokenizer``.

    ``system``: whether the user gave a system prompt. A template that refuses a system turn, or leaves it
    out, gets what stands there (a task's description) at the head of the first user turn. Raises
    ChatTemplateError for a template that fails on one question or leaves it out, for several templates of
    which none is the default, and for ``system`` where the template has no place for it. ``mode``: whether
    the model thinks; as the template has it, unless that is set. ``placeholder``: the text that stands for an
    image in the model's prompts, where marks of images in a message are images; where the template has no
    place for one, ``framed`` takes the mark's.
    """

    def __init__(
        self, tokenizer: Any, *, system: bool = False, placeholder: str | None = None, framed: str = ""
    ) -> None:
        self.tokenizer = tokenizer
        self._placeholder, self._framed = placeholder, framed or placeholder or ""
        self._parts = False
        self.mode: ThinkingMode = "template"
        self.name = str(getattr(tokenizer, "template_place", None) or tokenizer.name_or_path or "the model")
        self.source = self._source()
        self._try_question()
        self.moves_system = self._try_system(given=system)

    def _source(self) -> str:
        templates = self.tokenizer.chat_template
        if isinstance(templates, Mapping) and "default" not in templates:
            names = ", ".join(sorted(templates))
            raise ChatTemplateError(
                f"{self.name} has several chat templates ({names}) and no default; use --format plain"
            )
        return str(templates["default"] if isinstance(templates, Mapping) else templates)

    def _try_question(self) -> None:
        try:
            text = self._asked_in_text_or_parts()
        except Exception as error:  # a template may raise anything
            raise ChatTemplateError(f"{self.name}: its chat template fails ({_reason(error)})") from error
        if _ASKED not in text:
            raise ChatTemplateError(
                f"{self.name}: its chat template leaves out what the user says; use --format plain"
            )

    def _asked_in_text_or_parts(self) -> str:
        """Return one question as the template shows it; some show a message only as a list of its parts."""
        try:
            text, fault = self._render([_USER]), None
        except Exception as error:  # a template may raise anything
            text, fault = "", error
        if _ASKED in text:
            return text
        self._parts = True
        parted = self._render_or_nothing([_USER])
        if _ASKED in parted:
            return parted
        self._parts = False
        if fault is not None:
            raise fault
        return text

    @property
    def places_images(self) -> bool:
        """Whether it puts the model's placeholders in the place of marks, which is so for a task with
        images."""
        return self._placeholder is not None

    @functools.cached_property
    def _shows_images(self) -> bool:
        """Whether it puts the model's placeholder where a part of a message is an image."""
        part = [{"type": "image"}, {"type": "text", "text": _ASKED}]
        try:
            text = self._applied([{"role": "user", "content": part}], add_generation_prompt=True)
        except Exception:  # a template may raise anything
            return False
        return text.count(str(self._placeholder)) == 1 and _ASKED in text

    def _shown(self, message: Message) -> dict[str, Any]:
        """Return a message as the template takes it: its text, or a list of texts and images.

        The line break after a mark only parts it from the text: templates write their own, or none. So do
        the blanks between two marks.
        """
        text = message["content"]
        if self._placeholder is None or MARK not in text:
            return {**message, "content": [_text_part(text)] if self._parts else text}
        if not self._shows_images:
            text = text.replace(MARK, self._framed)
            return {**message, "content": [_text_part(text)] if self._parts else text}
        parts: list[dict[str, str]] = []
        for number, piece in enumerate(text.split(MARK)):
            parts += [{"type": "image"}] if number else []
            part = piece.removeprefix("\n") if number else piece
            parts += [_text_part(part)] if part.strip() else []
        return {**message, "content": parts}

    def _try_system(self, *, given: bool) -> bool:
        """Return whether a system turn must move into the first user turn."""
        try:
            text = self._render(_INSTRUCTED)
            fault = None if _SYSTEM in text and _ASKED in text else "leaves out a system prompt"
        except Exception as error:  # a template may raise anything
            fault = f"refuses a system prompt ({_reason(error)})"
        if fault and given:
            raise ChatTemplateError(f"{self.name}: its chat template {fault}; leave --system out")
        return fault is not None

    @functools.cached_property
    def _turns_fault(self) -> str | None:
        """Why exemplars cannot be turns, if they cannot."""
        try:
            text = self._render(_TURNS)
        except Exception as error:  # a template may raise anything
            return f"refuses a chat of several turns ({_reason(error)})"
        return None if _ASKED in text and _ANSWERED in text else "leaves out earlier turns"

    def __call__(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Return the text before the answer; a last assistant turn is left open if no new one is asked for.

        Raises ChatTemplateError for what the template can never show, ValueError for what it refuses in
        these messages only.
        """
        turns = _without_system(messages) if self.moves_system else list(messages)
        if any(a["role"] == "assistant" for a in turns[:-1]) and self._turns_fault:
            raise ChatTemplateError(
                f"{self.name}: its chat template {self._turns_fault}; use --shots 0 or --format plain"
            )
        try:
            text = self._render(turns, add_generation_prompt)
        except Exception as error:  # a template may raise anything
            if self._always_fails(turns, add_generation_prompt):
                raise ChatTemplateError(f"{self.name}: its chat template fails ({_reason(error)})") from error
            raise ValueError(f"the chat template of {self.name} refuses it ({_reason(error)})") from error
        return text + self._ending if add_generation_prompt else text

    @property
    def _ending(self) -> str:
        """The text that a prompt needs at its end, so that thinking is on or off."""
        return "" if self.mode == "template" or self.thinker is None else self.thinker.ending(self.mode)

    @functools.cached_property
    def thinker(self) -> Thinker | None:
        """How it lets the model think; None if it does not."""
        return find_thinker(self.source, self._render_with)

    def _render_with(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        turns = _without_system(messages) if self.moves_system else messages
        shown = [self._shown(turn) for turn in turns]
        return self._applied(shown, add_generation_prompt=True, **self._date, **variables)

    def conversation(self, messages: Sequence[Message]) -> str:
        """Return a whole conversation, with what the template puts after its last turn.

        Raises as a call does.
        """
        turns = _without_system(messages) if self.moves_system else list(messages)
        try:
            return self._apply(turns, add_generation_prompt=False)
        except Exception as error:  # a template may raise anything
            raise ValueError(f"the chat template of {self.name} refuses it ({_reason(error)})") from error

    def before_answer(self, messages: Sequence[Message]) -> str:
        """Return the prompt that asks for the answer behind ``messages``. ValueError if the template refuses
        them."""
        turns = _without_system(messages) if self.moves_system else list(messages)
        try:
            return self._apply(turns, add_generation_prompt=True)
        except Exception as error:  # a template may raise anything
            raise ValueError(f"the chat template of {self.name} refuses it ({_reason(error)})") from error

    def _always_fails(self, turns: Sequence[Message], add_generation_prompt: bool) -> bool:
        """Return whether turns of these roles fail with plain words too."""
        try:
            self._render([{**turn, "content": "word"} for turn in turns], add_generation_prompt)
        except Exception:  # a template may raise anything
            return True
        return False

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        goes_on = not add_generation_prompt and messages[-1]["role"] == "assistant"
        return self._apply(
            messages, add_generation_prompt=add_generation_prompt, continue_final_message=goes_on
        )

    def _apply(self, messages: Sequence[Message], **switches: bool) -> str:
        told: Mapping[str, Any] = {}
        if self.mode != "template" and self.thinker is not None and self.thinker.switch is not None:
            messages = self.thinker.switch.told(messages, self.mode)
            told = self.thinker.switch.variables(self.mode)
        shown = [self._shown(message) for message in messages]
        return self._applied(shown, **switches, **self._date, **told)

    def _applied(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, **variables))

    @functools.cached_property
    def _date(self) -> dict[str, Any]:
        """The date that the template must be told; a default of its own stays."""
        if "strftime_now" in self.source:
            return {"strftime_now": PINNED_DATE.strftime}
        if "date_string" in self.source and not re.search(r"\bset\s+date_string\b", self.source):
            return {"date_string": f"{PINNED_DATE:%d %b %Y}"}
        return {}

    @functools.cached_property
    def renders_bos(self) -> bool:
        """Whether it puts the tokenizer's BOS somewhere into a chat."""
        token = self.tokenizer.bos_token
        return token is not None and any(token in self._render_or_nothing(chat) for chat in _CHATS)

    def _render_or_nothing(self, messages: Sequence[Message]) -> str:
        try:
            return self._render(messages)
        except Exception:  # a template may raise anything
            return ""

    def end_of_answer(self) -> str:
        """Return what it puts after an assistant's words, without blanks around."""
        try:
            text = self._apply(_TURNS[:2], add_generation_prompt=False)
        except Exception as error:  # a template may raise anything
            raise ChatTemplateError(f"{self.name}: its chat template fails ({_reason(error)})") from error
        return text.rpartition(_ANSWERED)[2].strip()

    def notes(self, *, described: bool) -> tuple[str, ...]:
        """Return what a user must know of it; ``described``: whether the task has a description."""
        found = []
        if described and self.moves_system:
            found.append(
                f"the chat template of {self.name} has no place for a system prompt: the task's description "
                "stands at the head of the first user turn"
            )
        if self._date:
            found.append(
                f"the chat template of {self.name} asks for today's date: it is {PINNED_DATE:%d %b %Y} in "
                "every run"
            )
        if opening := self._missing_opening():
            found.append(
                f"the chat template of {self.name} does not open the answer's turn: prompts end before "
                f"{opening!r}, which the model must write itself"
            )
        return tuple(found)

    def _missing_opening(self) -> str:
        """Return the text between the last question and its answer that a prompt does not hold."""
        prompt = self._render([_USER])
        if prompt != self._apply([_USER], add_generation_prompt=False):
            return ""
        try:
            whole = self._render(_TURNS[:2], False)
        except Exception:  # one question renders, and nothing else is asked
            return ""
        before = whole.rpartition(_ANSWERED)[0]
        return before.removeprefix(prompt).strip() if before.startswith(prompt) else ""


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _without_system(messages: Sequence[Message]) -> list[Message]:
    """Return the messages, with a system turn at the head of the first user turn instead."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return list(messages)
    system, first, *rest = messages
    return [{**first, "content": f"{system['content'].rstrip()}\n\n{first['content']}"}, *rest]


def _reason(error: Exception) -> str:
    line = getattr(error, "lineno", None)
    return first_line(error) + (f", line {line}" if line else "")
