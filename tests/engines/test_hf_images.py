"""Images on the HF engine: shared or alone, as the model's own processor and forward have it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest, Request
from cme_bench.engines.hf.engine import HFEngine
from cme_bench.engines.hf.forward import CausalForward
from cme_bench.engines.hf.joined_decoding import JoinedPrefixes, JoinedSession, prefix_packs
from cme_bench.engines.hf.pack_forward import PackForward
from cme_bench.engines.stopping import end_token_ids
from cme_bench.images.image import Image
from cme_bench.util.errors import CmeError, UsageError
from tests.support.seen import Seeing, noise
from tests.support.tiny_llava import llava_processor, random_llava, save_llava, seeing
from tests.support.tiny_vlms import save_family

SIZES = ((40, 50), (50, 40), (64, 33))
IMAGES = tuple(noise(seed, *size) for seed, size in enumerate(SIZES))
PROMPTS: tuple[tuple[str, tuple[Image, ...]], ...] = (
    ("Look: <image>\nIs it a dog? ", IMAGES[:1]),
    ("Look: <image>\nWhat colour is it? ", IMAGES[:1]),
    ("Look: <image>\nIs it a dog? ", IMAGES[1:2]),
    ("<image> and <image>: which is larger? ", (IMAGES[0], IMAGES[2])),
    ("No picture here. ", ()),
    ("Look: <image>\nIs it a cat? ", IMAGES[2:]),
)
CHOICES = (("y", "es"), ("n", "o", "!"), ("x",))
SHARED = ("llava", "llava_clip", "llava_next", "idefics3", "smolvlm", "mistral3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Any:
    """Make each family's model when it is first asked for."""

    @functools.cache
    def made(name: str) -> Seeing:
        return Seeing.load(save_family(name, tmp_path_factory.mktemp(name), toy_tokenizer))

    return made


def choices(seen: Seeing) -> list[tuple[int, ...]]:
    return [tuple(seen.tokenizer.convert_tokens_to_ids(list("".join(part)))) for part in CHOICES]


def likelihoods(seen: Seeing) -> list[LoglikelihoodRequest]:
    return [
        LoglikelihoodRequest(tuple((seen.ids(text, *images), c) for c in choices(seen)), images)
        for text, images in PROMPTS
    ]


def texts(seen: Seeing, new: int = 3) -> list[GenerateRequest]:
    return [GenerateRequest(seen.ids(text, *images), new, images=images) for text, images in PROMPTS]


def scores(engine: HFEngine, requests: list[Any]) -> list[float]:
    found = dict(engine.loglikelihood(requests))
    return [logprob for i in range(len(requests)) for logprob in found[i].logprobs]


@pytest.mark.parametrize("family", [*SHARED, "qwen2_vl", "gemma3"])
def test_scores_and_texts_are_those_of_the_plain_forward_row_by_row(family: str, models: Any) -> None:
    seen = models(family)
    engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    plain = [seen.logprob(text, images, c) for text, images in PROMPTS for c in choices(seen)]
    assert scores(engine, likelihoods(seen)) == pytest.approx(plain, abs=1e-4)

    ends = end_token_ids(seen.model.generation_config.eos_token_id, seen.tokenizer)
    written = dict(engine.generate(texts(seen)))
    for i, (text, images) in enumerate(PROMPTS):
        tokens = seen.greedy(text, images, 3, list(ends))
        assert written[i].text == seen.tokenizer.decode(tokens, skip_special_tokens=True)
    told = engine.describe()["images"]
    assert (
        told == "each computed once" if family in SHARED else told.startswith("alone: the model is told by")
    )


def test_an_image_is_computed_once_for_all_its_questions(models: Any) -> None:
    seen = models("llava")
    engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    scores(engine, likelihoods(seen))
    list(engine.generate(texts(seen)))
    assert engine.images is not None
    assert engine.images.computed == len(IMAGES)


def test_order_and_sizes_of_batches_change_nothing(models: Any) -> None:
    seen = models("llava")
    requests = likelihoods(seen)
    usual = scores(HFEngine(seen.model, seen.tokenizer, reader=seen.vision), requests)
    backwards = scores(HFEngine(seen.model, seen.tokenizer, reader=seen.vision), requests[::-1])
    n = len(CHOICES)
    again = [value for i in reversed(range(len(requests))) for value in backwards[i * n : i * n + n]]
    assert again == pytest.approx(usual, abs=1e-4)
    for small in ({"tokens_per_batch": 16, "kept_tokens": 7}, {"static": True}, {"plain": True}):
        engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision, **small)
        assert scores(engine, requests) == pytest.approx(usual, abs=1e-4)
        engine.limits.forward_tokens = 8  # prompts of one image are decoded after their prefix
        assert dict(engine.generate(texts(seen))) == dict(
            HFEngine(seen.model, seen.tokenizer, reader=seen.vision).generate(texts(seen))
        )


MANY = (
    ("Look: <image>\nIs it a dog? ", IMAGES[:1]),
    ("Look: <image>\nWhat? ", IMAGES[:1]),
    ("Look: <image>\nIs it a cat, a cow or a cold day? ", IMAGES[:1]),
    ("Really do look: <image>\nIs it a dog? ", IMAGES[1:2]),
    ("Really do look: <image>\nWho? ", IMAGES[1:2]),
    ("<image>\nOne ", IMAGES[2:]),
    ("<image>\nTwo ", IMAGES[2:]),
    ("No picture here. ", ()),
)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_questions_of_several_images_are_decoded_in_one_batch(family: str, models: Any) -> None:
    seen = models(family)
    asked = [
        GenerateRequest(seen.ids(text, *images), 2 + i % 4, images=images)
        for i, (text, images) in enumerate(MANY)
    ]
    plain = dict(HFEngine(seen.model, seen.tokenizer, reader=seen.vision, plain=True).generate(asked))
    for static in (False, True):
        engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision, static=static)
        engine.limits.forward_tokens = 8
        groups = [len(group) for group in engine._joined_groups(asked, range(len(asked)))]
        assert sorted(groups) == [1, 3]  # three images together, the text by itself
        assert dict(engine.generate(asked)) == plain
        assert dict(engine.generate(asked[::-1])) == {len(asked) - 1 - i: plain[i] for i in plain}


def test_joined_prefixes_give_the_logits_of_each_alone(models: Any) -> None:
    seen = models("llava")
    forward = CausalForward(seen.model, torch.device("cpu"))
    heads = [tuple(range(5, 5 + n)) for n in (9, 4, 16)]
    owners = [0, 1, 1, 2, 0]
    tails = [torch.arange(20 + i, 23 + i) for i in range(len(owners))]
    prefixes = JoinedPrefixes()
    for pack in prefix_packs(heads, 14):
        run = PackForward(forward)
        run(pack)()
        prefixes.add(pack, run.kept)
    session = JoinedSession(forward, prefixes, owners)
    with torch.inference_mode():
        found = session.feed(torch.stack(tails), torch.ones(5, 3))
        for row, (owner, tail) in enumerate(zip(owners, tails, strict=True)):
            ids = torch.cat([torch.tensor(heads[owner]), tail])
            own = seen.model(input_ids=ids[None]).logits[0, -1]
            torch.testing.assert_close(found[row], own, rtol=1e-4, atol=1e-4)
        session.select(torch.tensor([0, 3]))
        found = session.feed(torch.tensor([[7], [8]]), torch.ones(2, 4))
        for row, (kept, last) in enumerate(((0, 7), (3, 8))):
            ids = torch.cat([torch.tensor(heads[owners[kept]]), tails[kept], torch.tensor([last])])
            own = seen.model(input_ids=ids[None]).logits[0, -1]
            torch.testing.assert_close(found[row], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shares", [True, False])
def test_a_model_that_sees_more_than_features_is_found_by_the_trial(
    shares: bool, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = models("llava")
    if not shares:
        monkeypatch.setattr("cme_bench.engines.hf.engine.why_rowwise", lambda *_: "for this test")
    usual = scores(HFEngine(seen.model, seen.tokenizer, reader=seen.vision), likelihoods(seen))
    with sees_in_a_later_layer(seen.model):
        plain = [seen.logprob(text, images, c) for text, images in PROMPTS for c in choices(seen)]
        engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
        assert scores(engine, likelihoods(seen)) == pytest.approx(plain, abs=1e-4)
        assert engine.describe()["images"] == "alone: a trial gave other scores"
    assert plain != pytest.approx(usual, abs=1e-2)


@contextlib.contextmanager
def sees_in_a_later_layer(model: Any) -> Iterator[None]:
    """Let a model add something to the states of its second layer where it was given pixels."""
    given = [False]

    def note(module: Any, fed: Any, named: dict[str, Any]) -> None:
        given[0] = named.get("pixel_values") is not None

    def add(module: Any, fed: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = fed
        return (states.roll(1, -1) if given[0] else states, *rest)

    hooks = (
        model.register_forward_pre_hook(note, with_kwargs=True),
        model.model.language_model.layers[1].register_forward_pre_hook(add),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def test_trials_take_few_forwards_and_each_prefix_is_computed_once(models: Any) -> None:
    seen = models("llava")
    asked = [GenerateRequest(seen.ids(text, *images), 1, images=images) for text, images in MANY[:-1]]
    engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    engine.limits.forward_tokens = 8
    assert engine.rowwise_because is None
    fed: list[int] = []
    layer = seen.model.model.language_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda module, fed_in: fed.append(fed_in[0].shape[1]))
    dict(engine.generate(asked))
    hook.remove()
    own, shared, prefixes, questions = fed
    assert (own, shared) == (16 + 8, 16 + 4 + 4)  # the trial: the image's row both ways
    assert prefixes < sum(len(request.prompt) for request in asked) // 2
    assert questions + 16 <= max(len(request.prompt) for request in asked)


def test_what_the_trial_found_serves_the_next_engine(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, found = models("llava"), dict[str, Any]()
    first = HFEngine(seen.model, seen.tokenizer, reader=seen.vision, verdicts=found)
    usual = scores(first, likelihoods(seen))
    monkeypatch.setattr("cme_bench.engines.hf.engine.why_seen_alone", lambda *_, **__: pytest.fail("again"))
    second = HFEngine(seen.model, seen.tokenizer, reader=seen.vision, verdicts=found)
    assert scores(second, likelihoods(seen)) == usual


def test_features_that_are_given_up_are_computed_again(models: Any) -> None:
    seen = models("llava_next")
    requests = likelihoods(seen)
    usual = scores(HFEngine(seen.model, seen.tokenizer, reader=seen.vision), requests)
    engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    assert engine.images is not None
    engine.images._most_bytes = engine.images._most_tokens = 1
    assert scores(engine, requests) == pytest.approx(usual, abs=1e-4)
    assert scores(engine, requests[::-1])[-3:] == pytest.approx(usual[:3], abs=1e-4)
    assert engine.images.computed > len(IMAGES)


def test_text_alone_is_answered_as_by_the_language_model(models: Any) -> None:
    seen = models("llava")
    inner = LlamaForCausalLM(seen.model.config.text_config).eval()
    inner.model.load_state_dict(seen.model.model.language_model.state_dict())
    inner.lm_head.load_state_dict(seen.model.lm_head.state_dict())
    asked: list[Request] = []
    for text in ("What is this? ", "What is that? ", "Who? "):
        ids = seen.ids(text)
        asked.append(LoglikelihoodRequest(tuple((ids, c) for c in choices(seen))))
    whole = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    assert scores(whole, asked) == pytest.approx(scores(HFEngine(inner, seen.tokenizer), asked), abs=1e-5)
    assert whole.describe()["images"] == "none asked"


def test_images_go_through_their_tower_alone_where_rows_are_alone(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = models("llava")
    usual = scores(HFEngine(seen.model, seen.tokenizer, reader=seen.vision), likelihoods(seen))
    layer = seen.model.model.language_model.layers[0]
    monkeypatch.setattr(layer, "pools_over_sequence", True, raising=False)
    engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    rows: list[int] = []
    tower = seen.model.model.vision_tower.register_forward_pre_hook(
        lambda module, fed: rows.append(len(fed[0]))
    )
    assert scores(engine, likelihoods(seen)) == pytest.approx(usual, abs=1e-4)
    tower.remove()
    assert engine.rowwise_because == "an adapter pools over the sequence"
    assert rows and set(rows) == {1}


def test_a_processor_of_another_model_is_refused_in_one_line(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    own = seeing(toy_tokenizer)
    processor = llava_processor(own)
    processor.patch_size = 16  # the tower's are 8
    seen = Seeing.load(save_llava(tmp_path / "llava", random_llava(0, own), processor))
    engine = HFEngine(seen.model, seen.tokenizer, reader=seen.vision)
    with pytest.raises(UsageError, match=r"does not take images as its processor makes them \(.*tokens: 4"):
        scores(engine, likelihoods(seen))


def test_images_that_nothing_reads_are_refused(models: Any) -> None:
    seen = models("llava")
    with pytest.raises(CmeError, match="nothing that reads them"):
        scores(HFEngine(seen.model, seen.tokenizer), likelihoods(seen))


def test_the_model_is_left_as_it_was(models: Any) -> None:
    seen = models("llava")
    before = {name: tensor.clone() for name, tensor in seen.model.state_dict().items()}
    scores(HFEngine(seen.model, seen.tokenizer, reader=seen.vision), likelihoods(seen))
    embedding = seen.model.get_input_embeddings()
    assert not embedding._forward_hooks and not embedding._forward_pre_hooks
    assert not seen.model.model.language_model._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in seen.model.state_dict().items())
