"""Models whose attention caps its scores softly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from cme_bench.models.checkpoint import Checkpoint, resolve_model
from cme_bench.models.load import load_model

IDS = torch.arange(2, 42)[None]


@pytest.fixture
def capped(tmp_path: Path) -> tuple[Checkpoint, torch.Tensor]:
    """A checkpoint whose scores are far beyond the cap, and its logits as its authors compute them."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Gemma2Config(
        vocab_size=100, num_hidden_layers=2, head_dim=8, attn_logit_softcapping=2.0, **sizes
    )
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    model.save_pretrained(tmp_path)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return resolve_model(str(tmp_path)), model(IDS).logits


def test_scores_are_capped(capped: tuple[Checkpoint, torch.Tensor]) -> None:
    checkpoint, wanted = capped
    model = load_model(checkpoint, torch.float32, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, wanted)
        model.set_attn_implementation("sdpa")
        assert (model(IDS).logits - wanted).abs().max() > 1e-3, "torch's kernel caps too: eager is not needed"
