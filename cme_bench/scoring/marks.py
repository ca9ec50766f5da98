"""The marks between which models think, and the text of a response outside them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marks:
    """The texts that begin and end a thought.

    ``after``: the text that goes between ``end`` and the answer; ``blank``: what stands within an empty
    thought, and before the mark where a thought is ended for the model.
    """

    start: str
    end: str
    after: str = "\n\n"
    blank: str = "\n"

    def opened_in(self, text: str) -> bool:
        """Return whether ``text`` ends within a thought."""
        return text.rfind(self.start) > text.rfind(self.end)


_TAGS = "think thinking thought thoughts reasoning reason reflection scratchpad analysis seed:think".split()
_BARS = "think thinking thought reasoning".split()
MARKS: tuple[Marks, ...] = (
    *(Marks(f"<{name}>", f"</{name}>") for name in _TAGS),
    *(Marks(f"<|{name}|>", f"<|/{name}|>") for name in _BARS),
    *(Marks(f"<|{name}|>", f"</|{name}|>") for name in _BARS),
    Marks("<|START_THINKING|>", "<|END_THINKING|>", after="<|START_RESPONSE|>", blank=""),
    Marks("<|begin_of_thought|>", "<|end_of_thought|>"),
    Marks("<|thinking_start|>", "<|thinking_end|>"),
    Marks("<|channel>thought", "<channel|>", after="", blank="\n"),
    Marks("[THINK]", "[/THINK]", after="", blank=""),
    Marks("◁think▷", "◁/think▷", after="", blank=""),
    Marks(
        "<|channel|>analysis<|message|>",
        "<|end|>",
        after="<|start|>assistant<|channel|>final<|message|>",
        blank="",
    ),
    Marks("Here is my thought process:", "Here is my response:", after="\n"),
)
"""Of Qwen, DeepSeek, GLM, SmolLM, Granite, Seed, Cohere, Mistral, Kimi, Gemma, gpt-oss and their like."""


def marks_in(text: str) -> Marks | None:
    """Return the first marks of which both stand in ``text``, else those whose end does, else None."""
    both = (m for m in MARKS if m.start in text and m.end in text)
    ends = (m for m in MARKS if m.end in text and m.end not in ("<|end|>", "</analysis>", "</reason>"))
    return next(both, None) or next(ends, None)


def split_thought(text: str, marks: Marks) -> tuple[str, str | None, bool]:
    """Return ``(answer, thought, closed)``: what stands outside the marks and what within.

    A mark that ends a thought which never began ends one that began before the text. The thought is None if
    there is no mark; where the last one never ends, nothing after its beginning is answer.
    """
    pattern = re.compile(f"({re.escape(marks.start)})|{re.escape(marks.end)}(?:{re.escape(marks.after)})?")
    outside: list[str] = []
    inside: list[str] = []
    start, within = 0, False
    for mark in pattern.finditer(text):
        piece = text[start : mark.start()]
        if mark[1]:
            (inside if within else outside).append(piece)
            within = True
        else:
            inside += outside if not within else []
            if not within:
                outside = []
            inside.append(piece)
            within = False
        start = mark.end()
    if start == 0 and not within:
        return text, None, True
    (inside if within else outside).append(text[start:])
    answer = "".join(outside)
    return (answer.lstrip() if not within else ""), "".join(inside).strip(), not within
