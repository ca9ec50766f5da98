from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, TeamLoraConfig

CONFIGS: dict[str, PeftConfig] = {
    "team": TeamLoraConfig(r=2, num_experts=3, task_type="CAUSAL_LM"),
    "moe": MoeLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM"),
    "hydra": HydraLoraConfig(r=2, num_experts=2, task_type="CAUSAL_LM"),
    "lora": LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="session")
def adapters(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter of every kind for ``tiny_checkpoint``, all parameters random."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        torch.manual_seed(3)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in CONFIGS}
