"""A real model: the transformers engine against lm-eval's own on SmolLM2-135M-Instruct, in float32."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines.hf import HFEngine
from cme_bench.harness.lm_eval_model import EngineLM
from cme_bench.models import smollm2

QUESTIONS = [
    ("Question: What do plants take in from the air?\nAnswer:", [" carbon dioxide", " oxygen", " gold"]),
    ("Question: What is the capital of France?\nAnswer:", [" Paris", " Rome", " Berlin", " Paris, France"]),
    ("The opposite of hot is", [" cold", " warm", " a very long summer"]),
    ("2 + 2 =", [" 4", " 5", " 22"]),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["base", "teamlora"])
def test_smollm2_agrees_with_lm_eval(method: str) -> None:
    folder = smollm2.ensure()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    if method == "teamlora":
        torch.manual_seed(0)
        config = TeamLoraConfig(r=4, alpha=4.0, init="random", num_experts=4, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, config).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ours = EngineLM(HFEngine(model, tokenizer), tokenizer)
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)

    pairs = [(question, choice) for question, choices in QUESTIONS for choice in choices]
    scoring = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = ours.loglikelihood(scoring)
    expected = theirs.loglikelihood(scoring, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]

    settings: dict[str, Any] = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    asking = [
        Instance(
            "generate_until",
            {},
            (ours.apply_chat_template([{"role": "user", "content": question}]), settings),
            index,
        )
        for index, (question, _) in enumerate(QUESTIONS)
    ]
    texts = ours.generate_until(asking)
    assert texts == theirs.generate_until(asking, disable_tqdm=True)
    if method == "base":
        assert "Paris" in texts[1]
        return
    with model.disable_adapter():
        without = ours.loglikelihood(scoring[:1])
    assert without[0][0] != pytest.approx(found[0][0], abs=1e-2), "the adapter does something"
