"""Adapters trained together equal those that are trained alone: losses and numbers, of every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from cme_bench.adapters.registry import routed_names
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import load_model
from cme_bench.runs.progress import Listener
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions, method_names
from cme_bench.training.prepared import Prepared
from cme_bench.training.sweep.crew import Crew
from cme_bench.training.train import prepare, train

Make = Callable[..., TrainOptions]
STEPS = 20


def members(options: Sequence[TrainOptions]) -> list[Prepared]:
    return [prepare(each, Listener()) for each in options]


def base_of(options: TrainOptions) -> PreTrainedModel:
    model = load_model(resolve_model(options.model, offline=True), torch.float32, torch.device("cpu"))
    model.config.use_cache = False
    return model.train()


def pair(options: Make, method: str, tmp_path: Path, **changes: Any) -> list[TrainOptions]:
    """Two seeds with two learning rates, everything on that a step can have."""
    balance = {"balance_loss": 0.01} if method in routed_names() else {}
    given = {"dropout": 0.1, "weight_decay": 0.1, "accumulate": 2, "batch_size": 3, "max_steps": STEPS}
    given |= balance | changes
    return [
        options(method, seed=s, out=tmp_path / f"{method}-{s}", learning_rate=2e-3 * s, **given)
        for s in (1, 2)
    ]


def check_equal_to_alone(crew: Crew, losses: Sequence[Sequence[float]]) -> None:
    for number, (member, curve) in enumerate(zip(crew.members, losses, strict=True)):
        folder = train(member.options)
        alone = [point.loss for point in read_curve(folder / "loss.csv")]
        assert curve == pytest.approx(alone, abs=1e-5), member.name
        with crew.alone(number) as model:
            mine = get_peft_model_state_dict(model)
        theirs = load_file(folder / "adapter_model.safetensors")
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-4, msg=f"{member.name} {name}")


def advance(crew: Crew, steps: int) -> list[list[float]]:
    """Return the loss of every step, by member."""
    sums = torch.stack([crew.advance() for _ in range(steps)])
    return (sums[..., 0] / sums[..., 1]).T.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("method", method_names())
def test_seeds_of_one_method_are_computed_as_one(method: str, options: Make, tmp_path: Path) -> None:
    asked = pair(options, method, tmp_path)
    crew = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    assert len(crew._together.groups) == (2 if method == "mixlora" else 1)
    check_equal_to_alone(crew, advance(crew, STEPS))


@pytest.mark.slow
def test_methods_of_all_kinds_in_one_pass(options: Make, tmp_path: Path) -> None:
    asked = [
        pair(options, method, tmp_path, targets="attention" if i % 2 else "ffn")[0]
        for i, method in enumerate(method_names())
    ]
    asked += [replace(asked[-1], seed=7, batch_size=2, out=tmp_path / "fewer-rows")]
    crew = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    check_equal_to_alone(crew, advance(crew, STEPS))


@pytest.mark.slow
def test_packed_rows_too(options: Make, tmp_path: Path) -> None:
    asked = pair(options, "teamlora", tmp_path, pack=200)
    crew = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    check_equal_to_alone(crew, advance(crew, STEPS))


@pytest.mark.slow
def test_packs_of_one_width_too(options: Make, tmp_path: Path) -> None:
    """All members get as many packs as one needs. Dropout, off here, draws for the padding too."""
    asked = pair(options, "teamlora", tmp_path, pack_tokens=384, dropout=0.0)
    asked += pair(options, "lora", tmp_path, pack_tokens=384, targets="all-linear", dropout=0.0)[:1]
    crew = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    made = [crew._making(step) for step in range(3)]
    assert all(len(set(turn.sizes)) == 1 and set(turn.widths) == {384} for m in made for turn in m.turns)
    check_equal_to_alone(crew, advance(crew, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["teamlora", "adalora"])
def test_a_crew_goes_on_bit_for_bit(method: str, options: Make, tmp_path: Path) -> None:
    asked = pair(options, method, tmp_path)
    whole = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    losses = advance(whole, STEPS)
    first = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    advance(first, 7)
    rest = Crew(base_of(asked[0]), members(asked), step=7, states=first.states(), bf16=False)
    assert advance(rest, STEPS - 7) == [curve[7:] for curve in losses]
    for name, state in whole.states().items():
        for part in ("values", "means", "squares", "generator"):
            assert torch.equal(state[part], rest.states()[name][part])


def test_one_that_diverges_leaves_the_others_alone(options: Make, tmp_path: Path) -> None:
    asked = pair(options, "teamlora", tmp_path)
    asked[1] = replace(asked[1], learning_rate=1e20)
    crew = Crew(base_of(asked[0]), members(asked), step=0, states={}, bf16=False)
    losses = advance(crew, STEPS)
    assert not torch.tensor(losses[1]).isfinite().all()
    folder = train(asked[0])
    assert losses[0] == pytest.approx([p.loss for p in read_curve(folder / "loss.csv")], abs=1e-5)


def test_the_base_is_given_back_as_it_was(options: Make, tmp_path: Path) -> None:
    asked = pair(options, "lora", tmp_path)
    base = base_of(asked[0])
    before = {name: type(module) for name, module in base.named_modules()}
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    crew = Crew(base, members(asked), step=0, states={}, bf16=False)
    advance(crew, 2)
    crew.close()
    assert {name: type(module) for name, module in base.named_modules()} == before
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())
