"""smollava's folder: configuration, weights, tokenizer and processor, as transformers' LLaVA reads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from cme_bench.models.smollava.tower import GRID, MEAN, PATCH, SIZE, STD, VISION_CONFIG
from cme_bench.util.errors import CmeError

if TYPE_CHECKING:
    import torch

IMAGE_TOKEN = "<image>"
_SPARE_TOKEN = "<empty_output>"
"""A special token of SmolLM2 that it has for notebooks. It becomes the image token, so that the vocabulary,
and with it every answer to a text, stays SmolLM2's."""
_STRING = "{{ message['content'] }}"
_BREAK = (
    "{% if not loop.first and loop.previtem['type'] == 'image' and not part['text'].startswith('\n') %}"
    "{{ '\n' }}{% endif %}"
)
"""An image stands in a line of its own."""
_PARTS = (
    "{% if message['content'] is string %}" + _STRING + "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "' }}"
    "{% else %}" + _BREAK + "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\n' }}" + _PARTS + "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own; a content of parts may hold images."""


def assemble(
    out: Path,
    *,
    language_model: Path,
    tower: dict[str, torch.Tensor],
    projector: dict[str, torch.Tensor],
    card: str,
) -> None:
    """Write the model into the folder ``out`` in bfloat16.

    ``tower``: the state of a ``CLIPVisionModel``; ``projector``: ``linear_1`` and ``linear_2`` with weight
    and bias. CmeError if ``language_model`` has another vocabulary than SmolLM2.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    text = AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.bfloat16)
    tokenizer_file, image_token_id = _tokenizer_json(language_model)
    text.config._name_or_path = ""  # the folder here, which no other machine has
    config = _config(text.config, image_token_id)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    state = {f"model.language_model.{key}": value for key, value in text.model.state_dict().items()}
    state |= {f"model.vision_tower.{key}": value for key, value in tower.items()}
    state |= {f"model.multi_modal_projector.{key}": value for key, value in projector.items()}
    state["lm_head.weight"] = text.lm_head.weight
    state = {key: value.to(torch.bfloat16) for key, value in state.items()}
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.generation_config = text.generation_config
    model.save_pretrained(out)
    _write_processor(out, language_model, tokenizer_file)
    (out / "README.md").write_text(card, encoding="utf-8")


def _config(text: Any, image_token_id: int) -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig

    vision = CLIPVisionConfig(**{k: v for k, v in VISION_CONFIG.items() if k != "model_type"})
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image_token_id,
        image_seq_length=GRID * GRID,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        dtype="bfloat16",
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
    )


def _tokenizer_json(language_model: Path) -> tuple[bytes, int]:
    """Return SmolLM2's tokenizer with its spare token renamed, and that token's id."""
    tokenizer = orjson.loads((language_model / "tokenizer.json").read_bytes())
    vocabulary = tokenizer["model"]["vocab"]
    spare = [token for token in tokenizer["added_tokens"] if token["content"] == _SPARE_TOKEN]
    if _SPARE_TOKEN not in vocabulary or not spare:
        raise CmeError(f"{language_model}: the tokenizer has no {_SPARE_TOKEN}, so it is not SmolLM2's")
    spare[0]["content"] = IMAGE_TOKEN
    tokenizer["model"]["vocab"] = {
        IMAGE_TOKEN if text == _SPARE_TOKEN else text: number for text, number in vocabulary.items()
    }
    return orjson.dumps(tokenizer), int(vocabulary[_SPARE_TOKEN])


def _write_processor(out: Path, language_model: Path, tokenizer_file: bytes) -> None:
    from transformers import AutoTokenizer, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    (out / "tokenizer.json").write_bytes(tokenizer_file)
    settings = (language_model / "tokenizer_config.json").read_bytes()
    (out / "tokenizer_config.json").write_bytes(settings)
    tokenizer = AutoTokenizer.from_pretrained(out)
    images = CLIPImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        do_center_crop=False,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(out)
