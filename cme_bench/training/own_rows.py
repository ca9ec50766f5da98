"""Rows of one's own: read from files or the hub, told apart by their columns, every field checked.

Three forms: ``instruction`` (``instruction``, ``output``, perhaps ``input``), ``completion`` (``prompt``,
``completion``) and ``messages`` (``messages``, or ShareGPT's ``conversations``). TRL's conversational
``prompt`` and ``completion``, which are lists of messages, are conversations of which only the second part is
learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from cme_bench.authoring.table_files import Table
from cme_bench.tasks.values import as_text
from cme_bench.util.errors import UsageError, did_you_mean

Form = Literal["instruction", "completion", "messages"]
_NEEDED: dict[Form, tuple[str, ...]] = {
    "instruction": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "messages": ("messages",),
}
_LISTS = ("messages", "conversations")
"""Columns of whole conversations."""
_ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT = {"system": "system", "human": "user", "gpt": "assistant", **_ROLES}
_MEANING = (
    "tool_calls tool_call_id function_call reasoning_content reasoning thinking images audio prefix".split()
)
"""Fields of a message that a template may show, and which are not understood here."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """An instruction, the input that it is about (perhaps none), and the answer that is learnt."""

    instruction: str
    input: str
    output: str

    @property
    def asked(self) -> str:
        """The question, as one text."""
        return f"{self.instruction}\n{self.input}" if self.input else self.instruction

    @property
    def target(self) -> str:
        return self.output


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt and how it goes on, both as they stand."""

    prompt: str
    completion: str

    @property
    def asked(self) -> str:
        return self.prompt

    @property
    def target(self) -> str:
        return self.completion


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; ``learnt``: whether it is an answer to be learnt."""

    role: str
    content: str
    learnt: bool

    @property
    def message(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to the last one that is learnt; ``place``: of its row, for messages."""

    turns: tuple[Turn, ...]
    place: str = ""

    @property
    def asked(self) -> str:
        return "\n".join(turn.content for turn in self.turns if not turn.learnt)

    @property
    def target(self) -> str:
        """The last answer; empty if any answer is, since then it cannot be learnt."""
        answers = [turn.content for turn in self.turns if turn.learnt]
        return answers[-1] if answers and all(answer.strip() for answer in answers) else ""


TextRow: TypeAlias = Instruction | Completion | Conversation


FIELDS = frozenset({name for needed in _NEEDED.values() for name in needed} | {"input", *_LISTS})
"""The columns that a form may read."""


def form_of(columns: Sequence[str], asked: str, origin: str) -> Form:
    """Return the form of rows with these columns. ``asked``: the value of ``--row-form``.

    UsageError if no form fits, if several do, or if the form that was asked for does not.
    """
    fits = [form for form in _NEEDED if _fits(form, columns)]
    if asked != "auto":
        chosen = next(form for form in _NEEDED if form == asked)
        if chosen not in fits:
            raise UsageError(f"{origin}: no {_missing(chosen, columns)} (--row-form {asked})")
        return chosen
    if len(fits) == 1:
        return fits[0]
    if fits:
        ways = ", ".join(f"{form} ({', '.join(_NEEDED[form])})" for form in fits)
        raise UsageError(f"{origin}: its columns fit several forms: {ways}; say which with --row-form")
    wanted = "; ".join(", ".join(needed) for needed in _NEEDED.values())
    known = sorted({name for needed in _NEEDED.values() for name in needed} | {"input"})
    others = [name for name in columns if name not in known]
    near = next((hint for name in others if (hint := did_you_mean(name, known))), "")
    raise UsageError(
        f"{origin}: columns {', '.join(columns)} are no training rows{near} (they have: {wanted}); rename "
        "the columns"
    )


def _fits(form: Form, columns: Sequence[str]) -> bool:
    if form == "messages":
        return any(name in columns for name in _LISTS)
    return all(name in columns for name in _NEEDED[form])


def _missing(form: Form, columns: Sequence[str]) -> str:
    return "column " + " and no column ".join(name for name in _NEEDED[form] if name not in columns)


def read_rows(table: Table, form: Form) -> list[TextRow]:
    """Return every row of a table in its form.

    UsageError, with file and line, for the first field that is none of what its form has.
    """
    columns = table.columns
    if (
        form == "completion"
        and "label" in columns
        and any(isinstance(v, bool) for v in table.values("label"))
    ):
        raise UsageError(
            f"{table.origin}: prompt, completion and a true or false label are preferences, of which only "
            "the rows that are true could be learnt; take the others out, and the column"
        )
    lists = [name for name in _LISTS if name in columns]
    if form == "messages" and len(lists) > 1:
        raise UsageError(f"{table.origin}: has the columns messages and conversations; take one of them out")
    read = {"instruction": _instruction, "completion": _completion, "messages": _messages}[form]
    return [read(_Fields(row, table.place, number)) for number, row in enumerate(table.rows)]


def used_columns(form: Form, columns: Sequence[str]) -> list[str]:
    """Return the columns that rows of a form are read from."""
    used = {*_NEEDED[form], *({"input"} if form == "instruction" else ())}
    return [name for name in columns if name in used | (set(_LISTS) if form == "messages" else set())]


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one row, and what names it in messages."""

    row: Mapping[str, Any]
    where: Callable[[int], str]
    number: int

    @property
    def place(self) -> str:
        return self.where(self.number)

    def text(self, name: str, *, optional: bool = False) -> str:
        """Return a field that must be a text; None is an empty one where it is ``optional``."""
        value = self.row.get(name)
        if value is None and optional:
            return ""
        return _text(value, name, self)

    def fail(self, message: str) -> UsageError:
        return UsageError(f"{self.place}: {message}")


def _text(value: Any, name: str, fields: _Fields) -> str:
    if isinstance(value, str):
        return value
    raise fields.fail(f"{name} is {_kind(value)}, not a text")


def _kind(value: Any) -> str:
    match value:
        case None:
            return "missing (null)"
        case bool():
            return f"{as_text(value)} without quotation marks"
        case int() | float():
            return f"the number {as_text(value)}"
        case str():
            return "a text"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _instruction(fields: _Fields) -> TextRow:
    return Instruction(fields.text("instruction"), fields.text("input", optional=True), fields.text("output"))


def _completion(fields: _Fields) -> TextRow:
    prompt, completion = fields.row.get("prompt"), fields.row.get("completion")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return Completion(fields.text("prompt"), fields.text("completion"))
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        raise fields.fail(
            f"prompt is {_kind(prompt)} and completion {_kind(completion)}; both are texts, or both lists of "
            "messages"
        )
    before = [replace(turn, learnt=False) for turn in _turns(prompt, "prompt", _ROLES, fields)]
    return _conversation([*before, *_turns(completion, "completion", _ROLES, fields)], fields)


def _messages(fields: _Fields) -> TextRow:
    name = next(name for name in _LISTS if name in fields.row)
    roles = _ROLES if name == "messages" else _SHAREGPT
    value = fields.row[name]
    if not isinstance(value, list):
        raise fields.fail(f"{name} is {_kind(value)}, not a list of messages")
    return _conversation(_turns(value, name, roles, fields), fields)


def _conversation(turns: Sequence[Turn], fields: _Fields) -> Conversation:
    """Return the turns up to the last answer; what comes behind it is asked of nobody."""
    last = max((place for place, turn in enumerate(turns) if turn.learnt), default=-1)
    return Conversation(tuple(turns[: last + 1]), fields.place)


def _turns(value: Sequence[Any], name: str, roles: Mapping[str, str], fields: _Fields) -> list[Turn]:
    return [_turn(each, f"{name}[{place}]", roles, fields) for place, each in enumerate(value)]


def _turn(value: Any, name: str, roles: Mapping[str, str], fields: _Fields) -> Turn:
    if not isinstance(value, dict):
        raise fields.fail(f"{name} is {_kind(value)}, not a message with role and content")
    if odd := next((key for key in _MEANING if value.get(key)), None):
        raise fields.fail(f"{name} has {odd!r}, which is not understood; write it into the content")
    role_key, content_key = ("from", "value") if value.get("from") is not None else ("role", "content")
    role = value.get(role_key)
    if not isinstance(role, str) or role not in roles:
        raise fields.fail(f"{name}: {role_key} {role!r} is none of {', '.join(roles)}")
    content = _text(value.get(content_key), f"{name}.{content_key}", fields)
    weight = value.get("weight")
    if weight is not None and weight not in (0, 1):
        raise fields.fail(f"{name}.weight is {weight!r}, not 0 or 1")
    return Turn(roles[role], content, roles[role] == "assistant" and weight != 0)
