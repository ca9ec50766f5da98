"""What a GPU replays is what it computes without; only a machine with one runs these tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cme_bench.training.choose import MANNER
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions, method_names
from cme_bench.training.replay import Replay, Run, replaying
from cme_bench.training.sweep.sweep import sweep
from cme_bench.training.train import train
from tests.training.test_loop import MIXED, Lines, furthest, settings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
Make = Callable[..., TrainOptions]
CUDA = torch.device("cuda")
ROUNDING = 1e-3
"""float32 on a GPU sums in another order. AdamW makes a step of any gradient, however small: a number may
differ by half of a step's rate, 2e-3."""


def replay(run: Run) -> tuple[Replay, list[str]]:
    notes: list[str] = []
    return Replay(run, notes.append), notes


def test_inputs_of_every_shape_are_computed_anew() -> None:
    held = torch.zeros(3, device=CUDA)

    def run(inputs: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        held.add_(inputs["x"].sum())
        return inputs["x"].double().sum() * weight

    asked, notes = replay(run)
    total = 0.0
    with replaying(CUDA):
        for number, size in enumerate((4, 4, 4, 7, 4, 7, 7)):
            x = torch.full((size,), float(number), device=CUDA)
            total += number * size
            weight = torch.tensor(number + 1.0, device=CUDA)
            assert float(asked({"x": x}, weight)) == number * size * (number + 1)
            assert held.tolist() == [total] * 3
    assert not notes


def test_random_numbers_go_on() -> None:
    def run(inputs: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        return nn.functional.dropout(inputs["x"]) * weight

    asked, notes = replay(run)
    x, one = torch.ones(1000, device=CUDA), torch.ones((), device=CUDA)
    torch.cuda.manual_seed(3)
    with replaying(CUDA):
        drawn = torch.stack([asked({"x": x}, one) for _ in range(5)])
    assert not notes
    torch.cuda.manual_seed(3)
    assert torch.equal(drawn, torch.stack([nn.functional.dropout(x) for _ in range(5)]))


def test_what_waits_for_the_gpu_is_computed_as_it_is() -> None:
    def run(inputs: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        return inputs["x"][inputs["x"] > 0].sum() * weight

    asked, notes = replay(run)
    one = torch.ones((), device=CUDA)
    with replaying(CUDA):
        for number in (1.0, 2.0, 3.0, 4.0):
            assert float(asked({"x": torch.tensor([number, -1.0], device=CUDA)}, one)) == number
            assert torch.rand(3, device=CUDA).shape == (3,), "random numbers are to be had all the same"
    assert len(notes) == 1 and "not replayed" in notes[0]


@pytest.mark.parametrize("method", method_names())
def test_replayed_steps_are_the_eager_ones(
    method: str, options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = options(method, **settings(method), batches="random")
    monkeypatch.setenv(MANNER, "packs")
    train(eager)
    monkeypatch.setenv(MANNER, "packs+graph")
    replayed = replace(eager, out=tmp_path / "replayed")
    listener = Lines()
    train(replayed, listener)
    assert not [line for line in listener.lines if "not replayed" in line]
    assert furthest(eager.out, replayed.out) < ROUNDING


@pytest.mark.parametrize("method", method_names())
def test_a_sweep_is_the_trainings_of_its_members(
    method: str, options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MANNER, "packs+graph")
    alone = [options(method, seed=s, out=tmp_path / f"alone{s}", **settings(method)) for s in (1, 2)]
    together = [replace(one, out=tmp_path / "swept" / str(one.seed)) for one in alone]
    listener = Lines()
    sweep(together, listener)
    assert not [line for line in listener.lines if "not replayed" in line]
    for one, other in zip(alone, together, strict=True):
        train(one)
        assert furthest(one.out, other.out) < ROUNDING


def test_bfloat16_by_where_examples_begin(options: Make, tmp_path: Path) -> None:
    """The default on a GPU: a training of its own and a sweep follow padded rows in float32, step by step.

    What a step rounds moves a loss by some hundredths; the mean of ten moves by less.
    """
    given = MIXED | {"dtype": "bfloat16", "max_steps": 40, "learning_rate": 0.01, "batches": "even"}
    alone = options("teamlora", **given)
    listener = Lines()
    train(alone, listener)
    assert any("packs of" in line for line in listener.lines)
    together = [replace(alone, seed=s, out=tmp_path / "swept" / str(s)) for s in (0, 1, 2)]
    sweep(together, listener)
    assert not [line for line in listener.lines if "not replayed" in line], listener.lines
    for one in (alone, *together):
        padded = replace(one, dtype="float32", pack_tokens=0, out=tmp_path / "padded" / str(one.seed))
        train(padded)
        curves = [torch.tensor([p.loss for p in read_curve(f.out / "loss.csv")]) for f in (one, padded)]
        assert float(curves[1][:10].mean() - curves[1][-10:].mean()) > 0.5, "something is learnt"
        apart = (curves[0] - curves[1]).view(4, 10)
        assert float(apart.abs().max()) < 0.25 and float(apart.mean(1).abs().max()) < 0.05
