"""Our engines below lm-eval: ``import cme_bench.harness.lm_eval_model`` registers the model ``cme-hf``.

Its command line takes it after the import, which ``cme-bench lm-eval`` does::

    cme-bench lm-eval --model cme-hf --model_args pretrained=./llama --tasks hellaswag

Texts become token ids exactly as in lm-eval 0.4.13's ``HFLM``, so that scores agree with it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import register_model

from cme_bench.harness import hflm_arguments as arguments
from cme_bench.harness.engine_lm import EngineLM
from cme_bench.harness.hflm_loading import Loading, check_tokenizer, load, put_adapter
from cme_bench.models.checkpoint import config_folder, resolve_model
from cme_bench.models.hub_name import parse_hub_name
from cme_bench.prompts.bos import decide_bos, model_types
from cme_bench.prompts.generation import DEFAULT_NEW_TOKENS
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    import torch
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

    It takes the arguments of ``HFLM``, in its meaning: those below with any value, the others of
    ``cme_bench.harness.hflm_arguments`` with one. ``max_length`` is counted as lm-eval does. ``adapter`` (or
    ``peft``, its name in ``hf``) is a PEFT adapter on top of ``pretrained``. ``batch_size``,
    ``max_batch_size`` and ``logits_cache`` have no effect: batches follow ``tokens_per_batch``, and common
    prefixes are always computed once.

    Raises UsageError, before anything is loaded, for an argument that it does not take.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        adapter: str | None = None,
        peft: str | None = None,
        delta: str | None = None,
        tokenizer: str | PreTrainedTokenizerBase | None = None,
        revision: str | None = "main",
        subfolder: str | None = "",
        dtype: str | torch.dtype | None = "auto",
        device: str | None = None,
        attn_implementation: str | None = None,
        parallelize: bool | None = False,
        device_map: str | Mapping[str, Any] | None = None,
        max_memory_per_gpu: int | str | None = None,
        max_cpu_memory: int | str | None = None,
        offload_folder: str | None = "./offload",
        load_in_4bit: bool | None = False,
        load_in_8bit: bool | None = False,
        bnb_4bit_quant_type: str | None = None,
        bnb_4bit_use_double_quant: bool | None = None,
        bnb_4bit_compute_dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
        truncation: bool | None = False,
        logits_cache: bool = True,
        tokens_per_batch: int | None = None,
        use_fast_tokenizer: bool | None = True,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        max_gen_toks: int = DEFAULT_NEW_TOKENS,
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **fixed: Any,
    ) -> None:
        arguments.check_fixed(fixed, taken=inspect.signature(CmeHF.__init__).parameters)
        given = locals()
        loading = Loading(**{field.name: given[field.name] for field in fields(Loading)})
        _check(given)
        from cme_bench.engines.hf import HFEngine
        from cme_bench.engines.hf.alone import adapter_positions
        from cme_bench.engines.hf.forward import max_positions

        where = arguments.device_of(device)
        folder = _folder(pretrained, revision, subfolder)
        tokens = _tokens(folder, tokenizer, add_bos_token, use_fast=use_fast_tokenizer)
        arguments.check_token(tokens, "prefix_token_id", prefix_token_id)
        thought = arguments.end_of_thought(tokens, think_end_token)
        if (own := adapter or peft) and tokenizer is None:
            check_tokenizer(str(own), folder)
        model = load(folder, arguments.dtype_name(dtype), loading, where)
        if add_bos_token is None:
            _warn_of_bos(tokens, model.config)
        fed = max_positions(model.config) if max_length is None else max_length
        if own:
            model = put_adapter(model, str(own))
            fed -= adapter_positions(model) if max_length is None else 0
        engine = HFEngine(
            model,
            tokens,
            max_length=fed + 1,
            tokens_per_batch=tokens_per_batch,
            device=None if loading.spread else where,
        )
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        super().__init__(
            engine,
            tokens,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            max_gen_toks=max_gen_toks,
            chat_template_args={**(chat_template_args or {}), **thinking},
            truncation=bool(truncation),
            think_end_token=thought,
            thinks=bool(enable_thinking),
            embeddings=model.get_input_embeddings().weight.shape[0],
        )


def _check(given: Mapping[str, Any]) -> None:
    """Check the arguments that need no model to be judged. Raises UsageError with the first that is wrong."""
    if not isinstance(given["pretrained"], str):
        raise UsageError(
            "pretrained must be a folder or a hub id; a model in memory goes into EngineLM(HFEngine(model, "
            "tokenizer), tokenizer)"
        )
    if not given["pretrained"]:
        raise UsageError("pretrained is empty: it must be a folder or a hub id")
    if given["adapter"] is not None and given["peft"] is not None:
        raise UsageError("adapter and peft name the same thing: give one of them")
    if given["delta"] is not None and (given["adapter"] or given["peft"]):
        raise UsageError("delta and adapter both change the model: give one of them")
    for name in ("truncation", "use_fast_tokenizer", "add_bos_token", "enable_thinking", "logits_cache"):
        arguments.check_flag(name, given[name])
    for name, least in (
        ("max_length", 1),
        ("prefix_token_id", 0),
        ("max_gen_toks", 1),
        ("tokens_per_batch", 1),
    ):
        arguments.check_count(name, given[name], least)
    arguments.dtype_name(given["dtype"])
    if not isinstance(given["chat_template_args"], Mapping | None):
        raise UsageError(f"chat_template_args={given['chat_template_args']}: it must be a mapping")
    if given["enable_thinking"] and given["think_end_token"] is None:
        raise UsageError("enable_thinking=True needs think_end_token, after which the answer stands")


def _folder(pretrained: str, revision: str | None, subfolder: str | None) -> Path:
    """Return the folder of a model: ``subfolder`` of one on this machine, or of a hub name at ``revision``.

    Raises UsageError if there is none, or if the name gives another revision or subfolder itself.
    """
    version = None if revision in {None, "main"} else str(revision)
    if not Path(pretrained).is_dir():
        return resolve_model(_hub_name(pretrained, version, subfolder or None), note=logger.warning).path
    if version is not None:
        raise UsageError(f"revision={version}: {pretrained} is a folder, which has no revisions")
    return resolve_model(str(Path(pretrained) / (subfolder or "")), note=logger.warning).path


def _hub_name(name: str, revision: str | None, subfolder: str | None) -> str:
    """Return the hub name with what it lacks; ``name`` as it is if it is none."""
    hub = parse_hub_name(name)
    if hub is None:
        return name
    for key, value in (("revision", revision), ("subfolder", subfolder)):
        if value is not None and getattr(hub, key) not in {None, value}:
            raise UsageError(f"{key}={value}: pretrained={name} names another")
    hub = replace(hub, revision=hub.revision or revision, subfolder=hub.subfolder or subfolder)
    if hub.subfolder is not None and hub.revision is None:
        hub = replace(hub, revision="main")  # without one, three parts are a path
    return str(hub)


def _tokens(
    folder: Path,
    tokenizer: str | PreTrainedTokenizerBase | None,
    add_bos_token: bool | None,
    *,
    use_fast: bool | None,
) -> PreTrainedTokenizerBase:
    from cme_bench.models.load import load_named_tokenizer

    if tokenizer is not None and not isinstance(tokenizer, str):
        if not callable(getattr(tokenizer, "apply_chat_template", None)):
            raise UsageError(f"tokenizer={tokenizer}: it must be a folder, a hub id or a tokenizer")
        return tokenizer
    settings: dict[str, Any] = {}
    if add_bos_token is not None:
        settings["add_bos_token"] = add_bos_token
    if use_fast is not None:
        settings["use_fast"] = use_fast
    own = folder if not tokenizer else config_folder(tokenizer, note=logger.warning)
    tokens: PreTrainedTokenizerBase = load_named_tokenizer(str(own), **settings)
    return tokens
