"""A model given in memory, as it is now, and the adapters in it."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET

from cme_bench.models.adapter import Adapter, own_seconds, read_training, training_arguments
from cme_bench.models.adapter_tokenizer import AdapterTokenizer, tokenizer_hash
from cme_bench.models.causal import check_causal, check_model
from cme_bench.models.loaded import LoadedModel
from cme_bench.models.records import AdapterRecord, CodeRecord, ModelRecord
from cme_bench.models.vision import Vision
from cme_bench.util.auto_model import sees
from cme_bench.util.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

IN_MEMORY = "in memory"
UNKNOWN_CODE = (
    "the model has forward hooks or a forward that are not its class's own, or a class that was typed into "
    "this session: its answers are computed anew each time"
)


class LiveModel(LoadedModel):
    """The base model of one that was given in memory.

    ``given``: a ``PreTrainedModel``, or a ``PeftModel`` around one. Raises UsageError if it is neither, is
    no causal language model, or if no tokenizer is given. ``tokenizer`` may be the processor of a model that
    takes images.
    """

    def __init__(self, given: Any, tokenizer: Any, name: str | None = None) -> None:
        from peft import PeftModel

        from cme_bench.models.live_identity import base_hash, has_unknown_code

        self.given = unwrapped(given)
        self.peft: Any = self.given if isinstance(self.given, PeftModel) else None
        self._inner: PreTrainedModel = _inner(self.given)
        tokenizer, self._processor = _parted(tokenizer)
        if tokenizer is None:
            raise UsageError("a model in memory needs its tokenizer: give tokenizer=")
        if not callable(getattr(tokenizer, "get_vocab", None)):
            raise UsageError(
                f"tokenizer= takes a tokenizer of transformers, not a {type(tokenizer).__name__}"
            )
        self._tokenizer = tokenizer
        self.config = self._inner.config
        self.name = name or _own_name(self._inner)
        self.place = f"{self.name} ({IN_MEMORY})"
        declared = copy.copy(self.config)
        declared.architectures = [type(self._inner).__name__]
        check_causal(Path(self.place), declared)
        self._check_apart()
        self.device: torch.device = self._inner.get_input_embeddings().weight.device
        self.dtype, self.dtype_because = self._inner.dtype, "as it is in memory"
        self.hash = base_hash(self._inner, sorted(_ends(self._inner, tokenizer)))
        self.notes = (UNKNOWN_CODE,) if has_unknown_code(self.given) else ()

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def eos(self) -> Any:
        return getattr(self._inner.generation_config, "eos_token_id", None)

    @functools.cached_property
    def _asked_with(self) -> AdapterTokenizer:
        return AdapterTokenizer(self._tokenizer, None, tokenizer_hash(self._tokenizer))

    def tokenizer_of(self, adapter: Adapter | None) -> AdapterTokenizer:
        return self._asked_with

    @property
    def model(self) -> PreTrainedModel:
        return self._inner

    @functools.cached_property
    def vision(self) -> Vision | None:
        if not sees(self.config):
            return None
        if self._processor is None:
            raise UsageError(f"{self.place}: it takes images: give its processor as tokenizer=")
        return Vision(self._processor, self.config, self.place)

    @functools.cached_property
    def parameters(self) -> int:
        from cme_bench.adapters.meta_model import bare_model, base_parameters

        if self.peft is not None:
            return base_parameters(self.peft)
        quantised = getattr(self._inner, "hf_quantizer", None) is not None
        counted: Any = bare_model(self.config) if quantised else self._inner
        return int(counted.num_parameters())

    def describe(self) -> ModelRecord:
        return msgspec.structs.replace(super().describe(), architecture=type(self._inner).__name__)

    def check(self) -> None:
        """Raise UsageError if a weight is no number, or if a token changes the logits of tokens before it."""
        check_model(self._inner, Path(self.place))

    def _check_apart(self) -> None:
        """Raise UsageError for adapters inside the base's weights: to switch them off would change those."""
        layers = [] if self.peft is None else _layers(self.peft)
        if merged := [name for layer in layers for name in layer.merged_adapters]:
            raise UsageError(
                f"adapter {merged[0]!r} is merged into the base: unmerge_adapter() takes it apart, "
                "merge_and_unload() gives a model without adapters"
            )

    def active(self) -> tuple[str, ...]:
        """Return the names of the adapters that compute now; none if they are off.

        Raises UsageError if layers disagree about it.
        """
        if self.peft is None:
            return ()
        layers = _layers(self.peft)
        ways = {(layer.disable_adapters, tuple(layer.active_adapters)) for layer in layers}
        if len(ways) > 1:
            raise UsageError(
                f"{self.place}: some layers have other adapters on than others; set_adapter makes them agree"
            )
        return () if self.off or self.peft._adapters_disabled else tuple(self.peft.active_adapters)

    @property
    def off(self) -> bool:
        """Whether the layers of its adapters are switched off."""
        layers = _layers(self.peft)
        prompt = getattr(self.peft.base_model, "_enabled", True)  # of an adaption prompt
        return prompt is False or any(layer.disable_adapters for layer in layers)

    def adapter(self, names: tuple[str, ...]) -> Adapter:
        """Return adapters of the model that compute together, by identity.

        Raises UsageError if there is no such adapter, or one that is not computed exactly.
        """
        from cme_bench.adapters.support import virtual_tokens
        from cme_bench.models.live_identity import adapter_hash

        configs = {} if self.peft is None else self.peft.peft_config
        for name in names:
            if name not in configs:
                known = f"has {', '.join(configs)}" if configs else "has no adapters"
                raise UsageError(
                    f"adapter {name!r}: the model in memory {known}{did_you_mean(name, configs)}"
                )
            _check_computable(name, configs[name])
        records = [_record(configs[name]) for name in names]
        training = records[0] if len(names) == 1 else {}
        code = next(filter(None, (_code(configs[name]) for name in names)), None)
        hash_ = adapter_hash(self.peft, names, "" if code is None else code.hash)
        return Adapter(
            name="+".join(names),
            hash=hash_,
            prompt_format=training.get("prompt_format"),
            tokenization=training.get("tokenization") or {},
            record=self._described(names, hash_, code, training),
            virtual_tokens=sum(virtual_tokens(configs[name]) for name in names),
        )

    def _described(
        self, names: tuple[str, ...], hash_: str, code: CodeRecord | None, training: dict[str, Any]
    ) -> AdapterRecord:
        from cme_bench.adapters.describe import describe_adapter
        from cme_bench.adapters.row_task import chosen_task

        parts = [describe_adapter(self.peft, name) for name in names]
        one = parts[0] if len(parts) == 1 else None
        task = chosen_task(self.peft.peft_config[names[0]])
        return AdapterRecord(
            name="+".join(names),
            path=IN_MEMORY,
            hash=hash_,
            method="+".join(dict.fromkeys(part.method for part in parts)),
            rank=one.rank if one else None,
            experts=one.experts if one else None,
            targets=list(one.targets) if one else [],
            parameters=sum(part.trainable_parameters for part in parts),
            percent=sum(part.percent_of_base or 0.0 for part in parts),
            settings=one.settings if one else {},
            config=one.config if one else {},
            training=training_arguments(training),
            training_seconds=own_seconds(training),
            tokens_trained=training.get("tokens_trained"),
            code=code or UNSET,
            task=UNSET if task is None else task,
            percent_language=sum(part.percent_of_language_model or 0.0 for part in parts) or UNSET,
        )


def unwrapped(model: Any) -> Any:
    """Return the model inside wrappers that compute the same: those of torch.compile and data parallelism."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


def _inner(given: Any) -> Any:
    from peft import PeftModel
    from transformers import PreTrainedModel

    inner = given.get_base_model() if isinstance(given, PeftModel) else given
    if not isinstance(inner, PreTrainedModel):
        kind = type(given).__name__
        raise UsageError(f"a {kind} is no model: give a folder, a hub id, or a transformers or PEFT model")
    if inner is given and getattr(inner, "_hf_peft_config_loaded", False):
        raise UsageError(
            "the model has adapters that transformers put on it (add_adapter, load_adapter): load them as a "
            "PeftModel, whose adapters can be told from the base"
        )
    return inner


def _layers(model: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _parted(given: Any) -> tuple[Any, Any]:
    """Return the tokenizer, and the processor of images if that was given in its place."""
    inner = getattr(given, "tokenizer", None)
    return (inner, given) if inner is not None and hasattr(given, "image_processor") else (given, None)


def _own_name(model: Any) -> str:
    name = Path(str(getattr(model.config, "_name_or_path", "") or "")).name
    return name or type(model).__name__


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = list(ids) if isinstance(ids, (list, tuple)) else [ids]
    return frozenset(int(i) for i in [*several, tokenizer.eos_token_id] if i is not None)


def _check_computable(name: str, config: Any) -> None:
    from cme_bench.adapters.row_task import chosen_task, task_count
    from cme_bench.adapters.support import verdict

    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, "CAUSAL_LM"):
        raise UsageError(f"adapter {name!r}: task_type is {task!r}; only adapters of a causal LM can be run")
    how = verdict(config)
    if how.way == "refused":
        several = task_count(config) is not None and chosen_task(config) is None
        hint = (
            " (in memory: choose_task of cme_bench.adapters.row_task, or load_adapter's task=)"
            if several
            else ""
        )
        raise UsageError(f"adapter {name!r}: {how.reason}{hint}")


def _code(config: Any) -> CodeRecord | None:
    """Return the file of a method that is neither this package's nor PEFT's."""
    from cme_bench.adapters.registry import method_of

    method = method_of(config)
    if method is None or method.code is None:
        return None
    return CodeRecord(file=method.code.file, hash=method.code.hash)


def _record(config: Any) -> dict[str, Any]:
    """Return the training record of the folder that an adapter was loaded from, if that is known."""
    folder = getattr(config, "loaded_from", None)
    return {} if folder is None else read_training(Path(folder))
