"""The loop for one device makes the Trainer's steps; packs of a fixed length make those of padded batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cme_bench.adapters.registry import routed_names
from cme_bench.runs.progress import Listener
from cme_bench.training import session
from cme_bench.training.choose import MANNER
from cme_bench.training.curve import read_curve
from cme_bench.training.fresh import leave_casts
from cme_bench.training.options import TrainOptions, method_names
from cme_bench.training.train import prepare, train
from cme_bench.util.errors import CmeError, UsageError

Make = Callable[..., TrainOptions]
FAST = ("teamlora",)
METHODS = [m if m in FAST else pytest.param(m, marks=pytest.mark.slow) for m in method_names()]
CLOSE = 1e-5
MIXED = {"datasets": "sst2,rte,winogrande", "batch_size": 2, "learning_rate": 2e-3, "rank": 2}


class Lines(Listener):
    """Keeps what it hears; asks to stop once ``stop`` steps are done."""

    def __init__(self, stop: int | None = None) -> None:
        self.lines: list[str] = []
        self._stop = stop

    def note(self, message: str) -> None:
        self.lines.append(message)

    def start(self, task: str, *, total: int, done: int) -> None:
        self._done = done

    def advance(self, items: int, detail: str = "") -> None:
        self._done += items
        if self._stop is not None and self._done >= self._stop:
            raise KeyboardInterrupt


def settings(method: str) -> dict[str, Any]:
    """All that a step has: accumulation, decay, clipping, and a balance loss where there are experts."""
    balance = 0.1 if method in routed_names() else 0.0
    return {**MIXED, "accumulate": 2, "weight_decay": 0.1, "max_grad_norm": 0.5, "balance_loss": balance}


def furthest(one: Path, other: Path) -> float:
    """The largest difference of two adapters' numbers and of their curves."""
    numbers = [load_file(folder / "adapter_model.safetensors") for folder in (one, other)]
    assert numbers[0].keys() == numbers[1].keys()
    gaps = [float((numbers[0][name] - numbers[1][name]).abs().max()) for name in numbers[0]]
    curves = [read_curve(folder / "loss.csv") for folder in (one, other)]
    for a, b in zip(*curves, strict=True):
        assert (a.step, a.tokens, a.target_tokens) == (b.step, b.tokens, b.target_tokens)
        assert a.lr == pytest.approx(b.lr, rel=1e-6)
        gaps += [abs(a.loss - b.loss) / b.loss, abs(a.balance_loss - b.balance_loss)]
    return max(gaps)


@pytest.mark.parametrize("method", METHODS)
def test_its_steps_are_the_trainers(
    method: str, options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = options(method, **settings(method), dropout=0.1)
    listener = Lines()
    train(mine, listener)
    assert any("steps: one process, one device, padded rows" in line for line in listener.lines)
    theirs = replace(mine, out=tmp_path / "theirs")
    monkeypatch.setenv(MANNER, "trainer")
    listener = Lines()
    train(theirs, listener)
    assert any("transformers' Trainer (as asked)" in line for line in listener.lines)
    assert furthest(mine.out, theirs.out) < CLOSE


@pytest.mark.parametrize("method", METHODS)
def test_packs_train_like_padded_rows(
    method: str, options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a mask, and by an attention that goes by where examples begin; padding counts for nothing."""
    padded = options(method, **settings(method))
    packed = replace(padded, out=tmp_path / "packed", pack_tokens=384)
    varlen = replace(padded, out=tmp_path / "varlen", pack_tokens=384)
    train(padded)
    listener = Lines()
    train(packed, listener)
    assert any("packs of 384 tokens" in line for line in listener.lines)
    monkeypatch.setenv(MANNER, "varlen")
    train(varlen)
    assert furthest(packed.out, padded.out) < CLOSE
    assert furthest(varlen.out, padded.out) < CLOSE


def test_packs_by_default_where_they_are_the_default(
    options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = options("teamlora", **MIXED, max_steps=4)
    train(padded)
    monkeypatch.setenv(MANNER, "packs+varlen")
    listener = Lines()
    packed = replace(padded, out=tmp_path / "packed")
    train(packed, listener)
    assert any("packs of" in line for line in listener.lines)
    assert furthest(packed.out, padded.out) < CLOSE
    listener = Lines()
    train(replace(padded, out=tmp_path / "off", pack_tokens=0), listener)
    assert any("padded rows" in line for line in listener.lines)


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_peft_layers_in_bfloat16_are_tried_without_autocast(
    method: str, options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where casts are left to autocast: the model's forwards before the first step have none."""
    mine = options(method, **settings(method), dtype="bfloat16", max_steps=2)
    train(mine)
    left = replace(mine, out=tmp_path / "left")
    monkeypatch.setattr(session, "leave_casts", lambda layers, _: leave_casts(layers, torch.device("cuda")))
    train(left)
    assert furthest(left.out, mine.out) < 0.02


def test_a_row_longer_than_a_pack_is_named(options: Make) -> None:
    with pytest.raises(UsageError, match=r"train\.jsonl:\d+: \d+ tokens .*--pack-tokens 33"):
        train(options("lora", pack_tokens=33))
    for given, message in (
        ({"pack_tokens": 300, "pack": 2}, "--pack and --pack-tokens"),
        ({"pack_tokens": -1}, "--pack-tokens: a whole number of at least 0"),
        ({"liger": True}, "--liger: its kernels run on a GPU"),
    ):
        with pytest.raises(UsageError, match=message) as refused:
            train(options("lora", **given))
        assert "\n" not in str(refused.value) and refused.value.exit_code == 2


def test_a_row_that_fills_its_pack_and_rows_of_one_are_packed(options: Make, tmp_path: Path) -> None:
    """Edges of packs: an example as long as one, and a batch of one example."""
    padded = options("teamlora", **(MIXED | {"batch_size": 1}), max_steps=3)
    train(padded)
    longest = int(prepare(replace(padded, out=tmp_path / "none"), Lines()).plan.examples.lengths.max())
    packed = replace(padded, out=tmp_path / "packed", pack_tokens=longest)
    train(packed)
    assert furthest(packed.out, padded.out) < CLOSE


@pytest.mark.slow
def test_a_training_that_the_trainer_began_is_gone_on_with_by_it(
    options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options("lora", max_steps=6, save_every=2, log_every=1)
    monkeypatch.setenv(MANNER, "trainer")
    with pytest.raises(KeyboardInterrupt):
        train(chosen, Lines(stop=3))
    whole = train(replace(chosen, out=tmp_path / "whole"))
    monkeypatch.delenv(MANNER)
    listener = Lines()
    train(chosen, listener)
    assert "resuming at step 2/6" in listener.lines
    assert furthest(chosen.out, whole) == 0


def test_its_checkpoint_is_not_lost_to_the_trainer(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = options("lora", max_steps=6, save_every=2, log_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, Lines(stop=3))
    monkeypatch.setenv(MANNER, "trainer")
    with pytest.raises(UsageError, match=r"step\.pt: the training began without transformers' Trainer"):
        train(chosen)
    monkeypatch.delenv(MANNER)
    state = chosen.out / "checkpoints" / "step.pt"
    held = state.read_bytes()
    state.write_bytes(held[: len(held) // 2])
    with pytest.raises(CmeError, match=r"step\.pt: cannot be read"):
        train(chosen)
    state.write_bytes(held)
    listener = Lines()
    train(chosen, listener)
    assert "resuming at step 2/6" in listener.lines


def test_unknown_manners_are_refused(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    for said, message in (
        ("fast", "unknown fast"),
        ("graph", "graph is for a CUDA GPU"),
        ("trainer+packs", "trainer stands alone"),
    ):
        monkeypatch.setenv(MANNER, said)
        with pytest.raises(UsageError, match=message):
            train(options("lora", max_steps=1))
