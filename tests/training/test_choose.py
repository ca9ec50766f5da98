"""What a training runs by is decided from its options and the device alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from cme_bench.training import record
from cme_bench.training.choose import MANNER, batch_order, manner
from cme_bench.training.norms import FusedNorm, fuse_norms
from cme_bench.training.options import USUAL, TrainOptions
from cme_bench.util.errors import UsageError
from cme_bench.util.files import write_json

Make = Callable[..., TrainOptions]
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "vocab_size": 40, "head_dim": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "device", "said", "order"),
    [
        ({}, "cuda", "", "even"),
        ({}, "cpu", "", "similar"),
        ({"pack_tokens": 512}, "cuda", "", "even"),
        ({"pack_tokens": 512}, "cpu", "", "similar"),
        ({"pack_tokens": 0}, "cuda", "", "similar"),
        ({"pack": 2}, "cuda", "", "similar"),
        ({"device_map": "auto"}, "cuda", "", "similar"),
        ({}, "cuda", "padded", "similar"),
        ({}, "cuda", "trainer", "similar"),
        ({"batches": "random"}, "cpu", "", "random"),
        ({"batches": "similar"}, "cuda", "", "similar"),
    ],
)
def test_the_order_of_examples(
    given: dict[str, Any], device: str, said: str, order: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MANNER, said)
    assert batch_order(options("lora", **given), torch.device(device)) == order


def test_a_training_goes_on_in_the_order_in_which_it_began(options: Make, tmp_path: Path) -> None:
    asked, cuda = options("lora"), torch.device("cuda")
    assert record.begun_order(tmp_path) is None
    for held, order in (("random", "random"), ("even", "even"), (None, "even")):
        identity = asked.identity() | ({"batches": held} if held else {})
        write_json(tmp_path / record.FILE, {"identity": identity})
        assert batch_order(asked, cuda, record.begun_order(tmp_path)) == order
    assert batch_order(asked, torch.device("cpu"), "random") == "similar"
    assert batch_order(options("lora", batches="even"), cuda, "random") == "even"


def test_random_batches_are_another_training_and_similar_ones_are_not(options: Make) -> None:
    usual = options("lora").identity()
    assert options("lora", batches="similar").identity() == usual
    assert options("lora", batches="random").identity() != usual


@pytest.mark.parametrize("name", sorted(USUAL))
def test_a_folder_with_another_value_of_a_younger_option_is_refused(
    name: str, options: Make, tmp_path: Path
) -> None:
    """Also where the value of now is the usual one, which is in no identity."""
    mine = options("lora").identity()
    assert name not in mine
    write_json(tmp_path / record.FILE, {"identity": mine | {name: "other"}, "finished": True})
    with pytest.raises(UsageError, match=f"holds a training with other {name} \\(other there, None now\\)"):
        record.check_folder(tmp_path, mine)
    write_json(tmp_path / record.FILE, {"identity": mine, "finished": True})
    assert record.check_folder(tmp_path, mine)


def test_a_cpu_replays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MANNER, raising=False)
    assert manner(torch.device("cpu")) == frozenset()
    assert manner(torch.device("cuda")) == {"packs", "varlen", "graph"}


def test_norms_that_torch_has_are_its_own_and_others_stay() -> None:
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SMALL))
    for name, parameter in llama.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter.data, 0.5, 1.5)
    ids = torch.arange(20)[None]
    before = llama(ids).logits
    names = set(llama.state_dict())
    assert fuse_norms(llama) == 5
    assert isinstance(llama.model.norm, FusedNorm) and set(llama.state_dict()) == names
    torch.testing.assert_close(llama(ids).logits, before, atol=1e-6, rtol=1e-5)
    assert fuse_norms(GemmaForCausalLM(GemmaConfig(**SMALL))) == 0
