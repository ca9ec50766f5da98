"""The tokenizer and chat template beside an adapter: it was trained with them, and is asked with them."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme_bench.util.errors import UsageError, first_line

_CONFIG = "tokenizer_config.json"
_TEMPLATE = "chat_template.jinja"
_OLD_TEMPLATE = "chat_template.json"
"""Where processors of transformers 4 kept it."""
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id")


@dataclass(frozen=True, slots=True)
class AdapterTokenizer:
    """The tokenizer and template that an adapter's prompts are made with.

    ``note``: what is used of its folder, None where that changes nothing; ``identity``: sha256 of what
    decides ids and texts, "" where it is the base's."""

    tokenizer: Any
    note: str | None = None
    identity: str = ""


def holds_tokenizer(folder: Path) -> bool:
    """Return whether files of a tokenizer, or a chat template, lie in an adapter's folder."""
    return any((folder / name).is_file() for name in (*_VOCABULARIES, _CONFIG, _TEMPLATE, _OLD_TEMPLATE))


def beside(folder: Path, base: Any) -> AdapterTokenizer:
    """Return the tokenizer to ask an adapter with, given the base model's.

    The one beside the adapter is used where it gives other ids or ends answers elsewhere; if only its chat
    template is another, the base's is used with that template. Padding does not count. Raises UsageError if
    files of a tokenizer are there that give none.
    """
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        template = template_alone(folder)
        return AdapterTokenizer(base) if template is None else _templated(folder, base, template)
    own = _load(folder)
    if own.chat_template is None:
        own.chat_template = template_alone(folder)
    if _decides(own) == _decides(base):
        template = own.chat_template
        return AdapterTokenizer(base) if template is None else _templated(folder, base, template)
    note = f"{folder}: the tokenizer beside the adapter is used, not the base model's ({_what(own, base)})"
    if own.chat_template is None and base.chat_template is not None:
        own.chat_template = base.chat_template
        note += "; it has no chat template, so the base's is"
    return AdapterTokenizer(own, note, _digest(_decides(own)))


def _templated(folder: Path, base: Any, template: Any) -> AdapterTokenizer:
    if template == base.chat_template:
        return AdapterTokenizer(base)
    tokenizer = copy.deepcopy(base)
    tokenizer.chat_template = template
    tokenizer.template_place = str(folder)  # whom a fault of it is blamed on
    return AdapterTokenizer(tokenizer, f"{folder}: the chat template beside the adapter is used")


def template_alone(folder: Path) -> Any:
    """Return a template without a vocabulary: in a file of its own, or in the tokenizer's settings."""
    if (file := folder / _TEMPLATE).is_file():
        return file.read_text(encoding="utf-8")
    for name in (_CONFIG, _OLD_TEMPLATE):
        file = folder / name
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            template = content.get("chat_template")
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"{file} cannot be read: {first_line(error)}") from error
        if template is not None:
            return template
    return None


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    file = folder / "tokenizer.json"
    try:
        if file.is_file() and not (folder / _CONFIG).is_file():
            return PreTrainedTokenizerFast(
                tokenizer_file=str(file)
            )  # AutoTokenizer wants a model's config.json
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a broken tokenizer.json raises no narrower class
        raise UsageError(
            f"{folder}: the tokenizer beside the adapter cannot be loaded ({first_line(error)}); mend it, or "
            "move its files away to use the base model's"
        ) from error


def _decides(tokenizer: Any) -> dict[str, Any]:
    """Return everything that decides the ids of a text, the text of ids, and where an answer ends."""
    settings: dict[str, Any] = {name: getattr(tokenizer, name, None) for name in _SPECIAL}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return settings | {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    content: dict[str, Any] = json.loads(backend.to_str())
    content.pop("truncation", None)
    content.pop("padding", None)
    return settings | content


def tokenizer_hash(tokenizer: Any) -> str:
    """Return the sha256 of what decides prompts, ids and texts: vocabulary, rules, chat template."""
    facts = _decides(tokenizer) | {
        "template": getattr(tokenizer, "chat_template", None),
        "cleaned": getattr(tokenizer, "clean_up_tokenization_spaces", None),
    }
    return _digest(facts)


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _what(own: Any, base: Any) -> str:
    """Name the first difference, in words."""
    mine, theirs = own.get_vocab(), base.get_vocab()
    added = sorted(set(mine) - set(theirs), key=mine.__getitem__)
    if added:
        more = f" and {len(added) - 1} more" if len(added) > 1 else ""
        return f"{added[0]!r}{more} added"
    if mine != theirs:
        return "other ids"
    names = [name for name in _SPECIAL if getattr(own, name, None) != getattr(base, name, None)]
    if names:
        return f"another {names[0].removesuffix('_id').replace('_', ' ')}"
    return "other rules"
