"""Prompts with images, as a processor reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.seen import Reading
from cme_bench.util.errors import UsageError
from tests.support.seen import Seeing, noise
from tests.support.tiny_llava import llava_processor, random_llava, save_llava, seeing


def test_a_processor_is_asked_for_every_number_of_images(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = seeing(toy_tokenizer)
    seen = Seeing.load(save_llava(tmp_path, random_llava(0, own), llava_processor(own)))
    reading = Reading(seen.vision, Encoder(seen.tokenizer), lambda item: f"own, item {item}")
    one = noise(0)
    assert reading.text(0, "<image> one ", [one]) == reading.text(1, "<image> one ", [one])
    assert reading.text(2, "<image><image> two ", [one, one])

    def fewer(*_: object, **__: object) -> object:  # as a processor that shows several images in fewer tokens
        return {"input_ids": seen.vision.processor.tokenizer("<image>", return_tensors="pt")["input_ids"]}

    reading = Reading(seen.vision, Encoder(seen.tokenizer), lambda item: f"own, item {item}")
    reading.text(0, "<image> one ", [one])
    monkeypatch.setattr(seen.vision, "_read", fewer)
    with pytest.raises(UsageError, match="changes more of a prompt"):
        reading.text(2, "<image><image> two ", [one, one])
