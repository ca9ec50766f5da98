"""A training whose rows are drawn and tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peft import PeftConfig

from cme_bench.models.checkpoint import Checkpoint
from cme_bench.training.book import Book
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import TrainingPlan
from cme_bench.util.early import Early

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training that is about to begin.

    ``content``: the record of it; ``pad_token``: fills its batches. ``finished``: its folder holds it, whole.
    ``trained``: how many numbers it trains.
    ``loading``: the base as adapters are put on it, where its weights are being loaded already; ``book``: the
    images of its rows.
    """

    options: TrainOptions
    base: Checkpoint
    config: PeftConfig
    plan: TrainingPlan
    pad_token: int
    content: dict[str, Any]
    finished: bool
    trained: int
    loading: Early[PreTrainedModel] | None = None
    book: Book | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.options.out.name
