"""Weights are loaded while questions are planned: the same answers, the same errors, none in vain."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from cme_bench.models import loaded
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import run
from cme_bench.util.errors import CmeError, UsageError


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that load weights, as they do."""
    names: list[str] = []
    real = loaded.load_model

    def load_model(*args: Any, **settings: Any) -> Any:
        names.append(threading.current_thread().name)
        return real(*args, **settings)

    monkeypatch.setattr(loaded, "load_model", load_model)
    return names


def asked(model: Path, out: Path, **changes: Any) -> RunOptions:
    settings: dict[str, Any] = {"tasks": "cme_rte_ll", "data": "mini", "limit": 3, "out": out} | changes
    return RunOptions(model=str(model), **settings)


def test_weights_are_loaded_beside_the_planning_once(
    tiny_checkpoint: Path, tmp_path: Path, loads: list[str]
) -> None:
    run(asked(tiny_checkpoint, tmp_path / "r"))
    assert loads == ["cme-bench-early"]


def test_a_run_that_has_begun_loads_weights_only_if_something_is_left_to_ask(
    tiny_checkpoint: Path, tmp_path: Path, loads: list[str]
) -> None:
    for limit in (3, 3, 4):
        run(asked(tiny_checkpoint, tmp_path / "r", limit=limit))
    assert loads == ["cme-bench-early", "MainThread"]


@pytest.fixture
def unloadable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that no check of the files finds fault with, and that do not load."""

    def load_model(*_: Any, **__: Any) -> Any:
        raise CmeError("the weights do not fit")

    monkeypatch.setattr(loaded, "load_model", load_model)


@pytest.mark.usefixtures("unloadable")
def test_weights_that_do_not_load_are_the_error_of_the_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CmeError, match=r"^the weights do not fit$"):
        run(asked(tiny_checkpoint, tmp_path / "r"))


@pytest.mark.usefixtures("unloadable")
def test_prompts_that_may_not_be_cut_are_refused_whatever_the_weights_do(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"tasks": "cme_squad", "limit": 12, "settings": {"max_length": 250}}
    with pytest.raises(UsageError, match="do not fit the model's context"):
        run(asked(tiny_checkpoint, tmp_path / "r", **changes, max_truncated=0))
