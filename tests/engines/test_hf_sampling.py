"""Sampled answers of the transformers engine: the distribution asked for, whatever else is in the batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from cme_bench.engines import GenerateRequest, Sampling
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.hf.sampling import draw, gumbel, restricted
from tests.support.greedy import generate_all

LOGITS = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])
MANY = 4000


def expected(sampling: Sampling) -> np.ndarray:
    """The distribution by transformers' own warpers."""
    scores = LOGITS[None] / sampling.temperature
    ids = torch.zeros(1, 1, dtype=torch.int64)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    return scores.softmax(-1)[0].double().numpy()


def fits(counts: np.ndarray, shares: np.ndarray) -> bool:
    """Whether counts come from these shares, by chi-square; none may be where there is no share."""
    assert not counts[shares == 0].any()
    possible = shares > 0
    wanted = counts.sum() * shares[possible] / shares.sum()
    return possible.sum() == 1 or bool(stats.chisquare(counts[possible], wanted).pvalue > 1e-3)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(2.0, top_p=0.8),
        Sampling(1.0, top_k=3),
        Sampling(1.5, top_p=0.9, top_k=4),
        Sampling(1.0, top_p=0.01),
    ],
    ids=str,
)
def test_draws_have_the_distribution(sampling: Sampling) -> None:
    rows = [(replace(sampling, seed=seed), seed % 3) for seed in range(MANY)]
    tokens = draw(LOGITS.expand(MANY, -1), rows)
    assert fits(np.bincount(tokens.numpy(), minlength=len(LOGITS)), expected(sampling))


def test_restrictions_are_those_of_transformers() -> None:
    torch.manual_seed(0)
    scores = torch.randn(50, 40).double() * 3
    for top_k, top_p in ((40, 0.9), (7, 1.0), (9, 0.7), (40, 1.0), (1, 0.5)):
        ids = torch.zeros(50, 1, dtype=torch.int64)
        theirs = TopKLogitsWarper(top_k)(ids, scores)
        theirs = TopPLogitsWarper(top_p)(ids, theirs) if top_p < 1 else theirs
        ours = restricted(scores, torch.full((50, 1), top_k), torch.full((50, 1), top_p).double())
        assert torch.equal(ours, theirs)


def test_noise_depends_on_seed_and_count_alone_and_is_gumbel() -> None:
    cpu = torch.device("cpu")
    together = gumbel([(7, 0), (7, 1), (8, 0)], 50_000, cpu)
    assert torch.equal(together[1], gumbel([(7, 1)], 50_000, cpu)[0])
    assert torch.equal(together[2, :100], gumbel([(8, 0)], 100, cpu)[0])
    assert abs(np.corrcoef(together.numpy())[np.triu_indices(3, 1)]).max() < 0.02
    for row in together:
        assert stats.kstest(row.numpy(), stats.gumbel_r.cdf).pvalue > 1e-3
    assert together.isfinite().all()


def test_broken_logits_are_told() -> None:
    logits = torch.stack([LOGITS, torch.full_like(LOGITS, torch.nan), LOGITS])
    assert draw(logits, [(Sampling(1.0, seed=i), 0) for i in range(3)]).tolist()[1] == -1


def requests(tokenizer: PreTrainedTokenizerFast) -> list[GenerateRequest]:
    """Prompts of several lengths, three answers each, with a greedy one among them."""
    found = []
    for number, text in enumerate(("a", "the end of it", "in other words", "the end", "other")):
        prompt = tuple(tokenizer.encode(text))
        found += [
            GenerateRequest(prompt, 8, sampling=Sampling(1.0, 0.95, seed=10 * number + r), repeat=r)
            for r in range(3)
        ]
    return [*found, GenerateRequest(found[0].prompt, 8)]


def test_answers_do_not_depend_on_the_batch(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = requests(toy_tokenizer)
    plain = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=1, plain=True)
    alone = [generate_all(plain, [request])[0] for request in asked]
    assert len({response.text for response in alone}) > 8
    for tokens in (1, 60, 4096):
        engine = HFEngine(tiny_model, toy_tokenizer, tokens_per_batch=tokens)
        assert generate_all(engine, asked) == alone
        assert generate_all(engine, asked[::-1]) == alone[::-1]
        assert generate_all(engine, asked[7:]) == alone[7:]


def test_another_seed_is_another_answer_and_greedy_stays(
    tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = HFEngine(tiny_model, toy_tokenizer)
    prompt = tuple(toy_tokenizer.encode("the end"))
    asked = [GenerateRequest(prompt, 6, sampling=Sampling(1.5, seed=seed)) for seed in range(20)]
    texts = Counter(response.text for response in generate_all(engine, asked))
    assert len(texts) > 10
    cold = GenerateRequest(prompt, 6, sampling=Sampling(0.01, seed=3))
    greedy, coldest = generate_all(engine, [GenerateRequest(prompt, 6), cold])
    assert coldest == greedy
