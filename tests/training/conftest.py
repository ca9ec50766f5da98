"""What the training tests share: options of a training that takes a second or two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cme_bench.training.options import TrainOptions


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., TrainOptions]:
    """``make(method, **changes)``: twenty steps on the same five short reviews, into ``tmp_path/method``."""

    def make(method: str = "teamlora", **changes: Any) -> TrainOptions:
        settings: dict[str, Any] = {
            "model": str(tiny_checkpoint),
            "out": tmp_path / method,
            "data": "mini",
            "datasets": "sst2",
            "rank": 4,
            "dropout": 0.0,
            "max_length": 256,
            "max_steps": 20,
            "batch_size": 5,
            "learning_rate": 2e-2,
            "log_every": 5,
            "dtype": "float32",
            "offline": True,
        }
        return TrainOptions(method=method, **(settings | changes))

    return make
