"""The real vLLM on a CPU beside transformers, for the same token ids; in float32 unless told otherwise."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines import TokenIds
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.vllm_plugin.file import write_adapter

BLOCK = 32
"""Tokens of a block of vLLM's cache."""


def ids(n: int, seed: int = 0) -> TokenIds:
    """Return ``n`` token ids that the seed decides."""
    source = random.Random(seed)
    return tuple(source.randrange(3, 260) for _ in range(n))


class Bench:
    """One vLLM, asked with any adapter, and what transformers says to the same."""

    def __init__(
        self,
        base: Path,
        tokenizer: PreTrainedTokenizerFast,
        length: int,
        dtype: str = "float32",
        **settings: Any,
    ) -> None:
        from cme_bench.engines.vllm.host import Host
        from cme_bench.engines.vllm.settings import VllmSettings

        self.base, self.tokenizer = base, tokenizer
        self.host = Host(base, dtype, VllmSettings(kv_gib=1, block_size=BLOCK, **settings))
        self.host.allow(length)

    def vllm(self, adapter: Path | None = None) -> Any:
        from cme_bench.engines.vllm.adapter import read_gated
        from cme_bench.engines.vllm.engine import VLLMEngine

        ends = frozenset([self.tokenizer.eos_token_id])
        if adapter is None:
            return VLLMEngine(self.host, self.tokenizer, ends)
        gated = read_gated(adapter, AutoConfig.from_pretrained(self.base))
        file = self.base.parent / f"{adapter.name}.safetensors"
        write_adapter(file, gated.spec, gated.tensors)
        return VLLMEngine(self.host, self.tokenizer, ends, adapter=file, spec=gated.spec)

    def transformers(self, adapter: Path | None = None) -> HFEngine:
        model: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=self.host.dtype)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        return HFEngine(model, self.tokenizer, plain=True)
