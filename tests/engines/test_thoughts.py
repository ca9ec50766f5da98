"""Legs of an answer with a thought, on the transformers engine, for a model whose every word is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from cme_bench.engines import GenerateRequest, GenerateResponse, Sampling, Thought
from cme_bench.engines.hf import HFEngine
from cme_bench.prompts.encode import Encoder
from tests.support.greedy import generate_all
from tests.support.scripted import END, THINKING, save_scripted

TABLE: dict[str, Any] = {
    **THINKING,
    "stop": "more",
    "more": END,
    "plain": "yes",
    "dice": {"a1": 0.5, "a2": 0.3, "a3": 0.2},
    "begin": {"<think>": 0.5, "yes": 0.5},
    "quiet": END,
    "spaced": " ",
    " ": "<think>",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    folder = save_scripted(tmp_path_factory.mktemp("scripted"), TABLE, None)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return HFEngine(model, AutoTokenizer.from_pretrained(folder))


def request(
    engine: HFEngine, prompt: str, budget: int, *, opened: bool = False, **more: Any
) -> GenerateRequest:
    encoder = Encoder(engine.tokenizer)
    ids = tuple(engine.tokenizer.encode(prompt, add_special_tokens=False))
    after, closing = (encoder.encode_behind(text) for text in ("\n\n", "\n</think>\n\n"))
    thought = Thought(budget, "<think>", "</think>", opened, after, closing)
    settings: dict[str, Any] = {"max_new_tokens": 2, "stop": ("stop", "\n"), "thought": thought}
    return GenerateRequest(ids, **settings | more)


@pytest.mark.parametrize(
    ("prompt", "opened", "budget", "thought", "n", "end"),
    [
        ("start", False, 50, "onetwothree", 5, "closed"),
        ("spaced", False, 50, "onetwothree", 6, "closed"),
        ("start<think>", True, 50, "onetwothree", 4, "closed"),
        ("start", False, 3, "onetwo", 3, "budget"),
        ("start", False, 1, "", 1, "budget"),
        ("start<think>", True, 2, "onetwo", 2, "budget"),
        ("start<think>", True, 0, "", 0, "budget"),
        ("start", False, 5, "onetwothree", 5, "closed"),
        ("start", False, 4, "onetwothree", 4, "budget"),
    ],
)
def test_the_answer_follows_a_thought_however_that_ended(
    engine: HFEngine, prompt: str, opened: bool, budget: int, thought: str, n: int, end: str
) -> None:
    """The answer's two tokens are its own, and its stop strings do not stop a thought or what follows it."""
    [found] = generate_all(engine, [request(engine, prompt, budget, opened=opened)])
    assert found == GenerateResponse("yes", 2, "stop", thought, n, end)  # type: ignore[arg-type]


def test_what_is_no_thought_is_answered_as_without_one(engine: HFEngine) -> None:
    asked = request(engine, "plain", 50)
    [found] = generate_all(engine, [asked])
    [without] = generate_all(engine, [GenerateRequest(asked.prompt, 2, asked.stop)])
    assert found == without == GenerateResponse("yes", 2, "stop")


def test_one_that_ends_in_its_thought_has_no_answer(engine: HFEngine) -> None:
    [found] = generate_all(engine, [request(engine, "quiet", 9, opened=True)])
    assert found == GenerateResponse("", 0, "eos", "", 1, "unclosed")


def test_many_at_once_are_as_alone(engine: HFEngine) -> None:
    asked = [
        request(engine, prompt, budget, opened=opened)
        for budget in (50, 3, 0)
        for prompt, opened in (("start", False), ("start<think>", True), ("plain", False), ("quiet", True))
    ]
    assert generate_all(engine, asked) == [generate_all(engine, [one])[0] for one in asked]


def test_sampling_does_not_depend_on_whether_a_thought_was_tried(engine: HFEngine) -> None:
    """A model that answers at once draws what it would have drawn without a thought; others draw anew."""
    asked = [
        request(engine, "begin", 50, sampling=Sampling(1.0, seed=seed), repeat=seed) for seed in range(40)
    ]
    found = generate_all(engine, asked)
    plain = generate_all(
        engine, [GenerateRequest(a.prompt, 2, a.stop, sampling=a.sampling, repeat=a.repeat) for a in asked]
    )
    thought = [f.thought is not None for f in found]
    assert 8 < sum(thought) < 32
    assert [f for f, t in zip(found, thought, strict=True) if not t] == [
        p for p, t in zip(plain, thought, strict=True) if not t
    ]
    assert {f.text for f in found} == {"yes"}


def test_a_mark_may_be_special(tmp_path: Path) -> None:
    """Where the tokenizer calls it special it is in no decoded text, and ends a thought all the same."""
    folder = save_scripted(tmp_path, TABLE, None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    engine = HFEngine(AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    [found] = generate_all(engine, [request(engine, "start", 50)])
    assert found == GenerateResponse("yes", 2, "stop", "onetwothree", 5, "closed")
