"""Alpaca's prompt, and LLM-Adapters' variant of it: an instruction between fixed headings.

Alpaca's has the words of Taori et al. 2023 (github.com/tatsu-lab/stanford_alpaca) and, as in alpaca-lora, the
answer on a line of its own. LLM-Adapters' (Hu et al. 2023,
arXiv 2304.01933) is that of its scripts ``commonsense_evaluate.py`` and ``evaluate.py`` at commit 8166572:
lines are indented by 16 blanks, and the prompt ends with them. Its training script leaves such blanks in the
empty lines too; here training has the prompt of the evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TASK = "Below is an instruction that describes a task"
_WRITE = "Write a response that appropriately completes the request."


@dataclass(frozen=True, slots=True)
class Wrapper:
    """One variant, which renders messages. ``alone``, ``paired``: the line above an instruction without and
    with an input; ``indent``: what begins every line with a heading or a text."""

    alone: str
    paired: str
    indent: str

    def __call__(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the text before the answer. Exemplars stand before it, each with its answer."""
        text, separator = "", ""
        for message in messages:
            if message["role"] == "assistant":
                text += message["content"]
            elif message["role"] == "system":
                text += separator + message["content"].rstrip()
            else:
                text += separator + self.wrapped(message["content"], message.get("input", ""))
            separator = "\n\n"
        return text

    def wrapped(self, instruction: str, given: str = "") -> str:
        """Return one instruction, and the input that belongs to it, up to where the answer begins."""
        parts = [f"### Instruction:\n{self.indent}{instruction}"]
        if given:
            parts.append(f"### Input:\n{self.indent}{given}")
        body = "".join(f"{self.indent}{part}\n\n" for part in parts)
        return f"{self.paired if given else self.alone}\n\n{body}{self.indent}### Response:\n{self.indent}"


_ALPACA = Wrapper(
    alone=f"{_TASK}. {_WRITE}",
    paired=f"{_TASK}, paired with an input that provides further context. {_WRITE}",
    indent="",
)
_LLM_ADAPTERS = Wrapper(alone=f"{_ALPACA.alone} ", paired=_ALPACA.paired, indent=" " * 16)
WRAPPERS = {"alpaca": _ALPACA, "llm-adapters": _LLM_ADAPTERS}
"""The variants by the names of their prompt formats."""
