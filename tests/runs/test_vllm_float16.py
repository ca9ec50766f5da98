"""bfloat16 models on the real vLLM (CPU): computed in float16, or in bfloat16 where that holds them not."""

from __future__ import annotations

import importlib.util
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.experiments.parity import measure_parity
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.files import read_json
from tests.support.float16_models import overflowing, overflowing_at_the_end, save_bfloat16
from tests.support.vllm_fields import save_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),
]
TASKS = ("cme_rte_ll", "cme_arc_easy_ll", "cme_rte")
OLD_WAY = {"kv_gib": 1, "float16_states": 0}


class Heard(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def count(self, text: str) -> int:
        return sum(text in note for note in self.notes)


def asked(model: Path | str, out: Path, **changes: Any) -> RunOptions:
    options = RunOptions(
        str(model), tasks=",".join(TASKS), data="mini", limit=6, engine="vllm", dtype="bfloat16", out=out
    )
    return replace(options, **({"offline": True, "settings": {"kv_gib": 1}} | changes))


def responses(folder: Path, task: str) -> dict[int, Any]:
    return {record.id: record.response for record in read_records(samples_file(folder, task))}


def engine(folder: Path) -> dict[str, Any]:
    return dict(read_json(folder / "run.json")["engine"])


def logprobs(folder: Path, *tasks: str) -> list[list[float]]:
    return [r.logprobs for task in tasks for _, r in sorted(responses(folder, task).items())]


def moved(one: list[list[float]], other: list[list[float]]) -> float:
    """How much log-likelihoods differ in the mean."""
    return statistics.fmean(
        abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)
    )


def flips(one: list[list[float]], other: list[list[float]]) -> int:
    return sum(x.index(max(x)) != y.index(max(y)) for x, y in zip(one, other, strict=True))


def test_smollm2_changes_fewer_labels_than_before(tmp_path: Path) -> None:
    tasks = ("cme_rte_ll", "cme_arc_easy_ll", "cme_sst2_ll", "cme_emotion_ll", "cme_commonsense_qa_ll")
    wanted = {"tasks": ",".join(tasks), "limit": None}
    exact, now, before = (
        logprobs(run(asked("smollm2", tmp_path / name, **wanted, **how))[0], *tasks)
        for name, how in (
            ("exact", {"dtype": "float32"}),
            ("now", {}),
            ("before", {"settings": OLD_WAY}),
        )
    )
    assert len(exact) > 60
    assert engine(tmp_path / "now")["dtype"] == engine(tmp_path / "now")["states"] == "float16"
    assert engine(tmp_path / "before")["states"] == "bfloat16: asked for"
    assert flips(now, exact) <= flips(before, exact)
    assert 4 * moved(now, exact) < moved(before, exact)


def test_adapters_follow_in_turn_and_in_slots(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    base = save_bfloat16(tmp_path / "base", toy_tokenizer)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    team = TeamLoraConfig(r=4, num_experts=3, init="random", task_type="CAUSAL_LM")
    lora = LoraConfig(r=6, task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"])
    save_adapter(model, tmp_path / "lora", lora)
    get_peft_model(model, team).save_pretrained(tmp_path / "team")
    several = {"adapters": (str(tmp_path / "team"), str(tmp_path / "lora"), None)}
    ways = {
        "exact": {"dtype": "float32"},
        "now": {},
        "slots": {"settings": {"kv_gib": 1, "slots": 2}},
        "before": {"settings": OLD_WAY},
    }
    found = {name: run(asked(base, tmp_path / name, **several, **how)) for name, how in ways.items()}
    for i in range(3):
        exact, now, slots, before = (logprobs(found[name][i], *TASKS[:2]) for name in ways)
        assert 4 * moved(now, exact) < moved(before, exact)
        assert 4 * moved(slots, exact) < moved(before, exact)
        assert [engine(found[name][i])["dtype"] for name in ways] == [
            "float32",
            "float16",
            "float16",
            "bfloat16",
        ]


@pytest.fixture(scope="module", params=[overflowing, overflowing_at_the_end])
def beyond(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    toy_tokenizer: PreTrainedTokenizerFast,
) -> tuple[Path, Path]:
    """A model whose hidden states overflow, and its run in bfloat16 from the first item on."""
    folder = tmp_path_factory.mktemp("beyond")
    base = save_bfloat16(folder / "base", toy_tokenizer, request.param)
    return base, run(asked(base, folder / "direct", settings=OLD_WAY))[0]


@pytest.mark.parametrize("tasks", [",".join(TASKS), "cme_rte"])
def test_hidden_states_that_overflow_become_no_score(
    beyond: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], tasks: str
) -> None:
    base, direct = beyond
    heard = Heard()
    [folder] = run(asked(base, tmp_path / "now", tasks=tasks), heard)
    assert heard.count("left the range of float16") == 1
    assert "Dumping" not in "".join(capfd.readouterr()), "that one line is all that is printed of it"
    assert heard.count("vLLM started") == 2
    for task in tasks.split(","):
        assert responses(folder, task) == responses(direct, task)
    assert engine(folder)["dtype"] == "bfloat16"
    assert engine(folder)["states"].startswith("bfloat16: its hidden states left the range of float16 (task ")


def test_adapters_in_slots_overflow_together(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    base = save_bfloat16(tmp_path / "base", toy_tokenizer, overflowing)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=6, task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"])
    adapters = tuple(str(save_adapter(model, tmp_path / f"a{i}", lora, seed=i)) for i in range(2))
    slots = {"adapters": adapters, "tasks": TASKS[0]}
    now = run(asked(base, tmp_path / "now", **slots, settings={"kv_gib": 1, "slots": 2}))
    before = run(asked(base, tmp_path / "before", **slots, settings=OLD_WAY | {"slots": 2}))
    for one, other in zip(now, before, strict=True):
        assert engine(one)["dtype"] == "bfloat16"
        assert logprobs(one, TASKS[0]) == logprobs(other, TASKS[0])


def test_weights_beyond_the_range_stay_in_bfloat16(
    tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast
) -> None:
    def large(model: Any) -> None:
        model.model.norm.weight[3] = 7e4

    heard = Heard()
    [folder] = run(asked(save_bfloat16(tmp_path / "base", toy_tokenizer, large), tmp_path / "out"), heard)
    reason = "model.norm.weight holds 70144, beyond float16's 65504"
    assert heard.count(f"vLLM computes it in bfloat16 and not in float16: {reason}") == 1
    assert heard.count("vLLM started") == 1
    assert engine(folder)["dtype"] == "bfloat16"
    assert engine(folder)["states"] == f"bfloat16: {reason}"


def test_parity_asks_again_too(tmp_path: Path, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    base = save_bfloat16(tmp_path / "base", toy_tokenizer, overflowing)
    found = measure_parity(asked(base, tmp_path / "out"), ("hf", "vllm"))
    assert found.dtype == "bfloat16"
    assert found.labels == 12
