"""No model is still being loaded when a command gives up: whoever loads one next knows of no lock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedModel

from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import RunOptions
from cme_bench.runs.runner import ask, run
from cme_bench.training.options import TrainOptions
from cme_bench.training.sweep.sweep import sweep
from cme_bench.training.train import train
from cme_bench.util.building import build_early, builds_end
from cme_bench.util.errors import UsageError

Made = Callable[[Path, Path], Callable[[], object]]


def bad_run(model: Path, out: Path) -> Callable[[], object]:
    return lambda: run(cut(model, out))


def bad_ask(model: Path, out: Path) -> Callable[[], object]:
    def asked() -> None:
        options = cut(model, out)
        with open_engines(options) as engines:
            ask(engines, options)

    return asked


def cut(model: Path, out: Path) -> RunOptions:
    """Return a run whose prompts may not be cut, which is found out once they are made."""
    return RunOptions(
        model=str(model), tasks="cme_squad", data="mini", limit=12, out=out / "r", offline=True,
        settings={"max_length": 250}, max_truncated=0,
    )  # fmt: skip


def too_long(model: Path, out: Path) -> TrainOptions:
    """Return a training whose rows are found to be too long, each of them."""
    return TrainOptions(
        method="lora", model=str(model), out=out / "a", data="mini", datasets="sst2", rank=4, max_length=256,
        pack_tokens=16, offline=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "made",
    [
        bad_run,
        bad_ask,
        lambda model, out: lambda: train(too_long(model, out)),
        lambda model, out: lambda: sweep([too_long(model, out)]),
    ],
    ids=["run", "ask", "train", "sweep"],
)
def test_a_command_that_gives_up_waits_for_what_it_began_to_load(
    made: Made, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ties, own = PreTrainedModel.tie_weights, LlamaForCausalLM.__init__
    began: list[str] = []

    def slow(self: Any, *given: Any, **named: Any) -> None:
        began.append(threading.current_thread().name)
        time.sleep(0.5)
        own(self, *given, **named)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", slow)
    with pytest.raises(UsageError):
        made(tiny_checkpoint, tmp_path)()
    assert "cme-bench-early" in began, "nothing was loaded early, and this shows nothing"
    assert "cme-bench-early" not in {thread.name for thread in threading.enumerate()}
    assert PreTrainedModel.tie_weights is ties


def test_builds_of_an_outer_block_are_not_waited_for_by_an_inner_one() -> None:
    free = threading.Event()
    with builds_end():
        outer = build_early(free.wait)
        with builds_end():
            assert build_early(lambda: 7).result() == 7
        free.set()
    assert outer.result()
