"""The answers of a server, read with care: JSON from elsewhere may hold anything."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_ID = "token_id:"
"""vLLM's way of writing a token as its id."""


class GarbledReplyError(Exception):
    """An answer that is no completion; another try may bring one."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One completion. What the server does not tell is None.

    ``model``: the name that answered; ``logprobs``: of every token that it lists, the prompt's first where it
    echoes; ``likeliest``: the largest log-probability at each of those places; ``tokens``: texts, or ids.
    """

    text: str
    model: str | None
    finish: str | None
    stopped_by: Any
    n_prompt: int | None
    n_new: int | None
    prompt_ids: tuple[int, ...] | None
    new_ids: tuple[int, ...] | None
    tokens: tuple[str | int, ...] | None
    logprobs: tuple[float | None, ...] | None
    likeliest: tuple[float | None, ...] | None


def read_reply(text: str) -> Reply:
    """Return the completion in a server's answer. Raises GarbledReplyError if there is none."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise GarbledReplyError(f"no JSON: {text[:80]!r}") from error
    choices = content.get("choices") if isinstance(content, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise GarbledReplyError("no choices in it")
    if len(choices) != 1:
        raise GarbledReplyError(f"{len(choices)} choices where one was asked for")
    choice = choices[0]
    if not isinstance(choice.get("text"), str):
        raise GarbledReplyError("a choice without text")
    usage, scores = _mapping(content.get("usage")), _mapping(choice.get("logprobs"))
    return Reply(
        text=choice["text"],
        model=content.get("model"),
        finish=choice.get("finish_reason"),
        stopped_by=choice.get("stop_reason"),
        n_prompt=_whole(usage.get("prompt_tokens")),
        n_new=_whole(usage.get("completion_tokens")),
        prompt_ids=_ids(choice.get("prompt_token_ids")),
        new_ids=_ids(choice.get("token_ids")),
        tokens=_tokens(scores.get("tokens")),
        logprobs=_numbers(scores.get("token_logprobs")),
        likeliest=_likeliest(scores.get("top_logprobs")),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ids(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, list) or any(_whole(each) is None for each in value):
        return None
    return tuple(value)


def _tokens(value: Any) -> tuple[str | int, ...] | None:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        return None
    return tuple(int(each.removeprefix(_ID)) if _is_id(each) else each for each in value)


def _is_id(token: str) -> bool:
    return token.startswith(_ID) and token.removeprefix(_ID).isdigit()


def _numbers(value: Any) -> tuple[float | None, ...] | None:
    if not isinstance(value, list):
        return None
    return tuple(float(each) if isinstance(each, int | float) else None for each in value)


def _likeliest(value: Any) -> tuple[float | None, ...] | None:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    return tuple(
        max((n for n in each.values() if isinstance(n, int | float)), default=None)
        if isinstance(each, dict)
        else None
        for each in value
    )
