"""How a model thinks before it answers, as its chat template has it: found by rendering, never by its name.

A template has a switch if what it renders depends on it. Without a switch, a template that ends in an open
thought always thinks, and one that only speaks of the marks may.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from cme_bench.scoring.marks import MARKS, Marks, marks_in
from cme_bench.util.errors import UsageError

Message: TypeAlias = Mapping[str, str]
Render: TypeAlias = Callable[[Sequence[Message], Mapping[str, Any]], str]
"""Renders messages with variables of the template, up to the answer. It may raise anything."""
ThinkingMode: TypeAlias = Literal["on", "off", "template"]
Kind: TypeAlias = Literal["switch", "always", "maybe"]

_USER = {"role": "user", "content": "First question"}
_NAMES = re.compile(r"think|thought|reason|\bcot\b", re.IGNORECASE)
_NEGATED = re.compile(r"disable|(?:^|_)no_|without|skip|suppress|hide", re.IGNORECASE)
_BOTH: tuple[ThinkingMode, ...] = ("on", "off")
_MODES: tuple[ThinkingMode, ...] = ("on", "off", "template")
_FLAGS = (
    ("/think", "/no_think"),
    ("/think", "/nothink"),
    ("detailed thinking on", "detailed thinking off"),
)
"""Words in a system turn that some templates take for a switch."""
_WORDS = (
    ("on", "off"),
    ("enabled", "disabled"),
    ("thinking", "chat"),
    ("think", "no_think"),
    ("high", "none"),
)
"""Values of a switch that is no truth value; tried where the template names the second."""


@dataclass(frozen=True, slots=True)
class Switch:
    """How a template is told: by variables, or by words in the system turn. ``name``: for messages."""

    name: str
    on: Mapping[str, Any] = field(default_factory=dict)
    off: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, str] | None = None

    def variables(self, mode: ThinkingMode) -> Mapping[str, Any]:
        """Return the template's variables in a mode."""
        return {"on": self.on, "off": self.off, "template": {}}[mode]

    def told(self, messages: Sequence[Message], mode: ThinkingMode) -> list[Message]:
        """Return the messages, with the switch's word in their system turn."""
        if self.words is None or mode == "template":
            return list(messages)
        word = self.words[0] if mode == "on" else self.words[1]
        if messages and messages[0]["role"] == "system":
            system, *rest = messages
            return [{**system, "content": f"{system['content'].rstrip()}\n{word}"}, *rest]
        return [{"role": "system", "content": word}, *messages]


@dataclass(frozen=True, slots=True)
class Thinker:
    """A template that lets its model think: by a ``switch``; ``always``; or ``maybe``, it only knows marks.

    ``marks``: None if it shows none, so that a thought cannot be told from an answer. ``tails``: what it
    writes behind the last question, by mode; without a switch all are alike.
    """

    kind: Kind
    marks: Marks | None
    tails: Mapping[ThinkingMode, str]
    switch: Switch | None = None

    def ending(self, mode: ThinkingMode) -> str:
        """Return what the template leaves out at a prompt's end, so that the mode holds."""
        if self.marks is None or mode == "template":
            return ""
        marks, tail = self.marks, self.tails[mode]
        within = marks.opened_in(tail)
        if mode == "on":
            return "" if within or self.switch else f"{marks.start}{marks.blank}"
        if within:
            blank = "" if tail.endswith("\n") else marks.blank
            return f"{blank}{marks.end}{marks.after}"
        if self.switch is None:
            return f"{marks.start}{marks.blank}{marks.blank}{marks.end}{marks.after}"
        return marks.after if tail.endswith(marks.end) else ""

    def opens(self, mode: ThinkingMode) -> bool:
        """Return whether prompts end within a thought."""
        return self.marks is not None and self.marks.opened_in(self.tails[mode] + self.ending(mode))


def find_thinker(source: str, render: Render) -> Thinker | None:
    """Return how the template ``source`` lets a model think; None if it does not."""
    plain = _rendered(render, [_USER], {})
    if plain is None:
        return None
    switch = _find_switch(source, render)
    texts = {mode: plain if switch is None else _told(render, switch, mode) for mode in _MODES}
    tails = {mode: text.rpartition(_USER["content"])[2] for mode, text in texts.items()}
    marks = next((m for tail in tails.values() for m in MARKS if m.opened_in(tail)), None)
    if switch is None and marks is None:
        marks = marks_in(source)
        return None if marks is None else Thinker("maybe", marks, tails)
    marks = marks or marks_in(tails["off"]) or marks_in(texts["on"]) or marks_in(source)
    if marks is not None:
        marks = _as_rendered(marks, tails["off"], render, switch)
    return Thinker("always" if switch is None else "switch", marks, tails, switch)


def _told(render: Render, switch: Switch, mode: ThinkingMode) -> str:
    return _rendered(render, switch.told([_USER], mode), switch.variables(mode)) or ""


def _find_switch(source: str, render: Render) -> Switch | None:
    for name, on, off in _candidates(source):
        one, other = (_rendered(render, [_USER], variables) for variables in (on, off))
        if one is not None and other is not None and one != other:
            return Switch(name, on, off)
    for words in _FLAGS:
        if words[1] in source:
            found = Switch(f"{words[0]!r} or {words[1]!r} in the system turn", words=words)
            one, other = (_told(render, found, mode) for mode in _BOTH)
            if one and other and one.replace(words[0], "") != other.replace(words[1], ""):
                return found
    return None


def _candidates(source: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Yield (variable, what turns thinking on, what turns it off), the likeliest first.

    Every word of the template that speaks of thinking may be a variable: one that is none changes nothing.
    """
    names = {name for name in re.findall(r"[A-Za-z_]\w*", source) if _NAMES.search(name)}
    for name in sorted(names, key=lambda name: (not name.startswith("enable"), name)):
        if "budget" in name:
            yield name, {}, {name: 0}
            continue
        if not re.search("effort|mode|level|strength", name):
            negated = bool(_NEGATED.search(name))
            yield name, {name: not negated}, {name: negated}
        for on, off in _WORDS:
            if re.search(rf"['\"]{off}['\"]", source):
                yield name, {name: on}, {name: off}


def _rendered(render: Render, messages: Sequence[Message], variables: Mapping[str, Any]) -> str | None:
    try:
        return render(messages, variables)
    except Exception:  # a template may raise anything
        return None


def _as_rendered(marks: Marks, off: str, render: Render, switch: Switch | None) -> Marks:
    """Return the marks with the blanks that the template itself puts between a thought and an answer."""
    _, ended, after = off.rpartition(marks.end)
    if ended and after and not after.strip():
        return replace(marks, after=after)
    shown = _after_in_history(marks, render, switch)
    return marks if shown is None or marks.after.strip() else replace(marks, after=shown)


def _after_in_history(marks: Marks, render: Render, switch: Switch | None) -> str | None:
    """Return the blanks between an empty thought and an earlier answer; None if it shows no thought."""
    turns = [_USER, {"role": "assistant", "content": "Some answer"}, _USER]
    text = _rendered(render, turns, {} if switch is None else switch.off) or ""
    before = text.partition("Some answer")[0]
    after = before.rpartition(marks.end)[2]
    return after if marks.end in before and not after.strip() else None


@dataclass(frozen=True, slots=True)
class Thinking:
    """The decision for one task. ``budgeted``: whether a thought has a budget of its own; else there is
    none. ``note``: what a user must know of it."""

    thinker: Thinker
    mode: ThinkingMode
    budgeted: bool
    note: str

    @property
    def marks(self) -> Marks | None:
        return self.thinker.marks


def decide_thinking(thinker: Thinker, asked: str, *, generated: bool, trained: bool, name: str) -> Thinking:
    """Decide whether the model called ``name`` thinks. ``asked``: auto, on, off or template.

    ``auto`` is off where the template has a switch, else as the template has it; with an adapter that was
    ``trained`` on the template's prompts it is as the template has it. Choices that are scored have no
    thought before them. Raises UsageError for ``on`` where a thought could not be told from an answer.
    """
    mode = _mode(thinker, asked, trained=trained)
    if not generated:
        scored: ThinkingMode = "off" if mode != "template" or thinker.kind != "maybe" else "template"
        scored = "template" if trained and asked == "auto" else scored
        return Thinking(thinker, scored, budgeted=False, note=_scored_note(thinker, scored, name))
    if mode == "on" and thinker.marks is None:
        raise UsageError(
            f"--thinking on: the chat template of {name} has no known marks around a thought, so that it "
            "could not be told from the answer; use --thinking off"
        )
    as_trained = trained and asked == "auto"  # to answer at once, also where the template opens a thought
    budgeted = mode != "off" and thinker.marks is not None and not as_trained
    return Thinking(thinker, mode, budgeted, _generated_note(thinker, asked, mode, name, budgeted=budgeted))


def _mode(thinker: Thinker, asked: str, *, trained: bool) -> ThinkingMode:
    if asked == "auto":
        return "off" if thinker.kind == "switch" and not trained else "template"
    modes: dict[str, ThinkingMode] = {"on": "on", "off": "off", "template": "template"}
    return modes[asked]


def _scored_note(thinker: Thinker, mode: ThinkingMode, name: str) -> str:
    if mode == "template":
        return ""
    how = f"by {thinker.switch.name}" if thinker.switch else "by an empty thought"
    return f"{name} can think; choices are scored without a thought ({how})"


def _generated_note(thinker: Thinker, asked: str, mode: ThinkingMode, name: str, *, budgeted: bool) -> str:
    told = "by --thinking" if asked != "auto" else "the default; --thinking on, off or template decides"
    how = f", {thinker.switch.name}" if thinker.switch and mode != "template" else ""
    if mode == "off":
        how = how or ", an empty thought stands before the answer"
        return f"{name} can think: thinking is off ({told}{how})"
    if mode == "on":
        return f"{name} can think: thinking is on ({told}{how})"
    if not budgeted:
        return f"{name} can think: prompts are as its adapter was trained, without a thought ({told})"
    kinds = {"always": "always opens a thought", "maybe": "knows thoughts", "switch": "has a switch"}
    return f"{name} can think: prompts are as its template has them, which {kinds[thinker.kind]} ({told})"
