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

from cme_bench.cli.sweep import sweep as sweep_command
from cme_bench.models.adapter import own_seconds
from cme_bench.runs.progress import Listener
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions
from cme_bench.training.sweep.crew import Crew
from cme_bench.training.sweep.file import read_sweep
from cme_bench.training.sweep.options import SweepOptions
from cme_bench.training.sweep.room import numbers_bytes
from cme_bench.training.sweep.sweep import STATES, _Sweep, sweep
from cme_bench.training.train import finish, frozen_base, prepare, train
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


def test_a_folder_that_cannot_be_written_costs_no_step(
    asked: list[TrainOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that are finished the states are written only then; the next call makes the folders alone."""
    real, made = finish, list[str]()

    def full(model: Any, curve: Any, member: Any, **more: Any) -> None:
        if len(made) == 3:
            raise CmeError("the disk is full")
        made.append(member.name)
        real(model, curve, member, **more)

    monkeypatch.setattr("cme_bench.training.sweep.sweep.finish", full)
    with pytest.raises(CmeError, match="the disk is full"):
        sweep(asked)
    assert made == ["plain-seed0", "plain-seed1", "team-seed0"]
    monkeypatch.setattr("cme_bench.training.sweep.sweep.finish", real)
    monkeypatch.setattr(Crew, "advance", None)
    sweep(asked)
    assert numbers(asked[1].out) and not (tmp_path / "out" / STATES).exists()


def test_the_states_of_the_finished_are_not_written(
    asked: list[TrainOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[str]] = []
    real = Crew.states

    def noted(crew: Crew, names: Any = None) -> Any:
        kept.append(sorted(found := real(crew, names)))
        return found

    monkeypatch.setattr(Crew, "states", noted)
    sweep([replace(one, save_every=3) for one in asked])
    every = sorted(one.out.name for one in asked)
    assert kept == [every, ["team-seed0", "team-seed1"], ["team-seed0", "team-seed1"]], "at 3, 5 and 6"


def test_states_that_cannot_be_written_are_told_of(
    asked: list[TrainOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are written beside the next steps; the next time, or the end, says what failed."""
    real, steps = torch.save, list[int]()

    def full(content: Any, stream: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    advance = Crew.advance
    monkeypatch.setattr(Crew, "advance", lambda crew: (steps.append(crew.step), advance(crew))[1])
    with pytest.raises(CmeError, match=r"cannot write .*\.sweep\.pt \(No space left on device\)"):
        sweep([replace(one, save_every=2) for one in asked])
    assert steps == [0, 1, 2, 3], "steps of 2 to 4 were made beside the writing"
    monkeypatch.setattr(torch, "save", real)
    assert not (tmp_path / "out" / STATES).exists()
    sweep([replace(one, save_every=2) for one in asked])
    assert numbers(asked[0].out)


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


def test_the_command_says_where_its_seconds_went(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of its adapters is an alias of another in the file."""
    file = tmp_path / "sweep.yaml"
    settings = json.dumps(SETTINGS | {"max_steps": 3})
    file.write_text(
        f"model: {tiny_checkpoint}\nsettings: {settings}\n"
        "adapters:\n  a: &a\n    method: lora\n    rank: 2\n  b: *a\n"
    )
    sweep_command(SweepOptions(file, tmp_path / "out", offline=True))
    said = capsys.readouterr()
    (line,) = [line for line in (said.out + said.err).splitlines() if line.startswith("time: ")]
    assert "batches" in line and "first steps" in line
    assert all(
        torch.equal(value, numbers(tmp_path / "out/b")[k]) for k, value in numbers(tmp_path / "out/a").items()
    )


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
    monkeypatch.setattr(Crew, "step_bytes", lambda crew: 10**9 * len(crew.members))
    monkeypatch.setattr("cme_bench.training.sweep.sweep.free_bytes", lambda device: 3 * 10**9)
    listener = StopAt(10**9)
    sweep(asked, listener)
    assert sizes == [4, 2, 2]
    assert any(
        "a step of 4 adapters keeps about" in note and "2 at a time" in note for note in listener.notes
    )


def test_numbers_that_do_not_fit_are_not_even_made(
    asked: list[TrainOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [prepare(one, Listener()) for one in asked]
    trained = [sum(map(torch.numel, numbers(f).values())) for f in sweep(asked)]
    assert [member.trained for member in members] == trained
    assert numbers_bytes(members) == 20 * sum(trained)
    sizes: list[int] = []
    monkeypatch.setattr(_Sweep, "_train_crew", lambda _, members: (sizes.append(len(members)), ([], []))[1])
    monkeypatch.setattr("cme_bench.training.sweep.sweep.free_bytes", lambda device: 15 * sum(trained))
    again = [replace(one, out=one.out.with_name(f"{one.out.name}-again")) for one in asked]
    sweep(again)
    assert sizes == [2, 2]


@pytest.mark.parametrize("method", ["lora", "teamlora", "adalora", "mixlora"])
def test_the_estimate_is_what_autograd_keeps_of_a_step(
    method: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    """Beside weights in other shapes, logits, and what a loss by parameters keeps."""
    given = {"method": method, "rank": 2}
    adapters = {"a": given, "b": given, "c": {"method": "lora", "rank": 3, "batch_size": 6}}
    one, _, other = read_sweep(
        write(tmp_path, tiny_checkpoint, adapters=adapters, vary={}), tmp_path / "out", offline=True
    )
    members = [prepare(each, Listener()) for each in (one, replace(one, out=tmp_path / "b", seed=1), other)]
    base = frozen_base(members[0].base, torch.float32, torch.device("cpu"), one)
    fresh = Crew(base, members, step=0, states={}, bf16=False)
    sums = fresh.advance()
    fresh.close()
    crew = Crew(base, members, step=0, states={}, bf16=False)
    batch = crew._making(0).turns[0]
    _, width = batch.tensors["input_ids"].shape
    assert batch.sizes == [3, 3, 6]
    kept = crew._together.kept_bytes([1, 1, 2], autocast=False)
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        again = crew.advance()
    assert torch.equal(sums, again), "nothing but the estimate is left of it"
    weights = {p.untyped_storage().data_ptr() for p in base.parameters()}
    whole = sum(each.untyped_storage().nbytes() for at, each in held.items() if at not in weights)
    assert whole == pytest.approx(kept * 3 * width, rel=0.35)
    assert crew.step_bytes() >= kept * 3 * width


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
