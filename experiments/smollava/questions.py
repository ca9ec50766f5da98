"""Questions about the projector's training pictures, with their answers: cme_mm's own wordings and others.

The pictures are easy-VQA's for training, Noto's emoji and flags, scenes of seeds of their own, and the digits
for training. No picture, question or answer that ``cme_mm`` scores is among them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import captions
from jinja2 import Template

from cme_bench.tasks.made.art import Art, Thing
from cme_bench.tasks.made.easy_vqa import Question
from cme_bench.tasks.made.scenes import Placed, pick, shuffled
from cme_bench.tasks.suite import load_suite

SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
HEADS = {
    "plain": "",
    "chat": f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n",
    "bare chat": "<|im_start|>user\n",
}
"""What stands before an image."""
END = "<|im_end|>"
LETTERS = "ABCD"
_SHORT = ("Answer with one word.", "Answer the question using a single word or phrase.", "Answer briefly.")
_LETTER = (
    "Answer with the letter of the right option.",
    "Answer with the option's letter from the given choices directly.",
)


@dataclass(frozen=True)
class Asked:
    """A question as it follows the image's line, its answers, and which of them is right.

    ``kind``: the dataset of cme_mm whose kind of question it is, or "caption".
    """

    kind: str
    text: str
    choices: Sequence[str]
    right: int

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.choices[self.right]


class Questions:
    """Draws a question about a picture from what is known of it."""

    def __init__(self, art: Art) -> None:
        suite = load_suite()
        self.art = art
        self.templates = {
            (kind, form): Template(suite.task(f"cme_mm_{task}{form}").config["doc_to_text"])
            for kind, task in TASKS.items()
            for form in ("", "_ll")
        }

    def ask(self, rng: random.Random, pool: str, label: Any) -> Asked:
        """Draw a question about a picture of ``pool``; one in six is a request for a caption."""
        if rng.random() < 1 / 6 and pool != "digits":
            return self._caption(rng, pool, label)
        kind, values, choices, right = self.facts(rng, pool, label)
        return self.worded(rng, kind, values, choices, right)

    def worded(
        self, rng: random.Random, kind: str, values: Mapping[str, Any], choices: Sequence[str], right: int
    ) -> Asked:
        """Word a question: three in four times as ``cme_mm`` has it, by generation or by likelihood."""
        form = pick(rng, ("", "_ll"))
        lettered = kind in ("emoji_name", "flags") and form == ""
        if rng.random() < 0.75:
            text = self.templates[kind, form].render(**values)
        else:
            text = _otherwise(rng, kind, values, lettered)
        return Asked(kind, text, LETTERS[: len(choices)] if lettered else choices, right)

    def facts(self, rng: random.Random, pool: str, label: Any) -> Facts:
        """Draw what is asked of a picture: kind, the columns of a row, choices, and the right one."""
        if pool == "shapes":
            question: Question = pick(rng, label)
            return _chosen("easy_vqa", {"question": question.text}, question.choices, question.answer)
        if pool == "digits":
            return _chosen("digits", {}, "0123456789", str(label))
        if pool == "flags":
            return _name(rng, "flags", label, self.art.flags)
        if pool == "things":
            return self._of_thing(rng, label)
        return self._of_scene(rng, label)

    def _of_thing(self, rng: random.Random, thing: Thing) -> Facts:
        if rng.random() < 0.2:
            return self._presence(rng, [thing.name], thing.kind)
        return _name(rng, "emoji_name", thing, self.art.things)

    def _of_scene(self, rng: random.Random, placed: Sequence[Placed]) -> Facts:
        counts = Counter(item.thing.name for item in placed)
        single = [item for item in placed if counts[item.thing.name] == 1]
        repeated = [name for name, n in counts.items() if n > 1]
        chance = rng.random()
        if (repeated and chance < 0.6) or chance < 0.1:
            name = pick(rng, repeated or list(counts))
            return _chosen("emoji_count", {"name": name}, "123456789", str(counts[name]))
        if len(single) > 1 and chance < 0.5:
            found = _where(rng, single)
            if found is not None:
                return found
        return self._presence(rng, list(counts), pick(rng, placed).thing.kind)

    def _presence(self, rng: random.Random, there: Sequence[str], kind: str) -> Facts:
        if rng.random() < 0.5:
            return _chosen("emoji_pope", {"name": pick(rng, there)}, ("yes", "no"), "yes")
        alike = [t.name for t in self.art.things if t.kind == kind and t.name not in there]
        every = [t.name for t in self.art.things if t.name not in there]
        name = pick(rng, alike if alike and rng.random() < 0.5 else every)
        return _chosen("emoji_pope", {"name": name}, ("yes", "no"), "no")

    def _caption(self, rng: random.Random, pool: str, label: Any) -> Asked:
        asked = pick(rng, captions.INSTRUCTIONS)
        if pool == "shapes":
            facts = frozenset[str]().union(*(question.facts for question in label))
            text = captions.of_shape(rng, facts) or "A shape."
        elif pool == "things":
            text = captions.of_thing(rng, label.name)
        else:
            text = captions.of_flag(rng, label.name) if pool == "flags" else captions.of_scene(rng, label)
        return Asked("caption", asked, (text,), 0)


Facts = tuple[str, Mapping[str, Any], Sequence[str], int]

TASKS = {
    "easy_vqa": "easy_vqa",
    "digits": "digits",
    "flags": "flags",
    "emoji_name": "emoji_name",
    "emoji_count": "emoji_count",
    "emoji_where": "emoji_where",
    "emoji_pope": "emoji_pope_random",
}
"""Kind of question -> the task whose wording it takes."""


def _chosen(kind: str, values: Mapping[str, Any], choices: Sequence[str], answer: str) -> Facts:
    return kind, {**values, "choices": choices}, choices, choices.index(answer)


def _name(rng: random.Random, kind: str, thing: Thing, things: Sequence[Thing]) -> Facts:
    others = [other for other in things if other.name != thing.name]
    alike = [other for other in others if other.kind == thing.kind]
    pool = alike if len(alike) >= 3 and rng.random() < 0.5 else others
    few = [pick(rng, pool).name for _ in range(12)]
    names = [thing.name, *dict.fromkeys(few)][:4]
    return _chosen(kind, {}, shuffled(rng, names), thing.name)


def _where(rng: random.Random, placed: Sequence[Placed]) -> Facts | None:
    one, other = shuffled(rng, placed)[:2]
    sideways = one.column != other.column and (one.row == other.row or rng.random() < 0.5)
    if sideways:
        choices, first = ("left", "right"), one.column < other.column
    else:
        choices, first = ("above", "below"), one.row < other.row
    values = {"one": one.thing.name, "other": other.thing.name}
    return _chosen("emoji_where", values, choices, choices[0 if first else 1])


def _otherwise(rng: random.Random, kind: str, values: Mapping[str, Any], lettered: bool) -> str:
    """Word a question as no task of cme_mm does."""
    if lettered:
        options = "".join(
            f"{letter}. {name}\n" for letter, name in zip(LETTERS, values["choices"], strict=False)
        )
        asked = "Which country's flag is shown?" if kind == "flags" else "What is shown in the image?"
        return f"{asked}\n{options}{pick(rng, _LETTER)}"
    return f"{pick(rng, _WORDINGS[kind])(values)}\n{pick(rng, _SHORT)}"


_WORDINGS: Mapping[str, Sequence[Callable[[Mapping[str, Any]], str]]] = {
    "easy_vqa": (lambda v: v["question"].capitalize(),),
    "digits": (lambda v: "Which digit is this?", lambda v: "What number is written here?"),
    "flags": (lambda v: "Which country has this flag?", lambda v: "What country is this the flag of?"),
    "emoji_name": (lambda v: "What is this?", lambda v: "Which thing is in the image?"),
    "emoji_count": (
        lambda v: f"How many of {captions.with_article(v['name'])} are there?",
        lambda v: f"What is the number of pictures of {captions.with_article(v['name'])}?",
    ),
    "emoji_where": (
        lambda v: (
            f"Where is the {v['one']}, seen from the {v['other']}: {v['choices'][0]} or {v['choices'][1]}?"
        ),
    ),
    "emoji_pope": (
        lambda v: f"Is {captions.with_article(v['name'])} in the picture? yes or no?",
        lambda v: f"Can you see {captions.with_article(v['name'])}?",
        lambda v: f"Does the image show {captions.with_article(v['name'])}?",
    ),
}
