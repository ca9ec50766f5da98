"""Models are built one at a time, and none is loaded in a narrower type than asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from cme_bench.adapters.meta_model import bare_model
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.complete import check_weights
from cme_bench.models.load import count_parameters, load_config, load_model, load_named
from cme_bench.util.building import BUILDING
from cme_bench.util.errors import CmeError

CPU = torch.device("cpu")


def test_nothing_is_built_while_another_thread_builds(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' default dtype is that of the whole process."""
    checkpoint = resolve_model(str(tiny_checkpoint), offline=True)
    config = load_config(checkpoint)
    free: list[bool] = []
    own = LlamaForCausalLM.__init__

    def ask() -> None:
        free.append(BUILDING.acquire(blocking=False))
        if free[-1]:
            BUILDING.release()

    def counted(self: Any, *given: Any, **named: Any) -> None:
        asking = threading.Thread(target=ask)  # a lock that this thread holds cannot be had by another
        asking.start()
        asking.join()
        own(self, *given, **named)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", counted)
    count_parameters(config)
    bare_model(config)
    check_weights(tiny_checkpoint, config)
    load_model(checkpoint, torch.float32, CPU)
    load_named(str(tiny_checkpoint), "float32", note=lambda _: None)
    assert len(free) >= 5 and not any(free)


def test_a_weight_that_is_narrower_than_asked_for_is_an_error(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LlamaForCausalLM.from_pretrained.__func__  # type: ignore[attr-defined]

    def narrowed(cls: Any, *given: Any, **named: Any) -> Any:
        model, info = own(cls, *given, **named)
        model.model.norm.to(torch.bfloat16)
        return model, info

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(narrowed))
    checkpoint = resolve_model(str(tiny_checkpoint), offline=True)
    with pytest.raises(
        CmeError, match=r"model\.norm\.weight was loaded as torch\.bfloat16, and not as torch\.float32"
    ):
        load_model(checkpoint, torch.float32, CPU)
    assert load_model(checkpoint, torch.bfloat16, CPU).dtype == torch.bfloat16
