"""Random models of other vision-language families: those that see images otherwise than LLaVA does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import AutoConfig

from tests.support.tiny_llava import (
    PATCH,
    SIDE,
    llava_processor,
    random_llava,
    save_llava,
    seeing,
    text_config,
)

_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.3,
}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
_NEXT = {"image_grid_pinpoints": [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]}


def _saved(folder: Path, kind: str, settings: dict[str, Any], tokenizer: Any, reads: Any) -> Path:
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **settings)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if "language_model" not in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    reads.save_pretrained(folder)
    return folder


def qwen2_vl(folder: Path, tokenizer: PreTrainedTokenizerFast, *, positions: int = 256) -> Path:
    """A Qwen2-VL, whose positions depend on the sizes of images."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    own = seeing(tokenizer, *marks, chat=_chat("<|vision_start|><|image_pad|><|vision_end|>"))
    ids = [int(own.convert_tokens_to_ids(mark)) for mark in marks]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "num_heads": 2,
        "hidden_size": 32,
        "mlp_ratio": 2,
        "patch_size": PATCH,
    }
    text = text_config(positions) | {"rope_parameters": _ROPE}
    settings = {"vision_config": vision, "text_config": text, **dict(zip(names, ids, strict=True))}
    sizes = {"min_pixels": 4 * PATCH**2, "max_pixels": 64 * PATCH**2}
    return _saved(folder, "qwen2_vl", settings, own, Qwen2VLImageProcessorPil(patch_size=PATCH, **sizes))


def gemma3(folder: Path, tokenizer: PreTrainedTokenizerFast, *, positions: int = 256) -> Path:
    """A Gemma 3, the tokens of whose images see each other."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
    own = seeing(tokenizer, *marks, chat=_chat("<start_of_image>"))
    own._set_model_specific_special_tokens(
        dict(zip(("image_token", "boi_token", "eoi_token"), marks, strict=True))
    )
    ids = [int(own.convert_tokens_to_ids(mark)) for mark in marks]
    text = text_config(positions) | {"head_dim": 16, "sliding_window": 512, "query_pre_attn_scalar": 16}
    settings = {
        "vision_config": _TOWER | {"model_type": "siglip_vision_model", "vision_use_head": False},
        "text_config": text,
        "mm_tokens_per_image": 4,
        **dict(zip(("image_token_id", "boi_token_index", "eoi_token_index"), ids, strict=True)),
    }
    reads = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_seq_length=4)
    _saved(folder, "gemma3", settings, own, reads)
    (folder / "processor_config.json").write_text(
        '{"processor_class": "Gemma3Processor", "image_seq_length": 4}'
    )
    return folder


def idefics3(folder: Path, tokenizer: PreTrainedTokenizerFast, *, positions: int = 512) -> Path:
    """An Idefics3, which cuts an image into tiles, with tokens of text between them."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    return _tiled(folder, "idefics3", "Idefics3Processor", tokenizer, Idefics3ImageProcessorPil, positions)


def smolvlm(folder: Path, tokenizer: PreTrainedTokenizerFast, *, positions: int = 512) -> Path:
    """A SmolVLM, which is an Idefics3 whose processor reads videos as well."""
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    return _tiled(folder, "smolvlm", "SmolVLMProcessor", tokenizer, SmolVLMImageProcessorPil, positions)


def _tiled(
    folder: Path, kind: str, processor: str, tokenizer: PreTrainedTokenizerFast, reads: Any, positions: int
) -> Path:
    tiles = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    marks = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    own = seeing(tokenizer, *marks, *tiles)
    text = text_config(positions) | {"model_type": "llama"}
    settings = {
        "vision_config": {**_TOWER, "max_image_size": {"longest_edge": SIDE}},
        "text_config": text,
        "scale_factor": 2,
        "image_token_id": int(own.convert_tokens_to_ids("<image>")),
    }
    sizes = {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}
    _saved(folder, kind, settings, own, reads(**sizes))
    named = {"processor_class": processor, "image_seq_len": 4}
    (folder / "processor_config.json").write_text(json.dumps(named))
    return folder


def llava_next(folder: Path, tokenizer: PreTrainedTokenizerFast, *, positions: int = 512) -> Path:
    """A LLaVA-NeXT, whose images have as many tokens as their shape asks for."""
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    own = seeing(tokenizer)
    base = random_llava(3, own, positions=positions).config
    settings = {
        "vision_config": base.vision_config.to_dict(),
        "text_config": base.text_config.to_dict(),
        "vision_feature_select_strategy": "full",
        "image_token_id": base.image_token_id,
        **_NEXT,
    }
    size = {"height": SIDE, "width": SIDE}
    reads = LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=size, **_NEXT)
    _saved(folder, "llava_next", settings, own, reads)
    (folder / "processor_config.json").write_text(
        f'{{"processor_class": "LlavaNextProcessor", "patch_size": {PATCH}, '
        '"vision_feature_select_strategy": "full"}'
    )
    return folder


def mistral3(folder: Path, tokenizer: PreTrainedTokenizerFast, *, positions: int = 512) -> Path:
    """A Mistral 3, whose images are rows of tokens with a token of text behind each."""
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    own = seeing(tokenizer, "[IMG]", "[IMG_BREAK]", "[IMG_END]", chat=_chat("[IMG]"))
    tower = {"model_type": "pixtral", "hidden_size": 32, "head_dim": 16, "image_size": 2 * SIDE}
    settings = {
        "vision_config": _TOWER | tower,
        "text_config": text_config(positions) | {"model_type": "mistral", "head_dim": 16},
        "image_token_id": int(own.convert_tokens_to_ids("[IMG]")),
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    }
    reads = PixtralImageProcessorPil(
        size={"longest_edge": 2 * SIDE}, patch_size={"height": PATCH, "width": PATCH}
    )
    _saved(folder, "mistral3", settings, own, reads)
    named = {"processor_class": "PixtralProcessor", "patch_size": PATCH, "spatial_merge_size": 2}
    (folder / "processor_config.json").write_text(json.dumps(named))
    return folder


FAMILIES: dict[str, Callable[..., Path]] = {
    "qwen2_vl": qwen2_vl,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "llava_next": llava_next,
    "mistral3": mistral3,
}


def _chat(image: str) -> str:
    """A template that places images by their parts, as ``image``."""
    return (
        "{% for m in messages %}<{{ m['role'] }}>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )


def save_family(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Save a random model of a family, or a LLaVA ("llava", "llava_clip")."""
    if name in FAMILIES:
        return FAMILIES[name](folder, tokenizer)
    tower = "clip" if name == "llava_clip" else "siglip"
    own = seeing(tokenizer)
    return save_llava(folder, random_llava(0, own, tower=tower), llava_processor(own, tower))
