"""A LLaVA of LLaVA-1.5-7B's shapes with random weights, in a folder that transformers and lmms-eval load.

Vocabulary, tokenizer and chat template are smollava's, since LLaVA's own are in no package; what an answer
costs hardly depends on them. CLIP ViT-L/14 at 336 pixels gives 576 tokens an image, as in LLaVA-1.5.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from cme_bench.experiments.efficiency.shapes import preset, with_layers

SHAPES = ("llava-1.5-7b", "tiny")
_VISION: dict[str, dict[str, int]] = {
    "llava-1.5-7b": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
}
_TEXT = {"llava-1.5-7b": "llama-2-7b", "tiny": "tiny"}


def config_of(shape: str, smollava: dict[str, Any], layers: int | None) -> LlavaConfig:
    """The configuration of a shape, with the vocabulary of ``smollava``'s."""
    vision = CLIPVisionConfig(**_VISION[shape])
    text = with_layers(preset(_TEXT[shape]), layers)
    text.vocab_size = smollava["text_config"]["vocab_size"]
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=smollava["image_token_index"],
        image_seq_length=(vision.image_size // vision.patch_size) ** 2,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        dtype="bfloat16",
    )


def make(out: Path, shape: str, smollava: Path, *, layers: int | None = None, dtype: torch.dtype) -> None:
    """Write the model, seed 0, with smollava's tokenizer and processor."""
    config = config_of(shape, json.loads((smollava / "config.json").read_bytes()), layers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None  # every answer has all its tokens
    model.to("cpu").save_pretrained(out)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(smollava / file, out / file)
    processor = json.loads((smollava / "processor_config.json").read_bytes())
    size = config.vision_config.image_size
    processor["image_processor"]["size"] = {"height": size, "width": size}
    processor["patch_size"] = config.vision_config.patch_size
    (out / "processor_config.json").write_text(json.dumps(processor, indent=1))
