"""A training in trackers, offline, as each tracker's own package reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cme_bench.runs.progress import Listener
from cme_bench.trackers import Entry, open_trackers
from cme_bench.trackers.entry import flat
from cme_bench.training.curve import read_curve
from cme_bench.training.options import TrainOptions, check_options
from cme_bench.training.sweep.sweep import sweep
from cme_bench.training.train import train
from cme_bench.util.errors import UsageError
from tests.support import tracked

Make = Callable[..., TrainOptions]
ALL = ("trackio", "wandb", "mlflow", "tensorboard")


class Told(Listener):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.slow
@pytest.mark.usefixtures("tracker_places")
def test_every_tracker_has_every_step(options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = options(max_steps=4, log_every=2, balance_loss=0.01, report_to=ALL, report_project="of-a-test")
    told = Told()
    folder = train(asked, told)
    assert not [note for note in told.notes if "left out" in note]
    curve = read_curve(folder / "loss.csv")
    name = f"{folder.name}-{json.loads((folder / 'trackers.json').read_bytes())['id'][:6]}"
    kept = {
        "trackio": tracked.by_trackio("of-a-test", name)[0],
        "wandb": tracked.by_wandb(folder),
        "mlflow": tracked.by_mlflow("of-a-test")[0],
        "tensorboard": tracked.by_tensorboard(folder)[0],
    }
    for tracker, values in kept.items():
        assert values["train/loss"] == {p.step: pytest.approx(p.loss, rel=1e-6) for p in curve}, tracker
        assert values["train/learning_rate"] == {p.step: pytest.approx(p.lr, rel=1e-6) for p in curve}
        assert values["router/balance_loss"] == {
            p.step: pytest.approx(p.balance_loss, rel=1e-6) for p in curve
        }
        assert set(values["train/tokens_per_second"]) == {1, 2, 3, 4}
        assert all(0 < gib < 100 for gib in values["train/memory_gib"].values())
    assert tracked.by_mlflow("of-a-test")[1]["learning_rate"] == "0.02"


@pytest.mark.slow
@pytest.mark.usefixtures("tracker_places")
def test_a_sweep_reports_each_adapter(options: Make, tmp_path: Path) -> None:
    asked = [
        options(out=tmp_path / f"s{seed}", seed=seed, max_steps=3, report_to=("tensorboard",))
        for seed in (0, 1)
    ]
    for folder in sweep(asked):
        curve = read_curve(folder / "loss.csv")
        losses = tracked.by_tensorboard(folder)[0]["train/loss"]
        assert losses == {p.step: pytest.approx(p.loss, rel=1e-6) for p in curve}


def test_a_tracker_that_is_absent_or_unknown_is_said_first(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cme_bench.trackers import names

    with pytest.raises(UsageError, match="unknown tracker 'trackioo'; did you mean 'trackio'"):
        check_options(options(report_to=("trackioo",)))
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"wandb needs wandb: pip install 'cme-bench\[trackers\]'"):
        check_options(options(report_to=("wandb",)))


def test_reporting_is_no_part_of_what_is_trained(options: Make) -> None:
    assert options().identity() == options(report_to=("trackio",), report_project="other").identity()


class Broken:
    """A tracker that fails, with a token in what it says."""

    def log(self, values: Any, step: int) -> None:
        raise ConnectionError("no answer to hf_abcdefghijklmnop")

    def table(self, *_: Any) -> None:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def test_one_that_fails_is_told_of_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cme_bench.trackers import tensorboard_entry

    entry = Entry("p", "0" * 16, tmp_path, {})
    monkeypatch.setattr(tensorboard_entry, "open_entry", lambda entry: Broken())
    told: list[str] = []
    trackers = open_trackers(["tensorboard"], entry, told.append)
    for step in (1, 2):
        trackers.log({"a": 1.0}, step)
    trackers.close()
    assert told == ["--report-to tensorboard failed and is left out: no answer to (hub token)"]

    def refuses(entry: Entry) -> Broken:
        raise ConnectionError("hf_abcdefghijklmnop is no key\nmore")

    monkeypatch.setattr(tensorboard_entry, "open_entry", refuses)
    with pytest.raises(UsageError, match=r"^--report-to tensorboard: \(hub token\) is no key$"):
        open_trackers(["tensorboard"], entry)


def test_settings_are_flat() -> None:
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": "x"}
    assert flat(nested) == {"a/b": 1, "a/c": "1, 2", "e": "x"}
