"""Texts to token ids exactly as lm-eval 0.4.13's ``HFLM`` makes them, so that scores agree with it.

Where a run does the same, the code is that of ``cme_bench.prompts.encode``. Two things differ: ``HFLM`` keeps
what a tokenizer appends to a text, and looks for a BOS at the very beginning of a text only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cme_bench.prompts.encode import move_spaces, start_token
from cme_bench.util.errors import UsageError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class LMEvalTexts:
    """Encode texts and render chats with ``tokenizer`` as ``HFLM`` does.

    ``add_bos_token``, ``prefix_token_id``, ``chat_template_args`` and ``truncation`` mean what they mean
    there: the last cuts the end of a prompt that is longer than the tokenizer's ``model_max_length``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        truncation: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.truncation = truncation
        self.add_bos_token = add_bos_token
        self.prefix_token_id = start_token(tokenizer) if prefix_token_id is None else prefix_token_id
        self._chat_template_args = dict(chat_template_args or {})
        self._last_context: tuple[str, list[int]] = ("", [])
        self._told_date = False

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        """Return the ids of a text.

        Unless told, no special tokens are added to a text that begins with the prefix token; others get what
        ``add_bos_token`` or the tokenizer says.
        """
        if add_special_tokens is None:
            begins = text.startswith(self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = False if begins else self.add_bos_token
        return self._encode(text, add_special_tokens)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text to be continued; one that begins with BOS gets no second."""
        bos = self.tokenizer.bos_token
        begins = bos is not None and text.startswith(bos)
        return self._encode(text, False if begins else self.add_bos_token, truncation=self.truncation)

    def _encode(self, text: str, add_special_tokens: bool | None, truncation: bool = False) -> list[int]:
        settings: dict[str, Any] = {"truncation": True} if truncation else {}
        if add_special_tokens is not None:
            settings["add_special_tokens"] = add_special_tokens
        return list(self.tokenizer.encode(text, **settings))

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids of a context and of its continuation.

        Spaces at the context's end go to the continuation, and both are encoded as one text. A context that
        is empty or has no tokens becomes the prefix token.
        """
        if not context:
            return self._encode_after_prefix(continuation)
        context, continuation = move_spaces(context, continuation)
        if self._last_context[0] != context or not context:
            self._last_context = (context, self.encode(context))
        context_ids = self._last_context[1]
        if not context_ids:  # nothing but spaces
            return self._encode_after_prefix(continuation)
        return context_ids, self.encode(context + continuation)[len(context_ids) :]

    def _encode_after_prefix(self, continuation: str) -> tuple[list[int], list[int]]:
        """Return the ids for an empty context: the prefix token, unless the continuation begins with it."""
        ids = self.encode(continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def render(self, chat: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        """Return the chat as one prompt; an assistant turn at its end stays open if no new turn is asked for.

        A template that refuses a system turn gets the chat without it, with a warning. UsageError for one
        that fails all the same.
        """
        if "strftime_now" in str(self.tokenizer.chat_template) and not self._told_date:
            self._told_date = True
            logger.warning("the chat template asks for today's date: prompts, and scores, change every day")
        try:
            return self._render(chat, add_generation_prompt)
        except Exception as error:  # a template may raise anything
            rest = [turn for turn in chat if turn["role"] != "system"]
            if len(rest) == len(chat):
                raise self._broken(error) from error
            logger.warning("the chat template refused the chat; trying again without its system turn")
        try:
            return self._render(rest, add_generation_prompt)
        except Exception as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> UsageError:
        return UsageError(f"{self.tokenizer.name_or_path}: its chat template fails ({first_line(error)})")

    def _render(self, chat: list[dict[str, str]], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            chat,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            **self._chat_template_args,
        )
        return str(text)
