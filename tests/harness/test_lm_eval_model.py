"""lm-eval driven by our engine agrees with lm-eval's own transformers model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import peft
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.engines import Engine, GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from cme_bench.engines.inbox import Given, Inbox
from cme_bench.harness.lm_eval_model import CmeHF, EngineLM
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import RenderedItem, _loglikelihood_items
from cme_bench.prompts.seen import Reading
from cme_bench.util.errors import UsageError

PAIRS = [
    ("The cat sat on", " the mat"),
    ("The cat sat on", " a hat in there"),
    ("The cat sat on", " t"),
    ("A trailing space ", "moves"),
    ("A trailing space  \n", " moves"),
    ("", "nothing before"),
    ("x", "y"),
    ("<s>begins with the prefix", " token"),
    ("a long context that goes on and on until it does not fit in the model, " * 2, " the end"),
    ("The cat sat on", "\n"),
]


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def ours(tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast) -> EngineLM:
    return EngineLM(HFEngine(tiny_model, toy_tokenizer, max_length=65, tokens_per_batch=300), toy_tokenizer)


@pytest.fixture(scope="module")
def theirs(tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast) -> HFLM:
    return HFLM(pretrained=tiny_model, tokenizer=toy_tokenizer, batch_size=1, max_length=64)


class RecordingEngine(Engine):
    """Passes on to another engine and keeps what it was asked."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.max_length, self.stats = inner, inner.max_length, inner.stats
        self.asked: list[Any] = []

    def serve(self, inbox: Inbox) -> Iterator[Any]:
        requests = [request for _, request in inbox.take(wait=True)]
        self.asked.extend(requests)
        return self.inner.serve(Given(requests))

    def describe(self) -> dict[str, str]:
        return self.inner.describe()


def test_loglikelihood_agrees(ours: EngineLM, theirs: HFLM) -> None:
    found = ours.loglikelihood(instances("loglikelihood", PAIRS))
    expected = theirs.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_token_ids_agree(ours: EngineLM, theirs: HFLM) -> None:
    assert (ours.max_length, ours.eot_token_id, ours.prefix_token_id) == (64, 271, 270)
    assert ours.tokenizer_name == theirs.tokenizer_name
    for context, continuation in PAIRS:
        assert ours.tok_encode(context) == theirs.tok_encode(context)
        if context:
            assert ours._encode_pair(context, continuation) == theirs._encode_pair(context, continuation)


@pytest.mark.parametrize("add_bos_token", [True, False])
def test_token_ids_agree_with_a_bos_setting(
    ours: EngineLM, tiny_model: LlamaForCausalLM, toy_tokenizer: PreTrainedTokenizerFast, add_bos_token: bool
) -> None:
    lm = EngineLM(ours.engine, toy_tokenizer, add_bos_token=add_bos_token, prefix_token_id=7)
    other = HFLM(
        pretrained=tiny_model, tokenizer=toy_tokenizer, add_bos_token=add_bos_token, prefix_token_id=7
    )
    assert lm.prefix_token_id == other.prefix_token_id == 7
    for text, _ in PAIRS:
        assert lm.tok_encode(text) == other.tok_encode(text)


def test_rolling_agrees(ours: EngineLM, theirs: HFLM) -> None:
    texts = [("short",), ("the rain in the plain " * 12,), ("x" * 64,), ("x" * 65,), ("",)]
    found = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    expected = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", texts), disable_tqdm=True)
    assert found == pytest.approx(expected, abs=1e-3)  # a sum over up to 240 tokens


def test_generate_until_agrees(ours: EngineLM, theirs: HFLM) -> None:
    plain = {"until": [], "max_gen_toks": 20, "do_sample": False}
    contexts = ["The cat", "In the beginning there", "a" * 100]
    whole = ours.generate_until(instances("generate_until", [(c, plain) for c in contexts]))
    asked = [(c, plain) for c in contexts]
    asked += [
        (c, {"until": [text[4:6]], "max_gen_toks": 20}) for c, text in zip(contexts, whole, strict=True)
    ]
    asked.append(("The cat", {"until": "\n\n", "max_gen_toks": 7, "temperature": 0.0}))
    found = ours.generate_until(instances("generate_until", asked))
    assert found == theirs.generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert found[:3] == whole


def test_choices_of_a_question_reach_the_engine_as_one_request(
    ours: EngineLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = RecordingEngine(ours.engine)
    EngineLM(engine, toy_tokenizer).loglikelihood(instances("loglikelihood", PAIRS[:4]))
    assert [len(r.rows) for r in engine.asked if isinstance(r, LoglikelihoodRequest)] == [3, 1]


def test_end_of_text_is_a_stop_string(ours: EngineLM, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    engine = RecordingEngine(ours.engine)
    settings = {"until": ["Q:"], "max_gen_toks": 2}
    EngineLM(engine, toy_tokenizer).generate_until(instances("generate_until", [("A", settings)]))
    assert [r.stop for r in engine.asked if isinstance(r, GenerateRequest)] == [("Q:", "</s>")]
    assert settings == {"until": ["Q:"], "max_gen_toks": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True, "temperature": 0.7}, "only greedy decoding"),
        ({"temperature": 0.7}, "only greedy decoding"),
        ({"num_beams": 4}, "unsupported generation settings: num_beams"),
        ({"max_gen_toks": 64}, "leaves no room for a prompt"),
    ],
)
def test_settings_that_are_not_greedy_are_refused(
    ours: EngineLM, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ours.generate_until(instances("generate_until", [("A", settings)]))


def test_a_run_cuts_a_prompt_where_lm_eval_does(
    ours: EngineLM, theirs: HFLM, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    """All three feed 64 positions; the last token of a row is scored, not fed."""
    engine = RecordingEngine(ours.engine)
    [item] = _loglikelihood_items(
        SimpleNamespace(name="t", place=str),  # type: ignore[arg-type]
        [RenderedItem(0, {}, "", tuple(instances("loglikelihood", [("x" * 100, " the end")])))],
        Encoder(toy_tokenizer),
        resolve_format("plain", toy_tokenizer, generated=False),
        max_length=64,
        reading=Reading(None, Encoder(toy_tokenizer), str),
    )
    EngineLM(engine, toy_tokenizer).loglikelihood(list(item.instances))
    assert [item.request] == engine.asked
    with mock.patch.object(theirs, "_model_call", side_effect=theirs._model_call) as call:
        expected = theirs.loglikelihood(list(item.instances), disable_tqdm=True)
    fed = call.call_args.args[0][0].tolist()
    [(context, continuation)] = item.request.rows
    assert [*context, *continuation[:-1]] == fed
    assert len(fed) == 64
    [(_, found)] = ours.engine.loglikelihood([item.request])
    assert found.logprobs == pytest.approx([score for score, _ in expected], abs=1e-4)


def test_a_continuation_that_fills_the_model_is_refused(ours: EngineLM) -> None:
    with pytest.raises(UsageError, match="leaves no room for context"):
        ours.loglikelihood(instances("loglikelihood", [("A", "b" * 65)]))


def test_chat_template(ours: EngineLM) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    assert ours.apply_chat_template(chat) == "[user] Hello\n[assistant] "
    open_turn = [*chat, {"role": "assistant", "content": "Well,"}]
    assert ours.apply_chat_template(open_turn, add_generation_prompt=False).endswith("[assistant] Well,")
    assert ours.chat_template(True) == ours.tokenizer.chat_template


ADAPTERS = {
    "lora": peft.LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False),
    "teamlora": TeamLoraConfig(r=2, alpha=8.0, init="random", num_experts=2, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("method", ADAPTERS)
def test_registered_model_loads_a_folder_with_an_adapter(
    tiny_model: LlamaForCausalLM,
    toy_tokenizer: PreTrainedTokenizerFast,
    ours: EngineLM,
    tmp_path: Path,
    method: str,
) -> None:
    assert get_model("cme-hf") is CmeHF
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    tiny_model.save_pretrained(base)
    toy_tokenizer.save_pretrained(base)
    plain = CmeHF.create_from_arg_string(
        f"pretrained={base},dtype=float32,device=cpu,max_length=32", {"batch_size": "auto", "device": None}
    )
    assert plain.max_length == 32
    requests = instances("loglikelihood", PAIRS[:3])
    expected = [score for score, _ in ours.loglikelihood(requests)]
    assert [score for score, _ in plain.loglikelihood(requests)] == pytest.approx(expected, abs=1e-4)

    torch.manual_seed(0)
    fresh = LlamaForCausalLM.from_pretrained(base)
    peft.get_peft_model(fresh, ADAPTERS[method]).save_pretrained(adapter)
    adapted = CmeHF(str(base), adapter=str(adapter), dtype="float32", device="cpu")
    assert adapted.max_length == 64
    assert [score for score, _ in adapted.loglikelihood(requests)] != pytest.approx(expected, abs=1e-3)
    with pytest.raises(UsageError, match="give one of them"):
        CmeHF(str(base), adapter=str(adapter), peft=str(adapter))


def test_code_of_a_model_never_runs(tiny_checkpoint: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^trust_remote_code=True: cme-hf never runs the code of a model: leave it out$"
    ):
        CmeHF.create_from_arg_string(f"pretrained={tiny_checkpoint},trust_remote_code=True")
    kept = CmeHF.create_from_arg_string(f"pretrained={tiny_checkpoint},trust_remote_code=False,device=cpu")
    assert kept.max_length == 8192


def test_a_missing_bos_is_warned_of_and_left_as_lm_eval_leaves_it(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = CmeHF(str(tiny_checkpoint), device="cpu")
    assert "add_bos_token=True or False decides" in caplog.text
    caplog.clear()
    told = CmeHF(str(tiny_checkpoint), device="cpu", add_bos_token=True)
    assert not caplog.text
    assert told.tok_encode("the cat") == [silent.prefix_token_id, *silent.tok_encode("the cat")]
