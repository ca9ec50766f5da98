"""Our engines below lm-eval: ``import cme_bench.engines.lm_eval`` registers the model ``cme-hf``.

Its command line takes it after the import::

    python -c "import cme_bench.engines.lm_eval, lm_eval.__main__ as m; m.cli_evaluate()" --model cme-hf ...

Texts become token ids exactly as in lm-eval 0.4.13's ``HFLM``, so that scores agree with it.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cme_bench.compiled_templates import keep_compiled
from cme_bench.engines.base import Engine, GenerateRequest, LoglikelihoodRequest, TokenIds
from cme_bench.errors import UsageError
from cme_bench.prompts.bos import decide_bos, model_types

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EncodedPair: TypeAlias = tuple[tuple[str, str] | None, Sequence[int], Sequence[int]]
"""(texts or None, context ids, continuation ids), as lm-eval hands them on; None is kept out of its cache."""

DEFAULT_MAX_GEN_TOKS = 256
_GREEDY_KEYS = {"do_sample", "temperature", "top_p", "top_k", "min_p"}  # without effect on greedy decoding


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Lets lm-eval drive ``engine``, whose ids ``tokenizer`` makes.

    ``add_bos_token``, ``prefix_token_id`` and ``chat_template_args`` mean what they mean in ``HFLM``.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = DEFAULT_MAX_GEN_TOKS,
        chat_template_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        keep_compiled()
        self.engine = engine
        self.tokenizer = tokenizer
        self.add_bos_token = add_bos_token
        self.max_gen_toks = max_gen_toks
        self._prefix_token_id = prefix_token_id
        self._chat_template_args = dict(chat_template_args or {})
        self._last_context: tuple[str, list[int]] = ("", [])
        self._told_date = False
        self._told_rounding = False

    def _tell_of_rounding(self) -> None:
        """Warn once if the model rounds its logits to 16 bits, which is known once it has some."""
        logits = self.engine.describe().get("logits")
        if logits in {"bfloat16", "float16"} and not self._told_rounding:
            self._told_rounding = True
            logger.warning("the model rounds its own logits to %s: choices tie that do not tie", logits)

    @property
    def max_length(self) -> int:
        """Positions that the model is fed, as lm-eval counts them: the last token of a row is not."""
        return self.engine.max_length - 1

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What an empty context becomes: as given, else the tokenizer's BOS, else its EOS."""
        if self._prefix_token_id is not None:
            return self._prefix_token_id
        if self.tokenizer.bos_token_id is not None:
            return int(self.tokenizer.bos_token_id)
        return self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as one prompt; an assistant turn at its end stays open if no new turn is asked for.

        A template that refuses a system turn gets the chat without it, with a warning.
        """
        from jinja2 import TemplateError

        if "strftime_now" in str(self.tokenizer.chat_template) and not self._told_date:
            self._told_date = True
            logger.warning("the chat template asks for today's date: prompts, and scores, change every day")

        def apply(chat: list[dict[str, str]]) -> str:
            text = self.tokenizer.apply_chat_template(
                chat,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._chat_template_args,
            )
            return str(text)

        try:
            return apply(chat_history)
        except TemplateError:
            logger.warning("the chat template refused the chat; trying again without its system turn")
            return apply([turn for turn in chat_history if turn["role"] != "system"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of ``string``. Unless told, no special tokens are added to a text that begins with the prefix
        token, and otherwise what ``add_bos_token`` or the tokenizer says."""
        if add_special_tokens is None:
            prefix = self.tokenizer.decode(self.prefix_token_id)
            add_special_tokens = False if string.startswith(prefix) else self.add_bos_token
        return self._encode(string, add_special_tokens)

    def _encode(self, string: str, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None:
            return list(self.tokenizer.encode(string))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context that is not empty and of its continuation: spaces at the context's end go to the
        continuation, and both are encoded as one text."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if self._last_context[0] != bare or not bare:
            self._last_context = (bare, self.tok_encode(bare))
        context_ids = self._last_context[1]
        if not context_ids:  # nothing but spaces
            return self._encode_after_prefix(continuation)
        return context_ids, self.tok_encode(bare + continuation)[len(context_ids) :]

    def _encode_after_prefix(self, continuation: str) -> tuple[list[int], list[int]]:
        """Ids for an empty context: the prefix token, unless the continuation itself begins with it."""
        ids = self.tok_encode(continuation, add_special_tokens=False)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """``(logprob, is_greedy)`` of every (context, continuation), in the order given."""
        encoded: list[EncodedPair] = []
        for context, continuation in (request.args for request in requests):
            pair = (
                self._encode_pair(context, continuation)
                if context
                else self._encode_after_prefix(continuation)
            )
            encoded.append(((context, continuation), *pair))
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(
        self, requests: Sequence[EncodedPair], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Adjacent pairs with one context, the choices of a question, become one request to the engine."""
        grouped = [list(group) for _, group in itertools.groupby(requests, key=lambda pair: tuple(pair[1]))]
        n_truncated = sum(len(c) + len(t) > self.engine.max_length for _, c, t in requests)
        if n_truncated:
            logger.warning(
                "%d of %d rows exceed %d tokens and lose the beginning of their context",
                n_truncated,
                len(requests),
                self.engine.max_length,
            )
        answers: list[list[tuple[float, bool]]] = [[] for _ in grouped]
        asked = [LoglikelihoodRequest(tuple(self._fit(c, t) for _, c, t in group)) for group in grouped]
        for index, response in self.engine.loglikelihood(asked):
            answers[index] = list(zip(response.logprobs, response.greedy, strict=True))
            for (texts, _, _), answer in zip(grouped[index], answers[index], strict=True):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
        self._tell_of_rounding()
        return list(itertools.chain.from_iterable(answers))

    def _fit(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[TokenIds, TokenIds]:
        """The row cut from the left to the engine's max_length; at least one token of context stays."""
        room = self.engine.max_length - len(continuation)
        if room < 1:
            raise UsageError(
                f"a continuation of {len(continuation)} tokens leaves no room for context within max_length "
                f"{self.max_length}"
            )
        return tuple(context[-room:]), tuple(continuation)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows of ``max_length`` that score each token once."""
        windows = [self._windows(request.args[0]) for request in requests]
        asked = [LoglikelihoodRequest(rows) for rows in windows]
        totals = [0.0] * len(asked)
        for index, response in self.engine.loglikelihood(asked):
            totals[index] = sum(response.logprobs)
            self.cache_hook.add_partial("loglikelihood_rolling", requests[index].args, totals[index])
        return totals

    def _windows(self, text: str) -> tuple[tuple[TokenIds, TokenIds], ...]:
        pairs: Iterable[tuple[list[int], list[int]]] = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        disjoint: Callable[[tuple[list[int], list[int]]], tuple[list[int], list[int]]] = make_disjoint_window
        return tuple((tuple(context), tuple(target)) for context, target in map(disjoint, pairs))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first ``until`` string.

        Raises UsageError for settings that ask for anything but greedy decoding.
        """
        asked = [self._generate_request(*request.args) for request in requests]
        texts = [""] * len(asked)
        for index, response in self.engine.generate(asked):
            texts[index] = response.text
            self.cache_hook.add_partial("generate_until", requests[index].args, response.text)
        self._tell_of_rounding()
        return texts

    def _generate_request(self, context: str, gen_kwargs: dict[str, Any]) -> GenerateRequest:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        if settings.pop("do_sample"):
            raise UsageError(
                f"only greedy decoding is supported, not do_sample or temperature > 0: {gen_kwargs}"
            )
        max_new_tokens: int = settings.pop("max_gen_toks")
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        stop = handle_stop_sequences(settings.pop("until"), eos=end)
        if unknown := sorted(settings.keys() - _GREEDY_KEYS):
            raise UsageError(f"unsupported generation settings: {', '.join(unknown)}")
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UsageError(
                f"max_gen_toks {max_new_tokens} leaves no room for a prompt in max_length {self.max_length}"
            )
        bos = self.tokenizer.bos_token
        starts_with_bos = bos is not None and context.startswith(bos)
        ids = self._encode(context, False if starts_with_bos else self.add_bos_token)
        if len(ids) > room:
            logger.warning("a prompt of %d tokens loses its first %d", len(ids), len(ids) - room)
        return GenerateRequest(tuple(ids[-room:]), max_new_tokens, tuple(stop))


def _warn_of_bos(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """Warn where stock lm-eval, with which scores agree, leaves out a BOS that the model may need."""
    bos = decide_bos(tokenizer, model_types=model_types(config))
    if bos.warning is not None:
        logger.warning(
            "%s has a BOS token, %r, and adds none, and neither does lm-eval: if the model was trained with "
            "it, its scores are too low; add_bos_token=True or False decides",
            tokenizer.name_or_path,
            tokenizer.bos_token,
        )


@register_model("cme-hf")
class CmeHF(EngineLM):
    """The transformers engine as lm-eval's model ``cme-hf``; no code of a model is ever run.

    ``max_length`` is counted as lm-eval does. ``adapter`` (or ``peft``, its name in ``hf``) is a PEFT adapter
    on top of ``pretrained``. ``batch_size`` and ``max_batch_size``, which lm-eval always passes, have no
    effect: batches follow ``tokens_per_batch``.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        adapter: str | None = None,
        peft: str | None = None,
        tokenizer: str | None = None,
        revision: str = "main",
        dtype: str = "auto",
        device: str | None = None,
        max_length: int | None = None,
        tokens_per_batch: int | None = None,
        trust_remote_code: bool = False,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = DEFAULT_MAX_GEN_TOKS,
        chat_template_args: Mapping[str, Any] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        import torch
        from transformers import AutoTokenizer

        from cme_bench.engines.hf import HFEngine
        from cme_bench.engines.hf.alone import adapter_positions
        from cme_bench.engines.hf.forward import max_positions
        from cme_bench.models.load import load_named

        if adapter is not None and peft is not None:
            raise UsageError("adapter and peft name the same thing: give one of them")
        if trust_remote_code:  # lm-eval's --trust_remote_code comes here as a model argument
            raise UsageError("cme-hf never runs the code of a model: leave trust_remote_code out")
        source = {"revision": revision, "trust_remote_code": False}
        model = load_named(pretrained, dtype, revision=revision, note=logger.warning)
        bos = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        tokens = AutoTokenizer.from_pretrained(tokenizer or pretrained, **source, **bos)
        if add_bos_token is None:
            _warn_of_bos(tokens, model.config)
        fed = max_positions(model.config) if max_length is None else max_length
        if adapter or peft:
            model = _adapted(model, str(adapter or peft))
            fed -= adapter_positions(model) if max_length is None else 0
        engine = HFEngine(
            model,
            tokens,
            max_length=fed + 1,
            tokens_per_batch=tokens_per_batch,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        )
        super().__init__(
            engine,
            tokens,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            max_gen_toks=max_gen_toks,
            chat_template_args=chat_template_args,
        )


def _adapted(model: Any, name: str) -> Any:
    """``model`` with an adapter: a folder, checked as in a run, or one of the hub, which PEFT fetches."""
    from peft import PeftModel

    from cme_bench.adapters.load import load_adapter  # and TeamLoRA and its kin are known to PEFT

    if Path(name).is_dir():
        return load_adapter(model, name, note=logger.warning)
    return PeftModel.from_pretrained(model, name)
