"""One model without memory serves those who read it; who changes it makes his own."""

from __future__ import annotations

from transformers import LlamaConfig

from cme_bench.adapters.meta_model import bare_model, kept_model
from cme_bench.models.load import count_parameters


def small(**settings: int) -> LlamaConfig:
    return LlamaConfig(num_hidden_layers=1, num_attention_heads=2, vocab_size=50, **settings)


def test_a_model_is_kept_for_the_next_who_reads_one_of_equal_settings() -> None:
    first = kept_model(small(hidden_size=16))
    assert kept_model(small(hidden_size=16)) is first
    assert bare_model(small(hidden_size=16)) is not first
    assert kept_model(small(hidden_size=32)).config.hidden_size == 32
    assert count_parameters(small(hidden_size=32)) > count_parameters(small(hidden_size=16)) > 0
    assert kept_model(small(hidden_size=16)) is not first, "the last one only"
