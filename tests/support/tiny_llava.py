"""Random vision-language models small enough for any test, made here, offline; one seed, one model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

IMAGE, VOCAB_SIZE = "<image>", 300
SIDE, PATCH, IMAGE_TOKENS = 32, 8, 16
CHAT = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As llava-hf's: the images of a message come before its text."""


def seeing(tokenizer: PreTrainedTokenizerFast, *tokens: str, chat: str = CHAT) -> PreTrainedTokenizerFast:
    """A copy of ``tokenizer`` that knows the tokens of images, and a template that places them."""
    tokenizer = copy.deepcopy(tokenizer)
    added = [AddedToken(token, special=True, normalized=False) for token in tokens or (IMAGE,)]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.chat_template = chat
    return tokenizer


def text_config(positions: int, vocab: int = VOCAB_SIZE, heads: int = 2) -> dict[str, Any]:
    """The settings of two layers, as every tiny language model here has them."""
    return {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "max_position_embeddings": positions,
        "initializer_range": 0.3,
    }


def random_llava(
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
    *,
    tower: str = "siglip",
    positions: int = 128,
    heads: int = 2,
) -> LlavaForConditionalGeneration:
    """A LLaVA with two layers in each part, float32, 32 pixels and 16 tokens an image."""
    torch.manual_seed(seed)
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "initializer_range": 0.3,
    }
    siglip = tower == "siglip"
    towers = SiglipVisionConfig(**vision, vision_use_head=False) if siglip else CLIPVisionConfig(**vision)
    config = LlavaConfig(
        vision_config=towers,
        text_config=LlamaConfig(
            **text_config(positions, heads=heads), bos_token_id=270, eos_token_id=271, pad_token_id=272
        ),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-2,
        vision_feature_select_strategy="full" if siglip else "default",
        image_seq_length=IMAGE_TOKENS,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def llava_processor(tokenizer: PreTrainedTokenizerFast, tower: str = "siglip") -> LlavaProcessor:
    """The processor of ``random_llava``, computed by Pillow."""
    size = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full" if tower == "siglip" else "default",
        num_additional_image_tokens=0 if tower == "siglip" else 1,
        chat_template=tokenizer.chat_template,
    )


def save_llava(folder: Path, model: PreTrainedModel, processor: Any) -> Path:
    """``folder``, a model folder with its processor as ``cme-bench run`` takes it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
