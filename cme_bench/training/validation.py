"""The loss of a trained adapter on the items that were held out of its mixture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cme_bench.adapters.load import load_adapter, take_off
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.fingerprint import difference, fingerprint
from cme_bench.models.load import choose_device, choose_dtype, load_config, load_model, load_tokenizer
from cme_bench.prompts.vocabulary import embeddings
from cme_bench.training.batches import collate, pad_token
from cme_bench.training.book import book_of, show
from cme_bench.training.loss import target_loss
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import ItemSet, own_sets, usual_format
from cme_bench.training.tokens import TokenTable, TrainingEncoder, training_encoder

_ASKED = ("model", "offline", "data", "prompt_format", "max_length", "bos", "dtype", "batch_size")
"""The options of a training that decide how its held-out items are read and scored."""


@dataclass(frozen=True, slots=True)
class Validation:
    """``loss``: mean over datasets of the mean negative log-likelihood of a target token, in nats; ``items``
    and ``target_tokens`` were scored."""

    loss: float
    items: int
    target_tokens: int


def validate(adapter: Path, options: TrainOptions, sets: Sequence[ItemSet]) -> Validation:
    """Score the held-out items of ``sets`` with the adapter that ``options`` trained, each asked in its first
    way.

    Datasets without held-out items are left out. ValueError if there are none at all.
    """
    return next(validations([(adapter, options)], sets))


def validations(
    trained: Iterable[tuple[Path, TrainOptions]], sets: Sequence[ItemSet]
) -> Iterator[Validation]:
    """Yield what :func:`validate` returns of each adapter and the options that trained it, in order.

    The base model and the items' tokens are made once for all adapters in turn that ask for the same.
    """
    held, made = None, ()
    for adapter, options in trained:
        asked = tuple(getattr(options, name) for name in _ASKED)
        if held is None or asked != made:
            held, made = HeldOut(options, sets), asked
        yield held.scored_by(adapter)


class HeldOut:
    """The held-out items of ``sets`` as tokens, and the base model of a training, which scores them with one
    adapter after the other. ValueError if nothing is held out."""

    def __init__(self, options: TrainOptions, sets: Sequence[ItemSet]) -> None:
        self._base = resolve_model(options.model, offline=options.offline)
        self._config, self._device = load_config(self._base), choose_device()
        self._batch_size = options.batch_size
        tokenizer = load_tokenizer(self._base)
        own = own_sets(sets)
        options = replace(options, prompt_format=usual_format(options, own))
        self._book = book_of(self._base, self._config, tokenizer, own)
        encoder = training_encoder(options, tokenizer, self._config, self._book)
        self._pad = pad_token(tokenizer, embeddings(self._config))
        self._tables = [_tokens(held, encoder) for held in (s.held_out() for s in sets) if len(held)]
        if not self._tables:
            raise ValueError("no items are held out: give --holdout")
        self._dtype = choose_dtype(options.dtype, self._config, self._device)
        self._load()

    def _load(self) -> None:
        self._bare = load_model(self._base, self._dtype, self._device)
        if self._book is not None:
            show(self._bare, self._book, lambda text: None)
        self._clean = fingerprint(self._bare)

    def scored_by(self, adapter: Path) -> Validation:
        """Put an adapter on the base, score all items, and take it off again."""
        adapted = load_adapter(self._bare, adapter).eval()
        model = adapted.get_base_model()  # adapters are in its layers; AdaLoRA's wrapper adds a regulariser
        with torch.inference_mode(), target_loss(model):
            losses = [self._nll(model, table) / int(table.target_lengths.sum()) for table in self._tables]
        take_off(adapted)
        del adapted, model
        if difference(self._clean, fingerprint(self._bare)):
            self._load()
        return Validation(
            loss=sum(losses) / len(losses),
            items=sum(map(len, self._tables)),
            target_tokens=sum(int(table.target_lengths.sum()) for table in self._tables),
        )

    def _nll(self, model: Any, table: TokenTable) -> float:
        """Return the sum over all targets of a table, in nats."""
        order = sorted(range(len(table)), key=lambda i: -int(table.lengths[i]))
        nll = 0.0
        for start in range(0, len(order), self._batch_size):
            examples = [table[i] for i in order[start : start + self._batch_size]]
            batch = {k: v.to(self._device) for k, v in collate(examples, self._pad).items()}
            nll += float(model(**batch).nll)
        return nll


def _tokens(held: ItemSet, encoder: TrainingEncoder) -> TokenTable:
    return TokenTable(encoder.encode(held.prompted(i, 0) for i in range(len(held))))
