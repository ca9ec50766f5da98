"""The real vLLM on a CPU against the transformers engine, token ids in and numbers out, float32."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.adapters.errors import AdapterError
from cme_bench.cli.adapters import export_vllm
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest, LoglikelihoodResponse, TokenIds
from cme_bench.engines.inbox import Batches, Numbered
from cme_bench.engines.logits import LogitsError
from cme_bench.engines.vllm.choices import Tail
from cme_bench.engines.vllm.questions import ScoringCall
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.vllm_plugin.file import write_adapter
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_bench import BLOCK, Bench, ids

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

LENGTH = 160
TOLERANCE = 1e-4
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS: dict[str, Callable[[], Any]] = {
    "teamlora": lambda: TeamLoraConfig(r=4, num_experts=3, init="random", target_attention=True),
    "teamlora-authors": lambda: TeamLoraConfig.preset(
        "authors-2024-08", r=4, num_experts=3, init="random", target_attention=True
    ),
    "moelora": lambda: MoeLoraConfig(r=4, num_experts=4, init="random"),
    "hydralora": lambda: HydraLoraConfig(r=4, num_experts=2, init="random", target_modules=["up_proj"]),
    "moslora": lambda: MosLoraConfig(r=4, init="random"),
    "lora": lambda: LoraConfig(
        r=4,
        init_lora_weights=False,
        target_modules=ATTENTION,
        use_rslora=True,
        rank_pattern={"layers.1.mlp.up_proj": 7},
    ),
    "adalora": lambda: AdaLoraConfig(
        init_r=4,
        target_r=2,
        total_step=10,
        target_modules=["gate_proj", "down_proj"],
        init_lora_weights=False,
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    """Two layers, three query heads and one key head of width 64."""
    vocab = 384  # 64 times a multiple of three: three ranks share the output embedding
    model = random_llama(
        0, hidden=192, heads=3, positions=LENGTH, vocab=vocab, spread=0.08, tokenizer=toy_tokenizer
    )
    return save_checkpoint(tmp_path_factory.mktemp("vllm") / "base", model, toy_tokenizer)


@pytest.fixture(scope="module")
def adapters(base: Path) -> dict[str, Path]:
    """A random adapter of every method."""
    folders = {}
    for seed, (name, config) in enumerate([*CONFIGS.items(), ("teamlora-2", CONFIGS["teamlora"])]):
        torch.manual_seed(seed)
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config())
        folders[name] = base.parent / name
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def bench(base: Path, toy_tokenizer: PreTrainedTokenizerFast) -> Iterator[Bench]:
    bench = Bench(base, toy_tokenizer, LENGTH)
    yield bench
    bench.host.close()


def questions() -> list[LoglikelihoodRequest]:
    """Contexts around the edges of cache blocks; choices of one token, of many, sharing a whole block, one
    the beginning of another, one twice, one empty; the same question twice."""
    asked = []
    for n in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1):
        context, long = ids(n, n), ids(BLOCK + 8, 99)
        families: list[list[TokenIds]] = [
            [(5,), (6,), (7,)],
            [ids(3, 1), ids(5, 2), ids(1, 3)],
            [(*long, 4), (*long, 9, 9), long],
            [ids(4, 4), ids(4, 4)[:2], ids(4, 4)[:2], ()],
            [ids(BLOCK, 5), ids(BLOCK, 5) + ids(2, 6)],
        ]
        asked += [LoglikelihoodRequest(tuple((context, c) for c in choices)) for choices in families]
    full = ids(LENGTH - 4, 8)
    asked.append(LoglikelihoodRequest(((full, ids(4, 9)), (full, (3,)))))
    return [*asked, asked[0], asked[2]]


def answers(engine: Any, asked: list[LoglikelihoodRequest]) -> list[LoglikelihoodResponse]:
    found = dict(engine.loglikelihood(asked))
    assert sorted(found) == list(range(len(asked)))
    return [found[i] for i in range(len(asked))]


def assert_alike(ours: list[LoglikelihoodResponse], theirs: list[LoglikelihoodResponse]) -> None:
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        assert one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE), index
        assert one.greedy == other.greedy, index


def test_every_edge_of_the_cache_is_exact(bench: Bench) -> None:
    """42 questions, asked of a cold cache, of a warm one, and in another order."""
    asked = questions()
    wanted = answers(bench.transformers(), asked)
    assert_alike(answers(bench.vllm(), asked), wanted)
    assert_alike(answers(bench.vllm(), asked), wanted)
    shuffled = list(range(len(asked)))
    random.Random(1).shuffle(shuffled)
    again = answers(bench.vllm(), [asked[i] for i in shuffled])
    assert_alike(again, [wanted[i] for i in shuffled])


def test_steps_that_end_within_a_choice_are_exact(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is longer than a step may be is computed, and scored, in pieces."""
    bench.host.use(None, None)
    scheduler = bench.host._llm.llm_engine.engine_core.engine_core.scheduler
    monkeypatch.setattr(scheduler, "max_num_scheduled_tokens", 16)
    bench.host._llm.reset_prefix_cache()
    asked = questions()
    assert_alike(answers(bench.vllm(), asked), answers(bench.transformers(), asked))


def test_only_the_tokens_of_a_choice_are_scored(bench: Bench) -> None:
    """As many as asked for, after the place of the first token, which has no probability."""
    bench.host.use(None, None)
    with bench.host.flight() as flight:
        flight.add(ScoringCall(0, Tail(ids(37), (*ids(40)[37:], 7))))
        [(_, output)] = flight.finish()
    assert len(output.prompt_logprobs) == 1 + 3


def test_shared_prefixes_come_from_the_cache(bench: Bench) -> None:
    header = ids(3 * BLOCK, 20)
    asked = [
        LoglikelihoodRequest(((header + ids(4, i), (3,)), (header + ids(4, i), (4,)))) for i in range(20)
    ]
    engine = bench.vllm()
    answers(engine, asked)
    assert engine.stats.tokens_rowwise == 2 * 20 * (3 * BLOCK + 4)
    assert engine.stats.tokens_computed < 20 * (BLOCK + 4) + 3 * BLOCK


def test_generation_equals_greedy_decoding_of_transformers(bench: Bench) -> None:
    asked = [GenerateRequest(ids(n, n), 12) for n in (1, 7, BLOCK, BLOCK + 5)]
    plain = dict(bench.transformers().generate(asked))
    assert dict(bench.vllm().generate(asked)) == plain
    stop = next(character for character in plain[1].text if character.isascii())
    stopped = [GenerateRequest(r.prompt, 12, (stop, "")) for r in asked]
    found, wanted = dict(bench.vllm().generate(stopped)), dict(bench.transformers().generate(stopped))
    # vLLM looks for the stop string once a character's bytes are whole, so it may stop some tokens later
    assert [(r.text, r.finish) for _, r in sorted(found.items())] == [
        (r.text, r.finish) for _, r in sorted(wanted.items())
    ]
    assert found[1].finish == "stop"
    ends = [replace(r, ends=tuple(range(3, 260, 2))) for r in asked]  # as an adapter's training may say
    ended = dict(bench.vllm().generate(ends))
    assert ended == dict(bench.transformers().generate(ends))
    assert "eos" in {response.finish for response in ended.values()}


@pytest.mark.parametrize("method", [*reversed(CONFIGS), "teamlora-2"])
def test_every_method_equals_transformers(bench: Bench, adapters: dict[str, Path], method: str) -> None:
    """The last two, and those of the next tests, have one shape: they are swapped in one engine."""
    asked = questions()[::3]
    engine = bench.vllm(adapters[method])
    engine.check_liveness(method, ids(9))
    found = answers(engine, asked)
    assert_alike(found, answers(bench.transformers(adapters[method]), asked))
    base = answers(bench.transformers(), asked)
    assert any(abs(a.logprobs[0] - b.logprobs[0]) > 0.01 for a, b in zip(found, base, strict=True))


def test_a_swap_leaves_nothing_of_the_adapter_before(bench: Bench, adapters: dict[str, Path]) -> None:
    """Same prompts before and after: cached keys and values of the old adapter must not answer."""
    asked = questions()[20:30]
    first, second = bench.vllm(adapters["teamlora"]), bench.vllm(adapters["teamlora-2"])
    before = answers(first, asked)
    running = bench.host._llm
    assert_alike(answers(second, asked), answers(bench.transformers(adapters["teamlora-2"]), asked))
    assert_alike(answers(first, asked), before)
    assert_alike(answers(bench.vllm(), asked), answers(bench.transformers(), asked))
    assert bench.host._llm is running


def test_a_file_that_does_not_fit_is_refused_and_the_engine_goes_on(
    bench: Bench, adapters: dict[str, Path]
) -> None:
    engine = bench.vllm(adapters["teamlora"])
    asked = questions()[:3]
    wanted = answers(engine, asked)
    broken = bench.base.parent / "broken.safetensors"
    spec = engine._spec
    write_adapter(broken, spec, {f"{spec.modules[0]}.down": torch.zeros(1, 1)})
    with pytest.raises(UsageError, match=r"broken\.safetensors: tensor .* (is missing|has shape)"):
        bench.host.use(broken, spec)
    assert_alike(answers(engine, asked), wanted)


def test_an_adapter_that_does_nothing_is_refused(bench: Bench, base: Path) -> None:
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), TeamLoraConfig(r=4, num_experts=3))
    model.save_pretrained(base.parent / "idle")
    with pytest.raises(AdapterError, match="'idle' changes no logit"):
        bench.vllm(base.parent / "idle").check_liveness("'idle'", ids(9))


class Trickle:
    """Half of the requests, then nothing at every other look, else three more."""

    def __init__(self, requests: list[LoglikelihoodRequest]) -> None:
        self.later: list[Numbered] = list(enumerate(requests))
        self.unanswered: set[int] = set()
        self.looks = 0

    def take(self, *, wait: bool) -> list[Numbered]:
        assert not (wait and self.unanswered), "whoever owes a response does not wait"
        self.looks += 1
        count = len(self.later) // 2 if self.looks == 1 else 3 if wait or self.looks % 2 else 0
        batch, self.later = self.later[:count], self.later[count:]
        self.unanswered |= {number for number, _ in batch}
        return batch

    @property
    def closed(self) -> bool:
        return not self.later


def test_what_is_fed_while_it_computes_is_answered_alike(bench: Bench, adapters: dict[str, Path]) -> None:
    """Half of the questions come later, three at a time; equal ones and choices from the cache among them."""
    engine = bench.vllm(adapters["teamlora"])
    asked = questions()
    asked += asked[:3]
    inbox = Trickle(asked)
    found: dict[int, Any] = {}
    for number, response in engine.serve(inbox):
        inbox.unanswered.remove(number)
        found[number] = response
    assert not inbox.unanswered
    assert_alike([found[i] for i in range(len(asked))], answers(engine, asked))
    prompts = [GenerateRequest(ids(5 + i % 3, i), 6) for i in range(9)]
    served = dict(engine.serve(Batches([prompts[:4], prompts[4:]])))
    assert served == dict(engine.generate(prompts))


def test_stopping_early_leaves_the_engine_usable(bench: Bench) -> None:
    asked = questions()
    stream = bench.vllm().loglikelihood(asked)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert_alike(answers(bench.vllm(), asked[:4]), answers(bench.transformers(), asked[:4]))


def test_a_job_that_generates_nothing_needs_no_tokenizer(
    base: Path, toy_tokenizer: PreTrainedTokenizerFast, adapters: dict[str, Path]
) -> None:
    """Should it generate after all, the engine starts anew; stop texts are found as ever."""
    bench = Bench(base, toy_tokenizer, LENGTH)
    bench.host.writes = False
    asked, prompts = questions()[::4], [GenerateRequest(ids(5 + i, i), 8, stop=("a",)) for i in range(4)]
    try:
        engine = bench.vllm(adapters["teamlora"])
        engine.check_liveness("'teamlora'", ids(9))
        first = bench.host._llm.llm_engine
        assert first.tokenizer is None
        assert not logging.getLogger("vllm.renderers.base").isEnabledFor(logging.WARNING), "it warns of that"
        assert_alike(answers(engine, asked), answers(bench.transformers(adapters["teamlora"]), asked))
        assert bench.host.runs(first)
        texts = dict(engine.generate(prompts))
        assert texts == dict(bench.transformers(adapters["teamlora"]).generate(prompts))
        assert not bench.host.runs(first)
        assert_alike(answers(engine, asked), answers(bench.transformers(adapters["teamlora"]), asked))
    finally:
        bench.host.close()


@pytest.mark.parametrize("settings", [{"compile": True}, {"tensor_parallel": 3}], ids=["compiled", "tp3"])
def test_compiled_and_in_three_processes(
    base: Path,
    toy_tokenizer: PreTrainedTokenizerFast,
    adapters: dict[str, Path],
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three ranks share one key head; in row-parallel layers each has a third of the router's logits."""
    if "compile" not in settings:
        monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # each rank would compile vLLM's sampler
    bench = Bench(base, toy_tokenizer, LENGTH, **settings)
    asked = questions()[::4]
    try:
        for name in ("teamlora", "teamlora-2"):
            found = answers(bench.vllm(adapters[name]), asked)
            assert_alike(found, answers(bench.transformers(adapters[name]), asked))
    finally:
        bench.host.close()


def test_an_exported_folder_is_served_without_a_flag(
    base: Path, toy_tokenizer: PreTrainedTokenizerFast, adapters: dict[str, Path], tmp_path: Path
) -> None:
    """vLLM's own loader, told nothing but the folder."""
    folder = tmp_path / "served"
    export_vllm(adapters["teamlora"], str(base), folder, offline=True)
    with pytest.raises(UsageError, match="is not empty"):
        export_vllm(adapters["teamlora"], str(base), folder, offline=True)
    asked = questions()[::4]
    bench = Bench(folder, toy_tokenizer, LENGTH)
    found = answers(bench.vllm(), asked)
    bench.host.close()
    assert_alike(found, answers(Bench(base, toy_tokenizer, LENGTH).transformers(adapters["teamlora"]), asked))


def test_logits_that_are_no_numbers_are_an_error(
    base: Path, toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_input_embeddings().weight[299] = float("nan")
    bench = Bench(save_checkpoint(tmp_path / "nan", model, toy_tokenizer), toy_tokenizer, LENGTH)
    asked = [GenerateRequest(ids(5), 3), GenerateRequest((299, 4), 3)]
    with pytest.raises(LogitsError, match=r"^request 1: the model's logits are NaN"):
        list(bench.vllm().generate(asked))
    scored = [LoglikelihoodRequest(((ids(5), (4, 5)),)), LoglikelihoodRequest((((299, 4), (4, 5)),))]
    with pytest.raises(LogitsError, match=r"^request 1: the model's logits are NaN"):
        list(bench.vllm().loglikelihood(scored))
    assert len(answers(bench.vllm(), scored[:1])) == 1, "the next engine answers"
    bench.host.close()


def test_an_engine_that_dies_is_reported_and_the_next_one_answers(
    base: Path, toy_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # its process would compile vLLM's sampler
    bench = Bench(base, toy_tokenizer, LENGTH, in_process=False)
    asked = questions()[:2]
    wanted = answers(bench.vllm(), asked)
    children = psutil.Process().children(recursive=True)
    alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    [core] = [child for child in alive if "EngineCore" in " ".join(child.cmdline())]
    os.kill(core.pid, signal.SIGKILL)
    with pytest.raises(CmeError, match=r"engine died.*the same command goes on"):
        answers(bench.vllm(), asked)
    bench.host.settings = replace(bench.host.settings, in_process=True)
    assert_alike(answers(bench.vllm(), asked), wanted)
    bench.host.close()
