"""Reasoning that a model marks as such: it is not its answer."""

from __future__ import annotations

import re

_NAMES = r"think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis|seed:think"
_OPEN = rf"<(?:{_NAMES})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel>thought\b"
_CLOSE = rf"</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<channel\|>"
_MARK = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
# the same channels where the tokenizer left out their special tokens
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z\"'])")
_BARE_FINAL = re.compile(r"assistant\s*final(?=\S)")
_SPECIAL = re.compile(
    r"<\|(?:im_end|im_start|eot_id|end|start|return|endoftext|begin_of_solution|end_of_solution|end_of_text)\|>"
    r"(?:assistant\b)?"
)


def without_thinking(response: str) -> str:
    """Return what ``response`` says outside its blocks of reasoning; empty if such a block never ends.

    A block that is closed but not opened began in the prompt, as chat templates do it.
    """
    if "<" not in response and "[" not in response and "◁" not in response and "analysis" not in response:
        return response
    if _CHANNEL.search(response):
        return _SPECIAL.sub("", _final_channel(response))
    if _BARE_CHANNEL.match(response):
        return response[mark.end() :] if (mark := _last(_BARE_FINAL, response)) else ""
    return _SPECIAL.sub("", _outside(response))


def _final_channel(response: str) -> str:
    """Return the text of the last channel if it is the final one (OpenAI's harmony format)."""
    channel = _last(_CHANNEL, response)
    return response[channel.end() :] if channel and channel.group(1) == "final" else ""


def _outside(response: str) -> str:
    kept: list[str] = []
    inside, start = False, 0
    for mark in _MARK.finditer(response):
        if mark["close"]:
            if not inside:
                kept.clear()
            inside, start = False, mark.end()
        elif not inside:
            kept.append(response[start : mark.start()])
            inside = True
    return "" if inside else "".join([*kept, response[start:]])


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(text))), None)
