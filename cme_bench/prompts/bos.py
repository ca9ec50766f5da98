"""Whether prompts begin with BOS: what the tokenizer adds, what its model was trained with, what a user asks.

Converters lose a tokenizer's post-processor, and transformers 5 ignores ``add_bos_token`` of
``tokenizer_config.json`` beside a ``tokenizer.json``. A model trained with a BOS then answers much worse.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from cme_bench.engines.base import TokenIds
from cme_bench.util.errors import UsageError
from cme_bench.util.options import BOS_UNKNOWN, BosMode, check_choice

"""Values of ``--bos``."""

# Which tokens the families' own tokenizers put before a text: the classes of transformers 4 (LlamaTokenizer,
# GemmaTokenizer, CohereTokenizerFast, GPT2Tokenizer of OPT) and llama.cpp's vocabulary loader, which adds BOS
# for SentencePiece vocabularies and for the pre-tokenizers llama3, tekken, pixtral and lfm2.
_TRAINED_WITH = re.compile(
    r"(\w*gemma\w*|mistral\w*|mixtral|ministral\w*|pixtral|voxtral\w*|cohere\w*|aya_vision|opt|deepseek\w*"
    r"|lfm2\w*|jamba|internlm2|minicpm3?|helium|llama4\w*|mllama\w*|bitnet)"
)
"""Model types of which every member was trained with its BOS."""
_OF_LLAMA = ("<s>", "<|begin_of_text|>")
"""The BOS tokens of Llama 1 to 3; others took over the architecture with other tokenizers (SmolLM2, Yi)."""
_DEEPSEEK = "<｜begin▁of▁sentence｜>"
"""DeepSeek's tokenizers add it whatever the architecture (llama, qwen2)."""
_TRAINED_WITHOUT = re.compile(
    r"(qwen\w*|gpt2|gptj|gpt_neox?\w*|gpt_bigcode|gpt_oss|codegen|bloom|mpt|falcon|phi|phi3\w*|phimoe"
    r"|starcoder2|stablelm|olmo\w*|granite\w*|mamba2?|rwkv|dbrx|smollm3|glm\w*|chatglm)"
)
_NO_BOS = ("<|endoftext|>", "<|im_start|>")
"""Tokens that are called BOS but stand between documents or open a turn."""


@dataclass(frozen=True, slots=True)
class Bos:
    """How a prompt begins.

    Attributes:
        prefix: Special tokens before every context; a text that begins with them gets no second.
        own: Those that the tokenizer adds by itself.
        mode: As asked for: auto, always or never.
        reason: Why ``prefix`` is what it is.
        warning: What a user must know, if anything.
    """

    prefix: TokenIds
    own: TokenIds
    mode: str
    reason: str
    warning: str | None = None

    @property
    def changed(self) -> bool:
        """Whether prompts begin otherwise than the tokenizer by itself makes them begin."""
        return self.prefix != self.own

    def describe(self) -> dict[str, Any]:
        """Return it as ``run.json`` and ``cme_training.json`` record it."""
        return asdict(self) | {"prefix": list(self.prefix), "own": list(self.own)}


def own_bos(tokenizer: Any) -> Bos:
    """Return what the tokenizer does by itself."""
    own = added_prefix(tokenizer)
    return Bos(own, own, "auto", "the tokenizer's own way")


def decide_bos(
    tokenizer: Any,
    mode: str = "auto",
    *,
    model_types: Collection[str] = (),
    trained: TokenIds | None = None,
) -> Bos:
    """Decide how the prompts of a model begin.

    Args:
        tokenizer: The model's tokenizer.
        mode: ``always`` adds the BOS once, ``never`` takes it away. ``auto`` keeps what the tokenizer adds.
            Where it adds none, ``auto`` adds one if ``tokenizer_config.json`` says so or if the model's
            family was trained with one.
        model_types: ``model_type`` of the model's config and of its text part.
        trained: How the prompts of the adapter's training began; ``auto`` follows it.

    Raises UsageError for an unknown mode, and for ``always`` where the tokenizer has no BOS.
    """
    check_choice(mode, BosMode, BOS_UNKNOWN)
    own, bos = added_prefix(tokenizer), tokenizer.bos_token_id
    if mode == "always":
        if bos is None:
            raise UsageError(f"--bos always: the tokenizer of {_name(tokenizer)} has no BOS token")
        return Bos(own if bos in own else (int(bos), *own), own, mode, "--bos always")
    if mode == "never":
        return Bos(tuple(token for token in own if token != bos), own, mode, "--bos never")
    usual = _usual(tokenizer, own, model_types)
    if trained is None:
        return usual
    warning = None
    if trained != usual.prefix:
        warning = (
            f"the adapter was trained on prompts that begin with {_shown(tokenizer, trained)}, its base "
            f"begins with {_shown(tokenizer, usual.prefix)}; evaluation follows the training (--bos decides)"
        )
    return Bos(trained, own, mode, "as in the adapter's training", warning)


def trained_prefix(tokenization: Mapping[str, Any], tokenizer: Any) -> TokenIds | None:
    """Return how the prompts of an adapter's training began, from its record; None if that says nothing.

    Trainings before ``--bos`` recorded the number of special tokens, which were the tokenizer's own.
    """
    if isinstance(recorded := tokenization.get("bos"), Mapping):
        return tuple(int(token) for token in recorded["prefix"])
    count = tokenization.get("prefix_tokens")
    return None if count is None else added_prefix(tokenizer)[:count]


def _usual(tokenizer: Any, own: TokenIds, model_types: Collection[str]) -> Bos:
    """Decide ``auto`` for a model without an adapter that says how it was trained."""
    token, bos = tokenizer.bos_token, tokenizer.bos_token_id
    if own or bos is None:
        reason = "the tokenizer adds it" if own else "the tokenizer has no BOS token"
        return Bos(own, own, "auto", reason)
    setting = _declared(tokenizer)
    family = _family_with_bos(str(token), tokenizer.eos_token, model_types)
    none = f"the tokenizer of {_name(tokenizer)} has a BOS token, {token!r}, and adds none"
    if setting or (family and setting is None):
        why = "add_bos_token of tokenizer_config.json" if setting else f"{family} models are trained with it"
        warning = f"{none}: every prompt gets one ({why}); --bos never leaves it out"
        return Bos((int(bos),), own, "auto", why, warning)
    if setting is False:
        warning = (
            f"{none} (add_bos_token: false), but {family} models are trained with it; --bos always adds it"
        )
        return Bos(own, own, "auto", "add_bos_token: false", warning if family else None)
    if _known_without(str(token), tokenizer.eos_token, model_types):
        return Bos(own, own, "auto", "models of this family are trained without")
    warning = (
        f"{none}; if the model was trained with it, its scores are too low: --bos always or never decides"
    )
    return Bos(own, own, "auto", "the tokenizer adds none", warning)


def _family_with_bos(token: str, eos: str | None, model_types: Collection[str]) -> str | None:
    """Return the model type that was trained with ``token`` before every text, or None."""
    if "opt" not in model_types and (token in _NO_BOS or token == eos):
        return None
    if token == _DEEPSEEK:
        return "DeepSeek"
    if "llama" in model_types and token in _OF_LLAMA:
        return "llama"
    return next((kind for kind in sorted(model_types) if _TRAINED_WITH.fullmatch(kind)), None)


def _known_without(token: str, eos: str | None, model_types: Collection[str]) -> bool:
    named = any(_TRAINED_WITHOUT.fullmatch(kind) for kind in model_types)
    return named or token in _NO_BOS or token == eos


def _declared(tokenizer: Any) -> bool | None:
    """Return ``add_bos_token`` of the tokenizer's own file, which transformers may ignore; None if it is
    silent."""
    file = Path(str(tokenizer.name_or_path or "")) / "tokenizer_config.json"
    if not file.is_file():
        return None
    content = orjson.loads(file.read_bytes())
    setting = content.get("add_bos_token") if isinstance(content, Mapping) else None
    return setting if isinstance(setting, bool) else None


def added_prefix(tokenizer: Any) -> TokenIds:
    """Return the special tokens that the tokenizer puts before a text by default."""
    for text in ("a", "the cat"):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = tokenizer(text)["input_ids"]
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return tuple(full[:start])
    return ()


def model_types(config: Any) -> frozenset[str]:
    """Return ``model_type`` of a transformers config and of its text part."""
    return frozenset({str(config.model_type), str(config.get_text_config().model_type)})


def _name(tokenizer: Any) -> str:
    return str(tokenizer.name_or_path or "the model")


def _shown(tokenizer: Any, prefix: TokenIds) -> str:
    return " ".join(repr(tokenizer.decode([token])) for token in prefix) or "no special token"
