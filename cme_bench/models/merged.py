"""A base model with an adapter merged into its weights, as a checkpoint of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cme_bench.adapters.liveness import check_liveness
from cme_bench.adapters.load import load_adapter
from cme_bench.models.folder import own_entries
from cme_bench.models.load import load_model
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from cme_bench.models.checkpoint import Checkpoint

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_PROBE = range(1, 17)


def write_merged(
    base: Checkpoint,
    adapter: Path,
    out: Path,
    *,
    probe: Sequence[int] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write the base with ``adapter`` merged into its weights, in float32, in which nothing is rounded away.

    Args:
        base: The base model; its other files are copied.
        adapter: Folder of an adapter that PEFT can merge.
        out: Folder to write; new or empty.
        probe: Token ids on which the adapter must change a logit; a few by default.
        tokenizer: The adapter's own, where it is not the base's.

    Raises UsageError if ``out`` is not empty, AdapterError as ``load_adapter`` does, or if the adapter
    changes no logit.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; choose another folder")
    model = load_adapter(load_model(base, torch.float32, torch.device("cpu")), adapter)
    check_liveness(model, torch.tensor([list(probe or _PROBE)]), name=adapter.name)
    out.mkdir(parents=True, exist_ok=True)
    for entry in own_entries(base.path):
        if entry.is_file() and entry.suffix not in _WEIGHTS and not entry.name.endswith(".index.json"):
            shutil.copyfile(entry.resolve(), out / entry.name)
    model.merge_and_unload(safe_merge=True).save_pretrained(out)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
