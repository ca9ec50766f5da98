"""Adapters that are published with their weights: rounded before they are evaluated, carried, loadable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cme_bench.adapters.load import load_adapter
from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.kept import FILES
from cme_bench.experiments.reproduce.options import CallOptions
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.experiments.reproduce.reproduce import reproduce
from cme_bench.experiments.reproduce.state import State
from cme_bench.models.checkpoint import hash_checkpoint
from cme_bench.util.errors import UsageError


@pytest.mark.slow
def test_the_adapter_that_was_scored_is_published(
    changed: Callable[[str, str], Path], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    file = changed(
        "    seeds: 2\n", "    seeds: 2\n    kept: [teamlora-32]\n    keep_weights: false\n    routers: []\n"
    )
    recipe, out, published = read_recipe(file, "few"), tmp_path / "out", tmp_path / "published"
    call = CallOptions(out, state=tmp_path / "state", published=published, offline=True)
    reproduce(recipe, call, lambda _: None)
    weights = sorted(str(f.parent.relative_to(published)) for f in published.rglob("*.safetensors"))
    assert weights == ["adapters/teamlora-32-seed0"]
    adapter = published / weights[0]
    assert all((adapter / name).is_file() for name in FILES)
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    trained = Folder(out).outcome("train-teamlora-32-seed0")
    assert trained["sha256"] == hash_checkpoint(adapter), "what was evaluated"
    load_adapter(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), adapter)
    there = Folder(tmp_path / "there")
    there.path.mkdir()
    State(tmp_path / "state").unpack(there)
    carried = load_file(there.adapter("teamlora-32", 0) / "adapter_model.safetensors")
    assert all(torch.equal(carried[name], t) for name, t in tensors.items())


def test_what_is_kept_is_a_row(changed: Callable[[str, str], Path]) -> None:
    with pytest.raises(UsageError, match="kept names 'teamlora-31', which is no row"):
        read_recipe(changed("main: [lora", "kept: [teamlora-31]\nmain: [lora"), "one")
