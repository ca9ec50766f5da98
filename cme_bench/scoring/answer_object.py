"""Answers given as a JSON object: the value of its answer, without what the others say."""

from __future__ import annotations

import json
import re
from typing import Any

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)
_NAMES = frozenset(
    "answer answers finalanswer correctanswer selectedanswer correctoption selectedoption choice option "
    "label "
    "emotion sentiment classification prediction category class relation relationship verdict".split()
)


def answer_alone(response: str) -> str:
    """Return an object of the answer alone where ``response`` is a JSON object that names one; else
    ``response``.

    A list of one answer is that answer.
    """
    m = _FENCED.fullmatch(response)
    text = (m[1] if m else response).strip()
    if not text.startswith(("{", "[")):
        return response
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or brackets without end
        return response
    if isinstance(found, list):
        alone = _one(found)
        return alone if isinstance(alone, str) else response
    named = [value for name, value in found.items() if re.sub(r"[^a-z]", "", name.lower()) in _NAMES]
    if len(named) != 1:
        return response
    value = _one(named[0])
    if isinstance(value, bool):
        value = str(value).lower()
    if value is None or not isinstance(value, str | int | float):
        return response
    return json.dumps({"answer": value}, ensure_ascii=False)


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
