"""Dequantising the GGUF file of a bundled model, so that every engine reads plain files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def dequantise(gguf: Path, out: Path, special: Mapping[str, str] | None = None) -> None:
    """Write the model and tokenizer of a GGUF file to the folder ``out``, as bfloat16 safetensors.

    ``special``: tokens that take the place of those that transformers reads from the file, by their role.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for role, token in (special or {}).items():
        setattr(tokenizer, role, token)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
