"""Packed rows: every example whole and once, and a step that equals the padded one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, TeamLoraConfig, balance_tape
from cme_bench.training.batches import IGNORED, collate
from cme_bench.training.loss import target_loss
from cme_bench.training.options import TrainOptions
from cme_bench.training.packing import check_packing, pack
from cme_bench.training.train import train
from cme_bench.util.errors import UsageError
from tests.support.tiny_llama import save_checkpoint

Batch = dict[str, Tensor]
Gradients = dict[str, Tensor]
ON = {"task_type": "CAUSAL_LM", "target_modules": ["up_proj", "down_proj"]}
ROUTED = {"r": 3, "init": "random", "num_experts": 3, "balance_coefficient": 50.0}
METHODS: dict[str, Callable[[], PeftConfig]] = {
    "lora": lambda: LoraConfig(r=3, init_lora_weights=False, **ON),
    "moelora": lambda: MoeLoraConfig(**ROUTED, **ON),
    "hydralora": lambda: HydraLoraConfig(**ROUTED, **ON),
    "teamlora": lambda: TeamLoraConfig(**ROUTED, **ON),
}


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 6))
def test_every_example_is_in_one_of_few_short_rows_of_like_length(lengths: list[int], per_row: int) -> None:
    rows = pack(lengths, per_row)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert max(filled) <= per_row * max(lengths)
    assert max(filled) - min(filled) <= max(lengths)
    assert len(rows) <= 2 * -(-sum(lengths) // (per_row * max(lengths)))


def test_examples_of_like_length_leave_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(90, 110, 48).tolist()
    width = {n: max(sum(lengths[i] for i in row) for row in pack(lengths, n)) for n in (1, 4)}
    padding = {n: 1 - sum(lengths) / (width[n] * len(pack(lengths, n))) for n in width}
    assert padding[4] < 0.01 < padding[1]


def test_a_packed_batch() -> None:
    examples = [
        {"ids": np.array([5, 6]), "source_length": 1},
        {"ids": np.array([7, 8, 9]), "source_length": 2},
        {"ids": np.array([3]), "source_length": 1},
        {"ids": np.array([4, 2]), "source_length": 0},
    ]
    batch = collate(examples, pad_token=0, multiple=3, per_row=2)
    x = IGNORED
    assert batch["input_ids"].tolist() == [[7, 8, 9, 3, 0, 0], [5, 6, 4, 2, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 0], [0, 1, 0, 1, 0, 0]]
    assert batch["labels"].tolist() == [[x, x, 9, x, x, x], [x, 6, x, 2, x, x]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 8))
def test_packing_moves_examples_whole(lengths: list[int], per_row: int, multiple: int) -> None:
    """Token 1000 e + t is token t of example e."""
    examples = [
        {"ids": 1000 * e + np.arange(n), "source_length": n // 2} for e, n in enumerate(lengths, start=1)
    ]
    batch = collate(examples, pad_token=0, multiple=multiple, per_row=per_row)
    padded = collate(examples, pad_token=0)
    real = batch["attention_mask"] == 1
    assert torch.equal(batch["input_ids"] > 0, real)
    assert torch.equal(batch["input_ids"][real] % 1000, batch["position_ids"][real])
    for name in ("input_ids", "labels"):
        assert torch.equal(batch[name][real].sort()[0], padded[name][padded["attention_mask"] == 1].sort()[0])
    follows = batch["input_ids"][:, 1:] == batch["input_ids"][:, :-1] + 1
    assert int((follows & (batch["position_ids"][:, 1:] > 0)).sum()) == sum(lengths) - len(lengths)


@pytest.fixture(params=METHODS)
def model(request: pytest.FixtureRequest, tiny_model: LlamaForCausalLM) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(copy.deepcopy(tiny_model), METHODS[request.param]())


def examples() -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    lengths = (11, 12, 5, 9, 12, 3, 8)
    return [{"ids": random.integers(0, 256, n), "source_length": n // 2} for n in lengths]


def step(model: PeftModel, batch: Batch) -> tuple[float, Gradients]:
    """Loss and gradients as a training step has them, balance loss included where there are experts."""
    base = model.get_base_model()
    weight = 1 / int((batch["labels"] != IGNORED).sum())
    model.zero_grad()
    with target_loss(base):
        if isinstance(model.peft_config["default"], LoraConfig):
            loss = model(**batch, weight=weight).loss
        else:
            with balance_tape(model) as tape:
                loss = model(**batch, weight=weight).loss
                balance = tape.loss(mask=batch["attention_mask"])
                assert balance.item() > 0.01 * loss.item()
                loss = loss + balance
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def furthest(one: Gradients, other: Gradients) -> float:
    """The largest relative difference of a parameter's gradient."""
    assert one and one.keys() == other.keys()
    return max(float((one[n] - other[n]).norm() / other[n].norm()) for n in other)


def test_a_packed_step_equals_the_padded_one(model: PeftModel) -> None:
    padded_loss, padded = step(model, collate(examples(), pad_token=272))
    batch = collate(examples(), pad_token=272, multiple=8, per_row=2)
    assert batch["input_ids"].shape == (3, 24)
    assert not batch["attention_mask"].all(), "padding takes part"
    loss, packed = step(model, batch)
    assert loss == pytest.approx(padded_loss, rel=1e-6)
    assert furthest(packed, padded) < 1e-5


def test_leaks_are_seen(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above tells a packed step from one without position ids, and from one whose mask does
    not keep examples apart."""
    padded_loss, padded = step(model, collate(examples(), pad_token=272))
    batch = collate(examples(), pad_token=272, multiple=8, per_row=2)
    places = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    for leaking in (batch, batch | {"position_ids": places}):
        loss, gradients = step(model, leaking)
        assert loss != pytest.approx(padded_loss, rel=1e-3)
        assert furthest(gradients, padded) > 1e-2


def test_padding_does_not_count_for_the_balance(tiny_model: LlamaForCausalLM) -> None:
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(tiny_model), METHODS["teamlora"]())
    batch = collate(examples(), pad_token=272, multiple=64, per_row=2)
    with target_loss(model.get_base_model()), balance_tape(model) as tape:
        model(**batch)
        masked = tape.loss(mask=batch["attention_mask"])
        model(**batch)
        assert tape.loss().item() != pytest.approx(masked.item(), rel=1e-3)


def bloom() -> PreTrainedModel:
    """A model that knows no position ids."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=300, hidden_size=32, n_layer=1, n_head=2, eos_token_id=271)
    return BloomForCausalLM(config)


def test_models_that_mix_packed_examples_are_refused(
    tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_packing(tiny_model)
    check_packing(copy.deepcopy(tiny_model).to(torch.bfloat16))
    with pytest.raises(UsageError, match="BloomForCausalLM with eager attention does not keep packed"):
        check_packing(bloom())
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(UsageError, match="LlamaForCausalLM with sdpa attention does not keep packed"):
        check_packing(tiny_model)


def test_a_refused_training_leaves_its_folder_free(
    options: Callable[..., TrainOptions], toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = save_checkpoint(tmp_path / "bloom", bloom(), toy_tokenizer)
    wanted = {"model": str(folder), "targets": "dense_h_to_4h", "max_steps": 1}
    with pytest.raises(UsageError, match="does not keep packed examples apart") as refused:
        train(options("lora", **wanted, pack=2))
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)
    train(options("lora", **wanted))
