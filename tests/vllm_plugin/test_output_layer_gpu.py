"""Float32 logits of a bfloat16 model on a GPU: the product, what it costs, and the real vLLM there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cme_bench.engines import GenerateRequest
from cme_bench.util import exact_logits
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import Bench
from tests.support.vllm_spy import CONTEXTS, EXACT, LENGTH, OTHER, TWIN, Spy, scored, twins

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.cuda.is_available() or importlib.util.find_spec("vllm") is None,
        reason="needs a CUDA GPU and vLLM",
    ),
]

STEP_SECONDS = 6.2e-3
"""One token of LLaMA-2-7B on an H100, as docs/vllm.md has it."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 256])
def test_the_product_is_exact_and_not_rounded(dtype: torch.dtype, rows: int) -> None:
    x, weight = _head(rows, dtype)
    bias = torch.randn(len(weight), device="cuda", dtype=dtype)
    found = exact_logits.linear(x, weight, bias)
    assert found.dtype == torch.float32
    assert (found - (x.double() @ weight.double().t() + bias)).abs().max() < 1e-3
    assert (found != found.to(dtype).float()).float().mean() > 0.9


@pytest.mark.parametrize("rows", [1, 256])
def test_it_costs_less_than_one_percent_of_a_step(rows: int) -> None:
    """At LLaMA-2-7B's shapes, against the product that is rounded."""
    x, weight = _head(rows, torch.bfloat16)
    rounded = _seconds(lambda: torch.nn.functional.linear(x, weight))
    exact = _seconds(lambda: exact_logits.linear(x, weight))
    print(f"\n{rows} rows: rounded {rounded * 1e6:.1f} us, float32 {exact * 1e6:.1f} us")
    assert exact - rounded < 0.01 * STEP_SECONDS


def _head(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, 4096, device="cuda", dtype=dtype)
    return x, (torch.randn(32000, 4096, device="cuda") * 0.1).to(dtype)


def _seconds(product: object) -> float:
    """Median of 20 groups of 10 calls, after a warm-up."""
    assert callable(product)
    times = []
    for _ in range(22):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(10):
            product()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e4)
    return float(torch.tensor(times[2:]).median())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = random_llama(0, hidden=128, heads=2, positions=LENGTH, vocab=384, tokenizer=toy_tokenizer)
    return save_checkpoint(tmp_path_factory.mktemp("gpu") / "base", twins(model), toy_tokenizer)


def test_vllm_computes_the_unrounded_product(base: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    """With CUDA graphs, in this process, so that hidden states can be looked at."""
    bench = Bench(base, toy_tokenizer, LENGTH, "bfloat16", in_process=True, memory_percent=20)
    engine = bench.vllm()
    try:
        scored(engine, CONTEXTS[0], (3,))
        spy = Spy(bench.host._llm)
        for context in CONTEXTS:
            found = scored(engine, context, (TWIN,), (OTHER,), (5,))
            wanted = spy.logits().log_softmax(-1)[-1, [TWIN, OTHER, 5]]
            assert found == pytest.approx(wanted.tolist(), abs=EXACT)
        [(_, text)] = engine.generate([GenerateRequest(CONTEXTS[3], 20)])
        best = spy.logits().argmax(-1)[: text.n_tokens]  # a step may be asked for before the last is known
        assert bench.tokenizer.decode(best, skip_special_tokens=True) == text.text
        assert engine.describe()["logits"] == "float32"
    finally:
        bench.host.close()


@pytest.mark.parametrize("runner", ["0", "1"])
def test_both_runners_in_a_process_of_their_own(
    base: Path, toy_tokenizer: PreTrainedTokenizerFast, runner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0: vLLM's older runner, 1: its new one."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", runner)
    bench = Bench(base, toy_tokenizer, LENGTH, "bfloat16", in_process=False, memory_percent=20)
    engine = bench.vllm()
    try:
        for context in CONTEXTS:
            twin, other, _ = scored(engine, context, (TWIN,), (OTHER,), (9, OTHER, 9))
            assert 0 < abs(twin - other) < 0.2
        assert engine.describe()["logits"] == "float32"
    finally:
        bench.host.close()


def test_float32_is_float32(base: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    """vLLM's attention then is Triton's, whose products of float32 are TF32 unless it is told otherwise."""
    bench = Bench(base, toy_tokenizer, LENGTH, in_process=False, memory_percent=20)
    engine, reference = bench.vllm(), bench.transformers()
    try:
        for context in CONTEXTS:
            found, wanted = (scored(e, context, (TWIN,), (5, 6, 7, 8), (9,)) for e in (engine, reference))
            assert found == pytest.approx(wanted, abs=1e-3)
    finally:
        bench.host.close()
