"""The busiest expert of every layer alone: the adapter that is left, and its place in a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from cme_bench.adapters.methods.moelora import MoeLoraConfig, MoeLoraLinear, one_expert
from cme_bench.adapters.routing.router import Routing
from cme_bench.experiments.reproduce.claims import paper_numbers
from cme_bench.experiments.reproduce.jobs import Folder, all_jobs
from cme_bench.experiments.reproduce.options import CallOptions
from cme_bench.experiments.reproduce.recipe import read_recipe
from cme_bench.experiments.reproduce.reproduce import reproduce
from cme_bench.experiments.reproduce.score_claims import score_claims
from cme_bench.experiments.reproduce.state import whole_jobs
from cme_bench.training.fresh import put_fresh
from cme_bench.util.errors import UsageError

ROW = "  moelora-busiest: {title: One expert, busiest_of: moelora-32}\n"


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, **sizes)).eval()


def test_it_is_the_adapter_whose_gate_is_all_of_that_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MoeLoraConfig(
        r=4, alpha=12.0, num_experts=3, init="random", target_modules=["up_proj", "down_proj"]
    )
    model = put_fresh(llama(), config)
    model.save_pretrained(tmp_path / "whole")
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if isinstance(layer, MoeLoraLinear)
    }
    chosen = {name: number % 3 for number, name in enumerate(layers)}
    of_layer = {id(layer): chosen[name] for name, layer in layers.items()}

    def all_of_one(self: MoeLoraLinear, logits: Tensor, adapter_name: str) -> Routing:
        one = torch.zeros_like(logits)
        one[..., of_layer[id(self)]] = 1.0
        return Routing(one, one)

    plain, tensors = one_expert(config, load_file(tmp_path / "whole" / "adapter_model.safetensors"), chosen)
    plain.save_pretrained(tmp_path / "one")
    save_file(tensors, tmp_path / "one" / "adapter_model.safetensors")
    monkeypatch.setattr(MoeLoraLinear, "weigh", all_of_one)
    monkeypatch.setattr(MoeLoraLinear, "_as_written", False)  # so that it is asked
    ids = torch.arange(24).view(2, 12)
    with torch.no_grad():
        wanted = model(ids).logits
        found = PeftModel.from_pretrained(llama(), tmp_path / "one")(ids).logits
        assert not torch.allclose(found, llama()(ids).logits, atol=1e-3)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{busiest_of: nothing}", "'nothing', which is no row above it"),
        ("{busiest_of: lora}", "busiest_of names 'lora', which is no MoELoRA"),
        ("{busiest_of: moelora-32, rank: 8}", "give it a title and no more"),
    ],
)
def test_rows_that_cannot_be_made(changed: Callable[[str, str], Path], row: str, message: str) -> None:
    file = changed("main: [lora", f"  one: {row}\nmain: [lora")
    with pytest.raises(UsageError, match=message) as error:
        read_recipe(file, "one")
    assert "recipe.yaml:" in str(error.value)


def test_its_jobs_and_its_claim(changed: Callable[[str, str], Path]) -> None:
    recipe = read_recipe(changed("main: [lora", f"{ROW}main: [lora"), "one")
    [job] = [job for job in all_jobs(recipe) if job.row == "moelora-busiest"]
    assert (job.kind, job.needs) == ("evaluate", ("train-moelora-32-seed0",))
    [claim] = [c for c in score_claims(recipe, paper_numbers()) if "moelora-busiest" in (c.a, c.b)]
    assert (claim.b, claim.kind) == ("moelora-32", "higher") and claim.reported == pytest.approx(
        0.895, abs=0.01
    )
    with pytest.raises(UsageError, match="is made of moelora-32, left out"):
        read_recipe(changed("only: [moelora-32, teamlora-32]", "only: [moelora-busiest]"), "few")


@pytest.mark.slow
def test_in_a_recipe(changed: Callable[[str, str], Path], tmp_path: Path) -> None:
    file = changed("main: [lora", f"{ROW}main: [lora")
    file = changed(
        "only: [moelora-32, teamlora-32]", "only: [moelora-32, moelora-busiest]\n    keep_weights: false"
    )
    recipe, out = read_recipe(file, "few"), tmp_path / "out"
    reproduce(recipe, CallOptions(out, offline=True), lambda _: None)
    adapters = sorted(folder.name for folder in (out / "adapters").iterdir())
    assert adapters == [f"{row}-seed{s}" for row in ("moelora-32", "moelora-busiest") for s in (0, 1)]
    assert not list((out / "adapters").rglob("*.safetensors")), "weights go when all that needs them is done"
    assert "One expert" in (out / "claims.md").read_text()
    folder = Folder(out)
    folder.marker("evaluate-moelora-busiest-seed1").unlink()
    assert "train-moelora-32-seed1" not in {job.name for job in whole_jobs(recipe, folder)}
