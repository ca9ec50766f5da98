"""Reasoning that a model marks as such: it is not its answer."""

from __future__ import annotations

import re

_NAMES = (
    r"(?:\w+[_-])?(?:think|thinking|thoughts?|reason|reasoning|reflection|scratchpad|analysis|monologue|"
    r"deliberation|chain[_-]of[_-]thoughts?)|cot|internal|seed:think"
)
"""Names of tags around reasoning; a word may stand before them (``inner_monologue``)."""
_BAR_NAMES = "think|thinking|thought|reasoning"
_OPEN = (
    rf"<\s*(?:{_NAMES})(?:\s[^<>]*)?>|<\|(?:{_BAR_NAMES})\|>|<\|(?:begin_of_thought|thinking_start|start_thinking)\|>|"
    r"\[THINK(?:ING)?\]|◁think▷|<\|channel>thought\b|<unused94>thought\b"
)
_CLOSE = (
    rf"</\s*(?:{_NAMES})\s*>|<\|/(?:{_BAR_NAMES})\|>|</\|(?:{_BAR_NAMES})\|>|"
    r"<\|(?:end_of_thought|thinking_end|end_thinking)\|>|\[/THINK(?:ING)?\]|◁/think▷|<channel\|>|<unused95>"
)
_MARK = re.compile(rf"(?P<open>{_OPEN})|(?P<close>{_CLOSE})", re.IGNORECASE)
_ESCAPED = re.compile(rf"&lt;(/?\s*(?:{_NAMES})\s*)&gt;", re.IGNORECASE)
_SAID = (
    (
        re.compile(r"\s*Here is my thought process:", re.IGNORECASE),
        re.compile(r"Here is my response:", re.IGNORECASE),
    ),
    (
        re.compile(r"\s*Thinking\.\.\.\s*\n(?=[\s\S]*\.\.\.done thinking\.)"),
        re.compile(r"\.\.\.done thinking\."),
    ),
)
"""Sentences that begin and end reasoning: Granite's, and those that ollama prints."""
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
# the same channels where the tokenizer left out their special tokens
_BARE_CHANNEL = re.compile(r"\s*(?:assistant)?analysis(?=[A-Z\"'])")
_BARE_FINAL = re.compile(r"assistant\s*final(?=\s*\S)")
_SPECIAL = re.compile(
    r"<\|(?:im_start|end|start|return|begin_of_solution|end_of_solution|"
    r"begin_of_box|end_of_box|START_RESPONSE|END_RESPONSE)\|>"
    r"(?:assistant\b)?"
)


_TURN_BEGINS = re.compile(
    r"\s*(?:<s>(?!.*</s>\s*\S)|<bos>|<\|begin_of_text\|>|<start_of_turn>\s*(?:model|assistant)\b"
    r"|<\|start_header_id\|>\s*assistant\s*<\|end_header_id\|>|\[/INST\]|<pad>"
    r"|(?:assistant|model)\s*\n|#{2,}\s*(?:response|assistant)\s*:?\s*\n|assistant\s*:)",
    re.IGNORECASE | re.DOTALL,
)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|endoftext|end_of_text|END_OF_TURN_TOKEN)\|>|<end_of_turn>|<eos>|<pad>|\[INST\]"
    r"|<[|\uff5c]end\u2581of\u2581sentence[|\uff5c]>|(?<!<s>)</s>",
    re.IGNORECASE,
)


def without_thinking(response: str) -> str:
    """Return what ``response`` says outside its blocks of reasoning; empty if such a block never ends.

    A block that is closed but not opened began in the prompt, as chat templates do it. What stands after the
    sign that ends a turn is another turn.
    """
    return _one_turn(_outside_of_thinking(response))


def _one_turn(text: str) -> str:
    """Return the first turn that says something, without the signs at its beginning and end."""
    while (m := _TURN_BEGINS.match(text)) and m.end() > 0:
        text = text[m.end() :]
    if "<" not in text and "[" not in text:
        return text
    for m in _TURN_ENDS.finditer(text):
        if m.group().lower() == "</s>" and "<s>" in text[: m.start()].lower():
            continue  # struck out
        if text[: m.start()].strip():
            return text[: m.start()]
    return text


def _outside_of_thinking(response: str) -> str:
    if not any(sign in response for sign in ("<", "[", "◁", "&lt;", "analysis", "hinking", "hought")):
        return response
    response = _ESCAPED.sub(r"<\1>", response)
    for begins, ends in _SAID:
        if begins.match(response):
            said = ends.search(response)
            return response[said.end() :] if said else ""
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
