"""The base and the equal plans that several trainings share: checked, read and made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from peft import PeftConfig

from cme_bench.models.checkpoint import Checkpoint
from cme_bench.training.book import Book
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import ItemSet, TrainingPlan
from cme_bench.training.tokens import TrainingEncoder

_OF_THE_ADAPTER = frozenset(
    """method out rank experts alpha dropout targets preset scaling collaboration competition balance_loss
    settings learning_rate warmup weight_decay max_grad_norm save_dtype save_every log_every report_to
    report_project""".split()
)
"""Options that decide neither the base nor which examples are made of the rows, and when. Any other does."""
_OF_THE_BASE = ("model", "offline", "quantize", "device_map", "liger")


def settings_key(adapter: PeftConfig) -> str:
    """Return a text that adapters of equal settings have."""
    return json.dumps(adapter.to_dict(), sort_keys=True, default=str)


class Shared:
    """Makes once what several trainings can share; a training of its own shares nothing."""

    def __init__(self) -> None:
        self._bases: dict[str, tuple[Checkpoint, Any, Any]] = {}
        self._fitting: dict[str, int] = {}
        self._book: Book | None = None
        self._encoders: dict[str, TrainingEncoder] = {}
        self._plans: dict[tuple[str, int], tuple[Sequence[ItemSet], TrainingPlan]] = {}

    def base(
        self, options: TrainOptions, check: Callable[[], tuple[Checkpoint, Any, Any]]
    ) -> tuple[Checkpoint, Any, Any]:
        """Return the base of a training, its config and its tokenizer, checked once."""
        key = repr([getattr(options, name) for name in _OF_THE_BASE])
        if key not in self._bases:
            self._bases[key] = check()
        return self._bases[key]

    def fit(self, adapter: PeftConfig, check: Callable[[], int]) -> int:
        """Check an adapter's fit on the base; those that differ in numbers' start alone are checked once.

        Return what ``check`` does: how many numbers are trained.
        """
        key = settings_key(adapter)
        if key not in self._fitting:
            self._fitting[key] = check()
        return self._fitting[key]

    def book(self, make: Callable[[], Book | None]) -> Book | None:
        """Return what numbers the images of all trainings, made for the first that shows some."""
        if self._book is None:
            self._book = make()
        return self._book

    def encoder(self, options: TrainOptions, make: Callable[[], TrainingEncoder]) -> TrainingEncoder:
        """Return what tokenises the rows of a training: of several seeds' it knows most words already.

        ``options``: with the format that is used.
        """
        key = repr([getattr(options, name) for name in (*_OF_THE_BASE, "prompt_format", "max_length", "bos")])
        key += str(id(self._book))
        if key not in self._encoders:
            self._encoders[key] = make()
        return self._encoders[key]

    def plan(
        self, options: TrainOptions, sets: Sequence[ItemSet], make: Callable[[], TrainingPlan]
    ) -> TrainingPlan:
        """Return the plan of a training with these rows; those that differ in the adapter alone share one."""
        names = [field.name for field in fields(options) if field.name not in _OF_THE_ADAPTER]
        key = repr([getattr(options, name) for name in names]), id(sets)
        if key not in self._plans:
            self._plans[key] = sets, make()  # the rows are kept, so that no other has their id
        return self._plans[key][1]
