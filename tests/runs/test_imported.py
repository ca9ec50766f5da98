"""A checkpoint of another repository: imported, run, in a table, and in the form of vLLM's plugin."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaForCausalLM
from typer.testing import CliRunner

from cme_bench.adapters.convert import import_adapter
from cme_bench.adapters.errors import AdapterError
from cme_bench.cli import app
from cme_bench.engines.vllm.adapter import read_gated
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from tests.support import foreign_checkpoints as foreign
from tests.support.foreign_checkpoints import FFN, Foreign, linears
from tests.support.vllm_fields import applied, logits, peft_logits

TASK = "cme_arc_easy_ll"
MADE: dict[str, Callable[[nn.Module], Foreign]] = {
    "hydralora": lambda base: foreign.hydralora(base, linears(base, FFN)),
    "loramoe": lambda base: foreign.loramoe(base, linears(base, FFN)),
    "moslora": lambda base: foreign.moslora(base, linears(base, (*FFN, "q_proj"))),
    "mixlora": lambda base: foreign.mixlora(base, linears(base, (*FFN, "q_proj"))),
}


def imported(name: str, base: Path, folder: Path) -> tuple[Foreign, Path]:
    torch.manual_seed(5)
    made = MADE[name](LlamaForCausalLM.from_pretrained(base))
    out = folder / f"{name}-ours"
    import_adapter(made.write(folder / name), out, str(base))
    return made, out


def test_imported_run_and_in_a_table(tiny_checkpoint: Path, tmp_path: Path) -> None:
    found = {name: imported(name, tiny_checkpoint, tmp_path) for name in ("hydralora", "mixlora")}
    options = RunOptions(
        str(tiny_checkpoint),
        tasks=TASK,
        data="mini",
        limit=2,
        dtype="float32",
        offline=True,
        bos="never",
        adapters=tuple(str(out) for _, out in found.values()),
        out=tmp_path / "runs",
    )
    folders = run(options)
    table = CliRunner().invoke(app, ["table", *map(str, folders)])
    assert table.exit_code == 0, table.output
    for (made, out), folder in zip(found.values(), folders, strict=True):
        assert out.name in table.output and made.method in table.output
        # the first item's likelihoods are those of the original's equations
        record = next(iter(read_records(samples_file(folder, TASK))))
        assert record.response.logprobs is not None
        model = made.applied_to(LlamaForCausalLM.from_pretrained(tiny_checkpoint).eval())
        assert record.response.logprobs == pytest.approx(_scored(model, tiny_checkpoint, record), abs=1e-3)


@torch.no_grad()
def _scored(model: nn.Module, base: Path, record: object) -> list[float]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    found = []
    for choice in record.choices:  # type: ignore[attr-defined]
        context = tokenizer(record.prompt)["input_ids"]  # type: ignore[attr-defined]
        ids = tokenizer(f"{record.prompt} {choice.lstrip()}")["input_ids"]  # type: ignore[attr-defined]
        table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(sum(float(table[i - 1, ids[i]]) for i in range(len(context), len(ids))))
    return found


@pytest.mark.parametrize("name", MADE)
def test_in_the_form_of_vllms_plugin(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    _, out = imported(name, tiny_checkpoint, tmp_path)
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    if name == "mixlora":
        with pytest.raises(
            AdapterError, match=r"peft_type MIXLORA: .*whole feed-forward blocks.*--engine hf"
        ):
            read_gated(out, config)
        return
    base = LlamaForCausalLM.from_pretrained(tiny_checkpoint)
    source = random.Random(0)
    ids = torch.tensor([[source.randrange(256) for _ in range(16)]])
    wanted = peft_logits(base, out, ids)
    with applied(base, read_gated(out, config)) as model:
        torch.testing.assert_close(logits(model, ids), wanted, atol=1e-4, rtol=1e-4)
