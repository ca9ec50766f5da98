"""The loss of a trained adapter on the items that were held out of its mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cme_bench.adapters.load import load_adapter
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import choose_device, choose_dtype, load_config, load_model, load_tokenizer
from cme_bench.prompts.vocabulary import embeddings
from cme_bench.training.batches import collate, pad_token
from cme_bench.training.book import book_of, show
from cme_bench.training.loss import target_loss
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import ItemSet, own_sets, usual_format
from cme_bench.training.tokens import TokenTable, TrainingEncoder, training_encoder


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
    base = resolve_model(options.model, offline=options.offline)
    config, device = load_config(base), choose_device()
    tokenizer = load_tokenizer(base)
    own = own_sets(sets)
    options = replace(options, prompt_format=usual_format(options, own))
    book = book_of(base, config, tokenizer, own)
    encoder = training_encoder(options, tokenizer, config, book)
    pad = pad_token(tokenizer, embeddings(config))
    tables = [_tokens(held, encoder) for held in (s.held_out() for s in sets) if len(held)]
    if not tables:
        raise ValueError("no items are held out: give --holdout")
    dtype = choose_dtype(options.dtype, config, device)
    bare = load_model(base, dtype, device)
    if book is not None:
        show(bare, book, lambda text: None)
    adapted = load_adapter(bare, adapter).eval()
    model = adapted.get_base_model()  # adapters are in its layers; AdaLoRA's wrapper would add a regulariser
    losses = []
    with torch.inference_mode(), target_loss(model):
        for table in tables:
            nll = 0.0
            order = sorted(range(len(table)), key=lambda i: -int(table.lengths[i]))
            for start in range(0, len(order), options.batch_size):
                examples = [table[i] for i in order[start : start + options.batch_size]]
                batch = {k: v.to(device) for k, v in collate(examples, pad).items()}
                nll += float(model(**batch).nll)
            losses.append(nll / int(table.target_lengths.sum()))
    return Validation(
        loss=sum(losses) / len(losses),
        items=sum(map(len, tables)),
        target_tokens=sum(int(table.target_lengths.sum()) for table in tables),
    )


def _tokens(held: ItemSet, encoder: TrainingEncoder) -> TokenTable:
    return TokenTable(encoder.encode(held.prompted(i, 0) for i in range(len(held))))
