"""Answers that hold a model's own token of an image are text like any other, on every path."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf.alone import AloneSession
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.hf.sampling import draw
from cme_bench.engines.requests import Sampling
from cme_bench.images.image import Image
from tests.support.seen import Seeing, noise
from tests.support.tiny_vlms import FAMILIES, save_family

IMAGES = (noise(0, 40, 50), noise(1, 50, 40))
PROMPTS = (
    ("Look: <image>\nIs it a dog? ", IMAGES[:1]),
    ("Look: <image>\nWhat colour is it? ", IMAGES[:1]),
    ("Look: <image>\nIs it a dog? ", IMAGES[1:]),
    ("<image> and <image>: which? ", IMAGES),
    ("No picture here. ", ()),
)
NEW, STEEP = 4, 4.0
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"tokens_per_batch": 16, "kept_tokens": 7},
    {"static": True},
    {"plain": True},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Any:
    """Make each family's model, which likes to write its image token, when it is first asked for."""

    @functools.cache
    def made(name: str) -> Seeing:
        seen = Seeing.load(save_family(name, tmp_path_factory.mktemp(name), toy_tokenizer))
        head = seen.model.get_output_embeddings()
        bias = torch.zeros(head.weight.shape[0])
        bias[place_ids(seen)] = STEEP * float(seen.logits(*PROMPTS[0])[-1].std())
        head.bias = torch.nn.Parameter(bias)
        return seen

    return made


def place_ids(seen: Seeing) -> list[int]:
    """The tokens by which a model finds images and videos in a prompt."""
    video = getattr(seen.model.config, "video_token_id", None)
    return [seen.vision.token_id, *([] if video is None else [video])]


Pick = Callable[[torch.Tensor, int], int]
"""Says which token follows logits, and after how many it does."""


def likeliest(logits: torch.Tensor, step: int) -> int:
    return int(logits.argmax())


def drawn(sampling: Sampling) -> Pick:
    return lambda logits, step: int(draw(logits[None], [(sampling, step)])[0])


@torch.inference_mode()
def written(
    seen: Seeing, text: str, images: tuple[Image, ...], pick: Pick, new: int = NEW
) -> tuple[list[int], float]:
    """What transformers itself writes, and its log-probability: it is fed the prompt with its pixels, then
    tokens one by one after its cache."""
    if hasattr(seen.model.model, "rope_deltas"):
        seen.model.model.rope_deltas = None  # of the images before
    fed = seen.inputs(text, images)
    tokens, total = list[int](), 0.0
    while True:
        output = seen.model(**fed, use_cache=True)
        logits = output.logits[0, -1]
        tokens.append(pick(logits, len(tokens)))
        total += float(logits.log_softmax(-1)[tokens[-1]])
        if len(tokens) == new:
            return tokens, total
        fed = {
            "input_ids": torch.tensor([tokens[-1:]]),
            "past_key_values": output.past_key_values,
        }


def engines(seen: Seeing) -> Iterator[HFEngine]:
    for way in WAYS:
        engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision, **way)
        engine.limits.forward_tokens = 8
        yield engine


@pytest.mark.parametrize("family", ["llava", *FAMILIES])
@pytest.mark.parametrize(
    "sampling", [None, pytest.param(Sampling(1.0, seed=5), marks=pytest.mark.slow)], ids=["greedy", "sampled"]
)
def test_texts_are_transformers_own(family: str, sampling: Sampling | None, models: Any) -> None:
    seen = models(family)
    pick = likeliest if sampling is None else drawn(sampling)
    wanted = [written(seen, *prompt, pick)[0] for prompt in PROMPTS]
    assert sum(not set(place_ids(seen)).isdisjoint(tokens[:-1]) for tokens in wanted) >= 2
    requests = [
        GenerateRequest(seen.ids(text, *images), NEW, images=images, sampling=sampling)
        for text, images in PROMPTS
    ]
    for engine in engines(seen):
        found = dict(engine.generate(requests))
        for i, tokens in enumerate(wanted):
            assert found[i].text == seen.tokenizer.decode(tokens, skip_special_tokens=True)
            assert found[i].n_tokens == NEW


@pytest.mark.parametrize("family", ["llava", *FAMILIES])
def test_choices_are_scored_as_transformers_does(family: str, models: Any) -> None:
    seen = models(family)
    places = place_ids(seen)
    choices = [(5, places[0], 6), (places[0], places[-1], 7, 8), (9,)]
    requests = [
        LoglikelihoodRequest(tuple((seen.ids(text, *images), c) for c in choices), images)
        for text, images in PROMPTS
    ]
    wanted = [
        [written(seen, *prompt, lambda _, step, c=c: c[step], len(c))[1] for c in choices]
        for prompt in PROMPTS
    ]
    for engine in engines(seen):
        found = dict(engine.loglikelihood(requests))
        for i, logprobs in enumerate(wanted):
            assert found[i].logprobs == pytest.approx(logprobs, abs=1e-4)


@torch.inference_mode()
def test_a_row_of_text_after_images_has_its_own_positions(models: Any) -> None:
    seen = models("qwen2_vl")
    engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    dict(engine.generate([GenerateRequest(seen.ids(*PROMPTS[0][:1], *IMAGES[:1]), 1, images=IMAGES[:1])]))
    ids, mask = torch.tensor([seen.ids("No picture here. ")]), torch.ones(1, 1, dtype=torch.int64)
    session = AloneSession(engine._forward)
    session.feed(ids[:, :-1], mask)
    whole = seen.model(input_ids=ids, use_cache=False).logits[:, -1]
    torch.testing.assert_close(session.feed(ids[:, -1:], mask), whole, rtol=1e-4, atol=1e-4)
