"""Our engines below lm-eval: ``import cme_bench.harness.lm_eval_model`` registers the model ``cme-hf``.

Its command line takes it after the import::

    python -c "import cme_bench.harness.lm_eval_model, lm_eval.__main__ as m; m.cli_evaluate()" \\
        --model cme-hf ...

Texts become token ids exactly as in lm-eval 0.4.13's ``HFLM``, so that scores agree with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import register_model

from cme_bench.harness.engine_lm import EngineLM
from cme_bench.prompts.bos import decide_bos, model_types
from cme_bench.prompts.items import DEFAULT_NEW_TOKENS
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["CmeHF", "EngineLM"]

logger = logging.getLogger(__name__)


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
    """Be lm-eval's model ``cme-hf``: the transformers engine; no code of a model is ever run.

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
        max_gen_toks: int = DEFAULT_NEW_TOKENS,
        chat_template_args: Mapping[str, Any] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        from cme_bench.engines.hf import HFEngine
        from cme_bench.engines.hf.alone import adapter_positions
        from cme_bench.engines.hf.forward import max_positions
        from cme_bench.models.load import choose_device, load_named, load_named_tokenizer

        if adapter is not None and peft is not None:
            raise UsageError("adapter and peft name the same thing: give one of them")
        if trust_remote_code:  # lm-eval's --trust_remote_code comes here as a model argument
            raise UsageError("cme-hf never runs the code of a model: leave trust_remote_code out")
        model = load_named(pretrained, dtype, revision=revision, note=logger.warning)
        bos = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        tokens = load_named_tokenizer(tokenizer or pretrained, revision=revision, **bos)
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
            device=device or choose_device(),
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
    """Put an adapter on ``model``: a folder, checked as in a run, or one of the hub, which PEFT fetches."""
    from peft import PeftModel

    from cme_bench.adapters.load import load_adapter  # and TeamLoRA and its kin are known to PEFT

    if Path(name).is_dir():
        return load_adapter(model, name, note=logger.warning)
    return PeftModel.from_pretrained(model, name)
