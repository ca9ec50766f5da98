"""Who reads the prompts where no weights are loaded: what preview and check need of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cme_bench.engines.base import Request
from cme_bench.models.vision import Vision
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.vocabulary import check_requests


@dataclass(frozen=True, slots=True)
class Reader:
    """A model as its prompts see it.

    ``max_length``: most tokens it is fed of a row; ``embeddings``: how many token ids it knows; ``model``:
    its folder, for messages; ``see`` loads how it reads images.
    """

    encoder: Encoder
    max_length: int
    embeddings: int
    model: str
    prompt_format: str = "auto"
    see: Callable[[], Vision | None] = lambda: None

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    @property
    def begin(self) -> str:
        """The special tokens before every prompt, as text."""
        return str(self.tokenizer.decode(list(self.encoder.bos.prefix)))

    def vision_for(self, task: Any) -> Vision | None:
        """Return how the model reads the images of a task of lm-eval; None where there are none, or it reads
        none. UsageError if its processor cannot be loaded."""
        return None if task.row_images is None else self.see()

    def check(self, requests: Iterable[Request]) -> None:
        """Check that every token id has an embedding; UsageError if not."""
        check_requests(self.tokenizer, self.embeddings, requests, model=self.model)
