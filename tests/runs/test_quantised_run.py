"""A quantised base is another model: in a run's folder, in its stored answers and in tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.reports.runs import check_alike, open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.training.options import TrainOptions
from cme_bench.training.train import train
from cme_bench.util.errors import UsageError
from tests.support.tiny_llama import random_llama, save_checkpoint


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def test_a_quantised_base_is_another_model(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    model = random_llama(1, hidden=64, kv_heads=2, positions=1024, tokenizer=toy_tokenizer)
    base = str(save_checkpoint(tmp_path / "base", model, toy_tokenizer))

    def asked(name: str, **options: Any) -> Path:
        settings = {"tasks": "cme_rte_ll", "data": "mini", "limit": 4, "prompt_format": "plain"} | options
        (folder,) = run(RunOptions(base, out=tmp_path / name, offline=True, **settings))
        return folder

    plain, four = asked("plain"), asked("four", quantize="4bit")
    assert "quantised" not in record(plain)["identity"] and "quantisation" not in record(plain)["model"]
    assert (
        record(four)["identity"]["quantised"] == record(four)["model"]["quantisation"] == "bitsandbytes nf4"
    )
    assert record(four)["identity"]["model"] == record(plain)["identity"]["model"]
    for name, options in (("plain", {"quantize": "4bit"}), ("four", {}), ("four", {"quantize": "8bit"})):
        with pytest.raises(UsageError, match="holds a run with quantised"):
            asked(name, **options)
    assert asked("four", quantize="4bit") == four
    adapter = tmp_path / "adapter"
    asked_of = {"method": "lora", "out": adapter, "data": "mini", "datasets": "rte", "max_steps": 1}
    train(TrainOptions(base, quantize="8bit", rank=2, batch_size=2, **asked_of))
    note = "trained with --quantize 8bit, evaluated with --quantize 4bit"
    with_adapter = record(asked("other", quantize="4bit", adapters=(str(adapter),)))
    assert any(note in line for line in with_adapter["notes"])
    runs = [open_run(plain), open_run(four)]
    with pytest.raises(UsageError, match="quantisations of the base differ: bitsandbytes nf4, none"):
        check_alike(runs, allow_mixed=False)
    (table,) = comparison_tables(runs, allow_mixed=True)
    assert [row[0].text for row in table.rows] == ["base", "base (bitsandbytes nf4)"]
    assert any(note.startswith("MIXED: quantisations") for note in table.notes)
    assert any("float32 on bitsandbytes nf4" in note for note in table.notes)
