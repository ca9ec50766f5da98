"""Every PEFT method and every field of LoRA: computed as plain PEFT computes it, or refused by name."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.liveness import check_liveness, probing
from cme_bench.adapters.load import load_adapter, take_off
from cme_bench.adapters.support import known_fields, method_verdict
from cme_bench.engines import GenerateRequest, LoglikelihoodRequest
from cme_bench.engines.hf import HFEngine
from tests.support.peft_cases import CASES, COMPUTES_NOTHING, make
from tests.support.tiny_llama import random_llama

HEAD = (9, 8, 11, 12, 13, 9, 8, 14)
"""The invocation tokens 9, 8 stand in it twice, and trained tokens 5 to 7 in some rows."""
SCORED = [
    LoglikelihoodRequest((((*HEAD, 5, 20), (21, 22)), ((*HEAD, 5, 20), (23,)), ((*HEAD, 5, 20), (9, 8, 30)))),
    LoglikelihoodRequest((((*HEAD, 6), (40,)), ((*HEAD, 6), (41, 42, 43, 7)))),
    LoglikelihoodRequest((((31, 32, 7), (33,)), ((31, 32, 7), (34, 35)))),
]
ASKED = [GenerateRequest((*HEAD, 5, 20), 5), GenerateRequest((*HEAD, 6), 3), GenerateRequest((31, 7, 33), 4)]
TOLERANCE = 1e-4


def fresh() -> LlamaForCausalLM:
    return random_llama(0)


@pytest.fixture(scope="module")
def kept_base() -> Iterator[dict[str, Any]]:
    """One base for all adapters, one after the other, as in a run."""
    yield {"model": fresh()}


def quiet(folder: Path, model: Any, task: int | None = None) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_adapter(model, folder, task=task)


def plain(folder: Path, task: int | None = None) -> Any:
    """With PEFT's own ``task_ids``, where there is a task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = fresh()
        torch.manual_seed(0)
        model: Any = PeftModel.from_pretrained(base, str(folder)).eval()
    if task is not None:
        model.forward = functools.partial(model.forward, task_ids=torch.tensor([task]))
        model.generate = functools.partial(model.generate, task_ids=torch.tensor([task]))
    return model


@torch.no_grad()
def scores_of(model: Any, request: LoglikelihoodRequest) -> list[float]:
    """By one plain forward a choice."""
    found = []
    for context, continuation in request.rows:
        logits = model(input_ids=torch.tensor([context + continuation[:-1]]), use_cache=False).logits[0]
        logprobs = logits.log_softmax(-1)[-len(continuation) :]
        found.append(sum(float(logprobs[i, t]) for i, t in enumerate(continuation)))
    return found


@torch.no_grad()
def text_of(model: Any, request: GenerateRequest, tokenizer: PreTrainedTokenizerFast) -> str:
    """By PEFT's ``generate``."""
    ids = torch.tensor([request.prompt])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def check_equal(model: Any, reference: Any, tokenizer: PreTrainedTokenizerFast) -> HFEngine:
    """Likelihoods and greedy texts of a mixed batch by our engine are those of the reference."""
    reference.generation_config.eos_token_id = None
    engine = HFEngine(model, tokenizer)
    engine._decoder._end_ids = frozenset()  # random models may end at once
    for index, response in engine.loglikelihood(SCORED):
        wanted = scores_of(reference, SCORED[index])
        assert response.logprobs == pytest.approx(wanted, abs=TOLERANCE)
    for index, answer in engine.generate(ASKED):
        assert answer.text == text_of(reference, ASKED[index], tokenizer)
    return engine


@pytest.mark.parametrize("name", CASES)
def test_as_plain_peft_or_refused(
    name: str, kept_base: dict[str, Any], toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    case = CASES[name]
    folder = make(case, fresh, tmp_path / "adapter")
    base = kept_base["model"]
    if case.refused is not None:
        with pytest.raises(AdapterError) as raised:
            quiet(folder, base)
        assert case.refused in str(raised.value)
        assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
        check_equal(base, fresh(), toy_tokenizer)
        return
    kept_base["model"] = fresh()  # unless all goes well below
    model = quiet(folder, base, case.task)
    probe = probing(model.active_peft_config, [31, 32, 33])
    assert check_liveness(model, torch.tensor([probe])) > 1e-4
    engine = check_equal(model, plain(folder, case.task), toy_tokenizer)
    assert (engine.rowwise_because is None) == (engine.alone_because is None)
    after = take_off(model)
    assert after is base
    before = fresh().state_dict()
    assert base.state_dict().keys() == before.keys() or name == "layer_replication"
    if all(key in before and torch.equal(before[key], value) for key, value in base.state_dict().items()):
        kept_base["model"] = base


def test_every_method_of_this_peft_has_a_case() -> None:
    assert {case.method for case in CASES.values()} >= {str(method.value) for method in PeftType}


def test_every_field_of_lora_has_a_case() -> None:
    tried = {key for case in CASES.values() if case.method == "LORA" for key in case.settings | case.patch}
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields - tried - COMPUTES_NOTHING - {"r", "target_modules"} == set()


@pytest.mark.parametrize("method", [str(member.value) for member in PeftType])
def test_every_field_of_every_method_is_known(method: str) -> None:
    fields = {field.name for field in dataclasses.fields(PEFT_TYPE_TO_CONFIG_MAPPING[method])}
    assert fields - (known_fields(method) or set()) == set(), (
        "compare a case with PEFT, then name it as known"
    )


def test_a_method_of_another_package_is_refused() -> None:
    assert method_verdict("NEWLORA").way == "refused"


def test_the_page_says_how_each_method_is_computed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text()
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    said = {method: how.strip() for names, how, _ in rows for method in re.findall(r"`(\w+)`", names)}
    found = {str(member.value): method_verdict(str(member.value)) for member in PeftType}
    assert said == {name: f"{how.way}: {how.reason}".removesuffix(": ") for name, how in found.items()}
