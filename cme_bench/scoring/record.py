"""The stored record of one item: what was asked, what was answered, and what that scored.

Engines' responses become a :class:`StoredResponse` once, and everything that scores or reports reads that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from cme_bench.engines.base import GenerateResponse, LoglikelihoodResponse, ThoughtEnd
from cme_bench.scoring.marks import Marks, split_thought

MOST_ROWS = 10_000_000
"""No split is larger; a damaged number must not become work without end."""
Count = Annotated[int, Meta(ge=0, le=MOST_ROWS)]


class StoredResponse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A generated text, or the log-likelihoods of the choices; the fields of the other kind are None.

    ``thought``: what was cut out of the text, with ``n_thought`` tokens where the engine counted them, and
    how it ended. ``margin``: log-likelihood of the best choice less the second best, None for a single
    choice.
    """

    text: str | None = None
    n_tokens: int | None = None
    finish: str | None = None
    thought: str | None = None
    n_thought: int | None = None
    thought_end: ThoughtEnd | None = None
    logprobs: list[float] | None = None
    greedy: list[bool] | None = None
    margin: float | UnsetType | None = UNSET

    @property
    def values(self) -> list[Any]:
        """The values that lm-eval's filters take: the text, or (log-likelihood, greedy) of each choice."""
        if self.text is not None:
            return [self.text]
        return list(zip(self.logprobs or (), self.greedy or (), strict=True))


class StoredAnswer(Struct, frozen=True):
    """The answer that was read out of a text, and the rule that read it: "none" if nothing was found."""

    text: str
    rule: str

    @property
    def empty(self) -> bool:
        """Whether no rule found an answer."""
        return self.rule == "none"


class Scored(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The metrics of an item, and its answer where the task reads generated text with our rules.

    ``filtered``: by pipeline of lm-eval's filters, what it made of a sampled answer.
    """

    scores: dict[str, Any]
    answer: StoredAnswer | None = None
    filtered: dict[str, str] | None = None


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of ``samples/TASK.jsonl``.

    ``id``: place of the item in its split; ``key``: what the response belongs to; ``task``: hash of the task
    that it was scored under; ``truncated``: tokens that its prompt lost; ``doc``: its row. ``repeat``: which
    of several answers it is. ``combined``: the scores that a task's own filters make of all answers; the
    last one to come has them. ``repeats``: how many answers a record stands for that means were taken of.
    ``images``: the digests of those of its prompt, in order.
    """

    id: Count
    key: str
    task: str
    scores: dict[str, Any]
    answer: StoredAnswer | None = None
    response: StoredResponse
    target: str
    truncated: int
    prompt: str
    choices: list[str]
    doc: dict[str, Any]
    images: list[str] | None = None
    repeat: Count = 0
    filtered: dict[str, str] | None = None
    combined: dict[str, Any] | None = None
    repeats: Count = 1

    def __post_init__(self) -> None:
        """Raise ValueError if the response does not fit the choices."""
        response = self.response
        if response.text is None:
            scored = len(response.logprobs or ())
            if scored == 0 or scored not in (1, len(self.choices)):
                raise ValueError("'response' has neither a text nor a log-likelihood for every choice")
            if len(response.greedy or ()) != scored:
                raise ValueError("'response' does not say of every choice whether it is 'greedy'")


def scored_item(
    number: int,
    scored: Scored,
    response: StoredResponse,
    *,
    truncated: int = 0,
    choices: Sequence[str] = (),
    doc: Mapping[str, Any] | None = None,
) -> Record:
    """Return the record of an item that is aggregated and never stored: it has no key and no prompt."""
    return Record(
        id=number,
        key="",
        task="",
        scores=scored.scores,
        answer=scored.answer,
        response=response,
        target="",
        truncated=truncated,
        prompt="",
        choices=list(choices),
        doc=dict(doc or {}),
    )


def stored_response(
    response: LoglikelihoodResponse | GenerateResponse, marks: Marks | None = None
) -> StoredResponse:
    """Return what is stored of an engine's response. ``marks``: those of the model's thoughts, if it has any:
    what stands between them is no answer, however it came there."""
    if isinstance(response, GenerateResponse):
        return _stored_text(response, marks)
    ordered = sorted(response.logprobs, reverse=True)
    return StoredResponse(
        logprobs=list(response.logprobs),
        greedy=list(response.greedy),
        margin=ordered[0] - ordered[1] if len(ordered) > 1 else None,
    )


def _stored_text(response: GenerateResponse, marks: Marks | None) -> StoredResponse:
    text, more, closed = response.text, None, True
    if marks is not None:
        text, more, closed = split_thought(response.text, marks)
    parts = [part for part in (response.thought, more) if part is not None]
    end = response.thought_end
    if more is not None and (end is None or not closed):
        end = "closed" if closed else "unclosed"
    return StoredResponse(
        text=text,
        n_tokens=response.n_tokens,
        finish=response.finish,
        thought="\n".join(parts) if parts else None,
        n_thought=response.n_thought if response.thought is not None else None,
        thought_end=end,
    )
