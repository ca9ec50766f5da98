"""From a sweep file to adapter folders, each an ordinary training's; stopped, the sweep goes on."""

from __future__ import annotations

import json
import os
import signal
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from cme_bench.models.adapter import own_seconds
from cme_bench.runs.progress import Listener
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions
from cme_bench.training.sweep.crew import Crew
from cme_bench.training.sweep.file import read_sweep
from cme_bench.training.sweep.making import layouts
from cme_bench.training.sweep.room import Room
from cme_bench.training.sweep.sweep import STATES, sweep
from cme_bench.training.train import frozen_base, prepare, train
from cme_bench.util.errors import CmeError, InterruptedRun, UsageError

SETTINGS = {"data": "mini", "datasets": "sst2", "dropout": 0.1, "max_length": 256, "max_steps": 8}
SETTINGS |= {"batch_size": 3, "learning_rate": 2e-3, "log_every": 2, "save_every": 100, "dtype": "float32"}
ADAPTERS: dict[str, Any] = {
    "team": {"method": "teamlora", "rank": 2},
    "plain": {"method": "lora", "rank": 4, "max_steps": 5},
}


def write(folder: Path, base: Path, **changes: Any) -> Path:
    content = {"model": str(base), "settings": SETTINGS, "adapters": ADAPTERS, "vary": {"seed": [0, 1]}}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return file


@pytest.fixture
def asked(tmp_path: Path, tiny_checkpoint: Path) -> list[TrainOptions]:
    """Two methods with two seeds each; one method is trained for fewer steps."""
    return read_sweep(write(tmp_path, tiny_checkpoint), tmp_path / "out", offline=True)


class StopAt(Listener):
    """Send this process a signal once so many steps, of all adapters, are written."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.notes = steps, 0, list[str]()

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, items: int, detail: str = "") -> None:
        self.done += items
        if self.done >= self.steps:
            self.steps = 10**9
            os.kill(os.getpid(), signal.SIGTERM)


def numbers(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.slow
def test_every_folder_is_that_of_its_own_training(asked: list[TrainOptions], tmp_path: Path) -> None:
    folders = sweep(asked)
    assert [f.name for f in folders] == ["team-seed0", "team-seed1", "plain-seed0", "plain-seed1"]
    assert not (tmp_path / "out" / STATES).exists()
    for one, folder in zip(asked, folders, strict=True):
        assert train(one) == folder, "the single training finds it finished: the same identity"
        alone = train(replace(one, out=tmp_path / "alone" / folder.name))
        mine, theirs = (json.loads((f / "cme_training.json").read_text()) for f in (folder, alone))
        differ = {"seconds", "together", "arguments", "final_loss", "adapter"}
        assert {k: v for k, v in mine.items() if k not in differ} == {
            k: v for k, v in theirs.items() if k not in differ
        }
        assert mine["together"] == 4 and own_seconds(mine) is None
        assert mine["adapter"]["trainable_parameters"] == theirs["adapter"]["trainable_parameters"]
        points = [(read_curve(f / "loss.csv")) for f in (folder, alone)]
        for ours, other in zip(*points, strict=True):
            assert (ours.step, ours.tokens, ours.target_tokens) == (
                other.step,
                other.tokens,
                other.target_tokens,
            )
            assert (ours.loss, ours.lr) == (pytest.approx(other.loss, abs=1e-5), pytest.approx(other.lr))
        for name, value in numbers(alone).items():
            torch.testing.assert_close(numbers(folder)[name], value, atol=1e-5, rtol=1e-4)


def test_stopped_it_goes_on_bit_for_bit(
    asked: list[TrainOptions], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(InterruptedRun, match="goes on there"):
        sweep(asked, StopAt(12))
    assert (tmp_path / "out" / STATES).exists()
    sweep(asked)
    whole = read_sweep(write(tmp_path, tiny_checkpoint), tmp_path / "whole", offline=True)
    sweep(whole)
    for one, other in zip(asked, whole, strict=True):
        ours, theirs = numbers(one.out), numbers(other.out)
        assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        assert [p.loss for p in read_curve(one.out / "loss.csv")] == [
            p.loss for p in read_curve(other.out / "loss.csv")
        ]


@pytest.mark.slow
def test_processes_of_a_launcher_train_adapters_of_their_own(
    asked: list[TrainOptions], tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, one after the other here, of which one is stopped; then one alone ends the work."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    sweep(asked)
    assert [(one.out / "adapter_model.safetensors").exists() for one in asked] == [True, True, False, False]
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(InterruptedRun):
        sweep(asked, StopAt(6))
    assert os.environ["RANK"] == "1" and (tmp_path / "out" / ".sweep.1.pt").exists()
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    sweep(asked)
    assert not list((tmp_path / "out").glob(".sweep*"))
    whole = read_sweep(write(tmp_path, tiny_checkpoint), tmp_path / "whole", offline=True)
    sweep(whole)
    for one, other in zip(asked, whole, strict=True):
        ours, theirs = numbers(one.out), numbers(other.out)
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)


def test_one_that_diverges_stops_alone(tmp_path: Path, tiny_checkpoint: Path) -> None:
    adapters = ADAPTERS | {"wild": {"method": "teamlora", "rank": 2, "learning_rate": 1e20}}
    asked = read_sweep(
        write(tmp_path, tiny_checkpoint, adapters=adapters, vary={}), tmp_path / "out", offline=True
    )
    with pytest.raises(CmeError, match="the loss of wild was not finite"):
        sweep(asked)
    finished = {one.out.name: (one.out / "adapter_model.safetensors").exists() for one in asked}
    assert finished == {"team": True, "plain": True, "wild": False}


@pytest.mark.slow
def test_out_of_memory_half_of_them_go_on(
    asked: list[TrainOptions], tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for two at a time."""
    advance = Crew.advance
    seen: list[weakref.ref[Crew]] = []

    def limited(crew: Crew) -> torch.Tensor:
        if all(each() is not crew for each in seen):
            assert not [each for each in seen if each() is not None], "the crew before holds no memory"
            seen.append(weakref.ref(crew))
        if len(crew.members) > 2:
            raise torch.OutOfMemoryError
        return advance(crew)

    monkeypatch.setattr(Crew, "advance", limited)
    listener = StopAt(10**9)
    sweep(asked, listener)
    assert "out of memory with 4 adapters at a time: going on with 2" in listener.notes
    assert len(seen) == 3
    monkeypatch.undo()
    whole = read_sweep(write(tmp_path, tiny_checkpoint), tmp_path / "whole", offline=True)
    for one, other in zip(asked, sweep(whole), strict=True):
        for name, value in numbers(other).items():
            torch.testing.assert_close(numbers(one.out)[name], value, atol=1e-5, rtol=1e-4)


def test_what_a_step_keeps_decides_how_many_go_together(
    asked: list[TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an estimate, as on a GPU: all of them where it fits, else parts of equal size, said aloud."""
    sizes: list[int] = []
    start = Crew.__init__

    def noted(crew: Crew, base: Any, members: Any, **more: Any) -> None:
        sizes.append(len(members))
        start(crew, base, members, **more)

    monkeypatch.setattr(Crew, "__init__", noted)
    monkeypatch.setattr(
        "cme_bench.training.sweep.room.Room.bytes", lambda room, members, laid: 100 * len(members)
    )
    monkeypatch.setattr("cme_bench.training.sweep.sweep.free_bytes", lambda device: 300)
    listener = StopAt(10**9)
    sweep(asked, listener)
    assert sizes == [2, 2]
    assert any(
        "a step of 4 adapters keeps about" in note and "2 at a time" in note for note in listener.notes
    )


def test_room_grows_with_the_places_of_a_batch(asked: list[TrainOptions]) -> None:
    few, many = ([prepare(replace(one, batch_size=size), Listener()) for one in asked] for size in (2, 6))
    base = frozen_base(few[0].base, torch.float32, torch.device("cpu"), asked[0])
    room = Room(base, bf16=False)
    needed = [room.bytes(each, layouts(each, base, packed=False)) for each in (few, many)]
    assert 0 < needed[0] < needed[1]
    assert not hasattr(base, "peft_config") and not [n for n, _ in base.named_parameters() if "lora" in n]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"adapters": {"a": {"method": "teamlora", "rnak": 2}}},
            r"sweep.yaml:\d+: unknown option 'rnak'; did you mean 'rank'",
        ),
        (
            {"adapters": {"a": {"method": "teamlorra"}}},
            r"sweep.yaml:\d+: unknown method 'teamlorra'; did you mean 'teamlora'",
        ),
        (
            {"adapters": {"a": {"method": "lora", "rank": "x"}}},
            r"sweep.yaml:\d+: rank: Expected `int`, got `str`",
        ),
        (
            {"adapters": {"a": {"method": "lora", "learning_rate": -1.0}}},
            r"sweep.yaml:\d+: --learning-rate must be above 0",
        ),
        ({"adapters": {"a": {"rank": 2}}}, "adapter 'a' has no method"),
        ({"adapters": {}}, "'adapters' names none"),
        ({"adapters": {"../a": {"method": "lora"}}}, "no name of a folder"),
        ({"vary": {"seed": [0, 0]}}, "'team-seed0' stands twice"),
        ({"vary": {"seed": 3}}, "give a list of values of 'seed'"),
        ({"vary": {"out": ["a"]}}, "unknown option 'out'"),
        ({"adapters": {"a": {"method": "lora", "checkpointing": True}}}, "--checkpointing is for a training"),
        ({"setings": {}}, r"sweep.yaml:\d+: unknown key 'setings'; did you mean 'settings'"),
        (
            {"adapters": {"a": {"method": "lora", "dtype": "bfloat16"}, "b": {"method": "lora"}}},
            "dtype is the base's",
        ),
        (
            {"adapters": {"a": {"method": "lora", "settings": {"modules_to_save": ["norm"]}}}},
            "use cme-bench train for this one",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    changes: dict[str, Any], says: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    with pytest.raises(UsageError, match=says):
        sweep(read_sweep(write(tmp_path, tiny_checkpoint, **changes), tmp_path / "out", offline=True))
