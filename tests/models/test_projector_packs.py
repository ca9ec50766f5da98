"""The projector's training: questions of a picture in one sequence, and what they are asked about."""

from __future__ import annotations

import copy
import importlib
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.models.smollava.tower import WIDTH
from cme_bench.tasks.made.art import Art, Thing
from cme_bench.tasks.made.scenes import Placed

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "smollava"


@pytest.fixture(scope="module")
def scripts() -> Any:
    """The script's modules, which import each other by their bare names."""
    sys.path.insert(0, str(FOLDER))
    try:
        names = {"packs": "packs", "questions": "questions", "train": "train_projector"}
        yield SimpleNamespace(**{name: importlib.import_module(module) for name, module in names.items()})
    finally:
        sys.path.remove(str(FOLDER))


THINGS = tuple(Thing(name, kind, f"{name}.png") for name, kind in zip("abcdefgh", "xxxxyyyy", strict=True))
ART = Art(THINGS, tuple(Thing(name.upper(), "flag", "f.png") for name in "abcde"), {})


def test_packed_questions_have_the_losses_of_each_alone(
    scripts: Any, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(toy_tokenizer)
    tokenizer.add_tokens([scripts.questions.END, "<|im_start|>"])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    frozen = SimpleNamespace(lm=model, tokenizer=tokenizer, device=torch.device("cpu"))
    projector = scripts.train.Projector(16)
    asked = scripts.questions.Questions(ART)
    pools = [("things", 0.5, THINGS), ("flags", 0.3, ART.flags), ("digits", 0.2, [3])]
    stream = scripts.packs.Stream(tokenizer, asked, pools, pictures=2, each=3, seed=1)
    packs = next(iter(stream))
    features = torch.randn(2, scripts.packs.IMAGE_TOKENS, WIDTH)
    found = scripts.train.losses_of(frozen, projector, features, packs)
    assert len(found) == packs.answers == 6
    alone = []
    for i in range(2):
        for k in range(1, 4):
            own = (packs.part[i] == k) | (packs.part[i] == 0)
            ids, weight = packs.ids[i][own], packs.weight[i][own][1:]
            embedded = model.get_input_embeddings()(ids[None])
            shown = packs.is_image[i][own][None, :, None]
            embedded = embedded.masked_scatter(shown, projector(features[i : i + 1]))
            logits = model(inputs_embeds=embedded).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            alone.append((losses * weight).sum())
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_answers_are_true_of_the_scene(scripts: Any) -> None:
    asked = scripts.questions.Questions(ART)
    a, b, c = THINGS[:3]
    pair = [Placed(b, 0, 2), Placed(c, 2, 0)]
    crowd = [Placed(a, 0, 0), Placed(a, 2, 1), Placed(a, 1, 2), *pair]
    rng, seen = random.Random(0), Counter[str]()
    for number in range(600):
        placed = crowd if number % 2 else pair
        kind, values, choices, right = asked.facts(rng, "scenes", placed)
        seen[f"{kind} {choices[right]}"] += 1
        there = Counter(item.thing.name for item in placed)
        if kind == "emoji_pope":
            assert choices[right] == ("yes" if values["name"] in there else "no")
        elif kind == "emoji_count":
            assert choices[right] == str(there[values["name"]])
        else:
            sideways = "left" in choices
            first = "left" if sideways else "above"
            is_first = (values["one"] == "c") == sideways  # c is left of b, and below it
            assert (choices[right] == first) == is_first
    assert {"emoji_pope yes", "emoji_pope no", "emoji_where left", "emoji_where below"} <= set(seen)
    assert abs(seen["emoji_pope yes"] - seen["emoji_pope no"]) < 60
