"""An engine as a model of lm-eval: its requests become ours, our responses its own."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from cme_bench.engines.base import Engine, GenerateRequest, LoglikelihoodRequest, Request, TokenIds
from cme_bench.harness.compiled_templates import keep_compiled
from cme_bench.harness.literals import keep_literals_quick
from cme_bench.harness.texts import LMEvalTexts
from cme_bench.prompts.generation import DEFAULT_NEW_TOKENS, SAMPLING_KEYS
from cme_bench.prompts.vocabulary import check_requests
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

EncodedPair: TypeAlias = tuple[tuple[str, str] | None, Sequence[int], Sequence[int]]
"""(texts or None, context ids, continuation ids), as lm-eval hands them on; None is kept out of its cache."""


class EngineLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """Let lm-eval drive ``engine``, whose ids ``tokenizer`` makes.

    ``add_bos_token``, ``prefix_token_id``, ``chat_template_args`` and ``truncation`` mean what they mean in
    ``HFLM``. ``think_end_token``: the text after which the answer stands; stop strings hold for the answer
    alone, however long the thought before it. ``thinks`` refuses likelihoods, as ``enable_thinking`` does.
    ``embeddings``: how many token ids the model knows, where that is known: a higher one is a UsageError.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        *,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = DEFAULT_NEW_TOKENS,
        chat_template_args: Mapping[str, Any] | None = None,
        truncation: bool = False,
        think_end_token: str | None = None,
        thinks: bool = False,
        embeddings: int | None = None,
    ) -> None:
        super().__init__()
        keep_compiled()
        keep_literals_quick()
        self.engine = engine
        self._embeddings = embeddings
        self.tokenizer = tokenizer
        self.texts = LMEvalTexts(
            tokenizer,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            chat_template_args=chat_template_args,
            truncation=truncation,
        )
        self._think_end_token = think_end_token
        self._thinks = thinks
        self.max_gen_toks = max_gen_toks
        self._told_rounding = False

    def _tell_of_rounding(self) -> None:
        """Warn once if the model rounds its logits to 16 bits, which is known once it has some."""
        logits = self.engine.describe().get("logits")
        if logits in {"bfloat16", "float16"} and not self._told_rounding:
            self._told_rounding = True
            logger.warning("the model rounds its own logits to %s: choices tie that do not tie", logits)

    @property
    def max_length(self) -> int:
        """Return how many positions the model is fed, as lm-eval counts them: a row's last token is not."""
        return self.engine.max_length - 1

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Return what an empty context becomes: as given, else the tokenizer's BOS, else its EOS."""
        return self.texts.prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """As ``LMEvalTexts.render``."""
        return self.texts.render(chat_history, add_generation_prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """As ``LMEvalTexts.encode``."""
        return self.texts.encode(string, add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return self.texts.encode_pair(context, continuation)

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Return ``(logprob, is_greedy)`` of every (context, continuation), in the order given."""
        if self._thinks:
            raise UsageError(
                "enable_thinking=True gives likelihoods of answers without their thoughts: leave it out, or "
                "choose tasks with generated answers"
            )
        encoded: list[EncodedPair] = []
        for context, continuation in (request.args for request in requests):
            encoded.append(((context, continuation), *self._encode_pair(context, continuation)))
        return self._loglikelihood_tokens(encoded)

    def _loglikelihood_tokens(
        self, requests: Sequence[EncodedPair], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score pairs; adjacent ones with one context, the choices of a question, become one request."""
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
        questions = [LoglikelihoodRequest(tuple(self._fit(c, t) for _, c, t in group)) for group in grouped]
        self._check(questions)
        for index, response in self.engine.loglikelihood(questions):
            answers[index] = list(zip(response.logprobs, response.greedy, strict=True))
            for (texts, _, _), answer in zip(grouped[index], answers[index], strict=True):
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answer)
        self._tell_of_rounding()
        return list(itertools.chain.from_iterable(answers))

    def _check(self, requests: Iterable[Request]) -> None:
        if self._embeddings is not None:
            name = str(self.tokenizer.name_or_path or "the model")
            check_requests(self.tokenizer, self._embeddings, requests, model=name)

    def _fit(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[TokenIds, TokenIds]:
        """Cut a row from the left to the engine's max_length; at least one token of context stays."""
        room = self.engine.max_length - len(continuation)
        if room < 1:
            raise UsageError(
                f"a continuation of {len(continuation)} tokens leaves no room for context within max_length "
                f"{self.max_length}"
            )
        return tuple(context[-room:]), tuple(continuation)

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each text; windows of ``max_length`` score each token once."""
        windows = [self._windows(request.args[0]) for request in requests]
        totals = [0.0] * len(windows)
        texts = [LoglikelihoodRequest(rows) for rows in windows]
        self._check(texts)
        for index, response in self.engine.loglikelihood(texts):
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
        """Return greedy continuations, cut before the first ``until`` string.

        Raises UsageError for settings that ask for anything but greedy decoding.
        """
        prompts = [self._generate_request(*request.args) for request in requests]
        texts = [""] * len(prompts)
        self._check(prompts)
        for index, response in self.engine.generate(prompts):
            texts[index] = self._answer(response.text, requests[index].args[1])
            self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
        self._tell_of_rounding()
        return texts

    def _stop(self, until: Any) -> list[str]:
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        own = list(until) if isinstance(until, list) else until  # lm-eval adds to the list that it is given
        stop: list[str] = handle_stop_sequences(own, eos=end)
        return stop

    def _answer(self, text: str, gen_kwargs: dict[str, Any]) -> str:
        """Return the answer in a text: what stands after the thought, if any, up to the first stop string."""
        if self._think_end_token is None:
            return text
        answer: str = postprocess_generated_text(
            text, self._stop(gen_kwargs.get("until")), self._think_end_token
        )
        return answer

    def _generate_request(self, context: str, gen_kwargs: dict[str, Any]) -> GenerateRequest:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, self.max_gen_toks))
        if settings.pop("do_sample"):
            raise UsageError(
                f"only greedy decoding is supported, not do_sample or temperature > 0: {gen_kwargs}"
            )
        max_new_tokens: int = settings.pop("max_gen_toks")
        stop = self._stop(None if self._think_end_token else settings["until"])
        del settings["until"]
        if unknown := sorted(settings.keys() - SAMPLING_KEYS):
            raise UsageError(f"unsupported generation settings: {', '.join(unknown)}")
        room = self.max_length - max_new_tokens
        if room < 1:
            raise UsageError(
                f"max_gen_toks {max_new_tokens} leaves no room for a prompt in max_length {self.max_length}"
            )
        ids = self.texts.encode_prompt(context)
        if len(ids) > room:
            logger.warning("a prompt of %d tokens loses its first %d", len(ids), len(ids) - room)
        return GenerateRequest(tuple(ids[-room:]), max_new_tokens, tuple(stop))
