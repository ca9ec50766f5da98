"""Held-out items: never trained on, the same for every seed, scored as a plain forward pass scores them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cme_bench.adapters.load import load_adapter
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import load_config, load_tokenizer
from cme_bench.tasks.open_source import open_source
from cme_bench.training import validation
from cme_bench.training.mixture import TrainingSet
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import load_sets, make_plan
from cme_bench.training.tokens import training_encoder
from cme_bench.training.train import train
from cme_bench.training.validation import validate, validations

Options = Callable[..., TrainOptions]


def sets_of(options: TrainOptions) -> list[TrainingSet]:
    return load_sets(options, open_source(options.data, offline=True), note=lambda _: None)


def texts(items: TrainingSet) -> set[str]:
    return {items.prompted(i, 0).target + items.prompted(i, 0).source for i in range(len(items))}


def test_held_out_items_are_apart_and_the_same_for_every_seed(options: Options) -> None:
    chosen = options(datasets="sst2,rte", holdout=2)
    first, second = sets_of(chosen), sets_of(replace(chosen, seed=7))
    for items, again, whole in zip(first, second, sets_of(options(datasets="sst2,rte")), strict=True):
        held = items.held_out()
        assert len(held) == 2
        assert len(items) == len(whole) - 2
        assert texts(items) | texts(held) == texts(whole)
        assert not texts(items) & texts(held)
        assert texts(again.held_out()) == texts(held)


def test_a_training_never_draws_them(options: Options, tiny_checkpoint: Path) -> None:
    chosen = options(holdout=2, max_steps=10)
    base = resolve_model(chosen.model)
    encoder = training_encoder(chosen, load_tokenizer(base), load_config(base))
    (items,) = sets_of(chosen)
    plan = make_plan(
        chosen, open_source("mini", offline=True), encoder, processes=1, note=lambda _: None, sets=[items]
    )
    drawn = {tuple(plan.examples[i]["ids"]) for batch in plan.batches for i in batch}
    held = items.held_out()
    every_way = range(len(items.template.paraphrases))
    asked = (held.prompted(i, turn) for i in range(len(held)) for turn in every_way)
    assert not drawn & {example.ids for example in encoder.encode(asked)}
    (part,) = plan.mixture["datasets"][0]["parts"]
    assert part["held_out"] == 2


@pytest.mark.parametrize("method", ["teamlora", "adalora"])
def test_the_loss_is_that_of_a_plain_forward_pass(options: Options, method: str) -> None:
    chosen = options(method, datasets="sst2,rte", holdout=2, max_steps=3)
    sets = sets_of(chosen)
    adapter = train(chosen, sets=sets)
    found = validate(adapter, chosen, sets)
    model = load_adapter(AutoModelForCausalLM.from_pretrained(chosen.model), adapter).eval()
    base = resolve_model(chosen.model)
    encoder = training_encoder(chosen, load_tokenizer(base), load_config(base))
    means, tokens = [], 0
    for held in (items.held_out() for items in sets):
        nll = count = 0.0
        for example in encoder.encode(held.prompted(i, 0) for i in range(len(held))):
            ids = torch.tensor([example.ids])
            with torch.no_grad():
                logprobs = model(ids).logits[0].log_softmax(-1)
            for place in range(example.source_length, len(example.ids)):
                nll -= float(logprobs[place - 1, example.ids[place]])
                count += 1
        means.append(nll / count)
        tokens += int(count)
    assert found.loss == pytest.approx(sum(means) / 2, rel=1e-4)
    assert (found.items, found.target_tokens) == (4, tokens)


def test_without_held_out_items_there_is_nothing_to_score(options: Options) -> None:
    chosen = options(max_steps=2)
    sets = sets_of(chosen)
    with pytest.raises(ValueError, match="held out"):
        validate(train(chosen, sets=sets), chosen, sets)


def test_adapters_are_scored_in_turn_on_one_base(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as if it were alone, one that changes the base's own tensors too; other options get a new base."""
    chosen = [
        options(method, datasets="sst2,rte", holdout=2, max_steps=2, out=tmp_path / name, **more)
        for name, method, more in [
            ("first", "teamlora", {}),
            ("second", "adalora", {}),
            ("changes", "lora", {"settings": {"init_lora_weights": "pissa"}}),
            ("third", "moelora", {}),
            ("other", "lora", {"max_length": 32}),
        ]
    ]
    sets = sets_of(chosen[0])
    trained = [(train(one, sets=sets), one) for one in chosen]
    alone = [validate(adapter, one, sets) for adapter, one in trained]
    loads = []
    load = validation.load_model

    def counted(*args: object) -> object:
        loads.append(args)
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "load_model", counted)
    assert list(validations(trained, sets)) == alone
    assert len(loads) == 3, "of the first three and, as one of them changed it, of the fourth; of the other"
