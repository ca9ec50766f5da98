"""Prompts with images the plain way: the model's own processor and forward, one row at a time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from cme_bench.engines.base import TokenIds
from cme_bench.images.image import Image, image_of
from cme_bench.models.checkpoint import resolve_model
from cme_bench.models.load import check_base, load_config, load_model, load_tokenizer
from cme_bench.models.vision import Vision, load_vision
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.seen import fill, see


def noise(seed: int, width: int = 40, height: int = 50) -> Image:
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return image_of(stream.getvalue())


@dataclass(frozen=True)
class Seeing:
    """A loaded vision-language model, with its tokenizer and its way of reading images."""

    folder: Path
    model: Any
    tokenizer: Any
    vision: Vision

    @classmethod
    def load(cls, folder: Path) -> Seeing:
        """As a run loads it, in float32."""
        checkpoint = resolve_model(str(folder))
        config = load_config(checkpoint)
        check_base(checkpoint, config)
        tokenizer = load_tokenizer(checkpoint)
        model = load_model(checkpoint, torch.float32, torch.device("cpu"))
        return cls(folder, model, tokenizer, load_vision(checkpoint.path, config, tokenizer))

    def ids(self, text: str, *images: Image) -> TokenIds:
        """The virtual ids of a prompt, as a run makes them."""
        seen = see(self.vision, text, images)
        [ids] = Encoder(self.tokenizer).encode([seen.laid_out]).values()
        return fill(self.vision, ids, images)

    def inputs(self, text: str, images: Sequence[Image], more: TokenIds = ()) -> dict[str, Any]:
        """What the processor makes of a prompt, and further ids after it."""
        marked = see(self.vision, text, tuple(images)).text
        pixels = [image.pixels() for image in images]
        inputs = dict(self.vision.processor(text=[marked], images=pixels or None, return_tensors="pt"))
        extra = torch.tensor([more], dtype=torch.int64)
        inputs["input_ids"] = torch.cat((inputs["input_ids"], extra), 1)
        for name in ("attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                filled = torch.full_like(extra, int(name == "attention_mask"))
                inputs[name] = torch.cat((inputs[name], filled), 1)
        return inputs

    @torch.inference_mode()
    def logits(self, text: str, images: Sequence[Image], more: TokenIds = ()) -> torch.Tensor:
        """The logits [n, vocab] of the whole row, by the model's own forward."""
        logits: torch.Tensor = self.model(**self.inputs(text, images, more), use_cache=False).logits[0]
        return logits

    def logprob(self, text: str, images: Sequence[Image], choice: TokenIds) -> float:
        """The log-probability of a choice after a prompt."""
        logits = self.logits(text, images, choice[:-1])[-len(choice) :]
        return float(logits.log_softmax(-1)[range(len(choice)), list(choice)].sum())

    def greedy(self, text: str, images: Sequence[Image], new: int, ends: Sequence[int] = ()) -> list[int]:
        """The tokens that argmax writes, one plain forward each."""
        tokens: list[int] = []
        while len(tokens) < new and not (tokens and tokens[-1] in ends):
            tokens.append(int(self.logits(text, images, tuple(tokens))[-1].argmax()))
        return tokens
