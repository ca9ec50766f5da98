"""A whole run on the real vLLM (CPU) beside the same run on transformers."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GlmConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cme_bench.adapters import TeamLoraConfig
from cme_bench.adapters.errors import AdapterError
from cme_bench.experiments.parity import measure_parity
from cme_bench.runs.options import RunOptions
from cme_bench.runs.progress import Listener
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.scoring.record import Record
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json
from tests.support import tracked
from tests.support.tiny_llama import random_llama, save_checkpoint
from tests.support.vllm_fields import save_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
DORA = ["q_proj", "up_proj", "down_proj"]
TASKS = ("cme_rte_ll", "cme_arc_easy_ll", "cme_rte")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: PreTrainedTokenizerFast) -> Path:
    model = random_llama(0, hidden=128, positions=1024, vocab=384, spread=0.1, tokenizer=toy_tokenizer)
    return save_checkpoint(tmp_path_factory.mktemp("vllm-run") / "base", model, toy_tokenizer)


def adapter(base: Path, name: str, seed: int, init: str = "random") -> str:
    torch.manual_seed(seed)
    config = TeamLoraConfig(r=4, num_experts=3, init=init, task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(base.parent / name)
    return str(base.parent / name)


def dora(base: Path) -> str:
    """A LoRA with DoRA, which vLLM computes from merged weights."""
    config = LoraConfig(r=4, use_dora=True, use_rslora=True, task_type="CAUSAL_LM", target_modules=DORA)
    return str(save_adapter(LlamaForCausalLM.from_pretrained(base), base.parent / "dora", config))


def lora(base: Path) -> str:
    """A LoRA of another shape than the others, on other layers."""
    config = LoraConfig(r=6, task_type="CAUSAL_LM", target_modules=["q_proj", "o_proj"])
    return str(save_adapter(LlamaForCausalLM.from_pretrained(base), base.parent / "lora", config))


class Notes(Listener):
    """Counts how often vLLM was started."""

    starts = 0

    def note(self, message: str) -> None:
        self.starts += message.startswith("vLLM started")


@pytest.fixture
def options(base: Path) -> RunOptions:
    return RunOptions(
        str(base),
        tasks=",".join(TASKS),
        data="mini",
        limit=6,
        dtype="float32",
        offline=True,
        settings={"kv_gib": 1},
    )


def test_a_weight_that_is_no_number_is_named(
    base: Path, toy_tokenizer: PreTrainedTokenizerFast, options: RunOptions, tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight[5] = torch.nan
    broken = save_checkpoint(tmp_path / "nan", model, toy_tokenizer)
    asked = replace(options, model=str(broken), engine="vllm", tasks=TASKS[0], out=tmp_path / "out")
    with pytest.raises(UsageError, match=r"nan: model\.norm\.weight holds NaN or infinite values"):
        run(asked)


def test_slots_are_refused_where_there_are_none(options: RunOptions) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        run(replace(options, engine="vllm", settings={"slots": 0}))
    with pytest.raises(UsageError, match="a ray worker has one adapter at a time"):
        run(replace(options, engine="ray", worker="vllm", settings={"slots": 2}))


def by_id(folder: Path, task: str) -> dict[int, Record]:
    return {record.id: record for record in read_records(samples_file(folder, task))}


@pytest.mark.filterwarnings("ignore")
def test_adapters_on_one_engine_and_a_merged_one_equal_transformers(
    base: Path, options: RunOptions, tmp_path: Path
) -> None:
    adapters = (adapter(base, "one", 1), lora(base), dora(base), adapter(base, "two", 2))
    both, heard = replace(options, adapters=adapters), Notes()
    theirs = run(replace(both, out=tmp_path / "hf"))
    ours = run(replace(both, out=tmp_path / "vllm", engine="vllm"), heard)
    assert heard.starts == 3, "one for two adapters of different shapes, one merged, one for what follows"
    for mine, other in zip(ours, theirs, strict=True):
        for task in TASKS:
            found, wanted = by_id(mine, task), by_id(other, task)
            assert found.keys() == wanted.keys()
            for item, record in found.items():
                assert record.scores == wanted[item].scores
                response, reference = record.response, wanted[item].response
                if reference.logprobs is not None:
                    assert response.logprobs == pytest.approx(reference.logprobs, abs=2e-3)
                else:
                    assert response.text == reference.text
        engine = read_json(mine / "run.json")["engine"]
        assert engine["engine"] == "vllm"
        assert engine["vllm"]
    at_once(replace(both, engine="vllm"), [ours[i] for i in (0, 1, 3)], tmp_path)
    again = run(replace(both, out=tmp_path / "vllm", engine="auto"))
    for folder in again:
        record = read_json(folder / "run.json")
        assert record["identity"]["engine"] == "vllm"
        assert record["engine_because"] == "auto: the run was begun with it"
        assert record["sessions"][-1]["items"] == 0


def at_once(options: RunOptions, turned: list[Path], out: Path) -> None:
    """Ask adapters of two shapes in two slots, all but the merged one; the runs are those of ``turned``."""
    assert options.adapters is not None
    adapters, heard = tuple(a for a in options.adapters if not a.endswith("dora")), Notes()
    slots = {**options.settings, "slots": 2}
    asked = replace(options, adapters=adapters, out=out / "slots", settings=slots)
    found = run(replace(asked, report_to=("tensorboard",)), heard)
    assert heard.starts == 1
    for mine, other in zip(found, turned, strict=True):
        assert mine.name == other.name
        assert {f"{task}/n" for task in TASKS} <= set(tracked.by_tensorboard(mine)[0])
        one, two = read_json(mine / "run.json"), read_json(other / "run.json")
        assert one["identity"] == two["identity"]
        for task in TASKS:
            assert one["tasks"][task]["hash"] == two["tasks"][task]["hash"]
            records, wanted = by_id(mine, task), by_id(other, task)
            assert records.keys() == wanted.keys()
            for item, record in records.items():
                assert record.key == wanted[item].key
                assert record.scores == wanted[item].scores
                assert record.response.text == wanted[item].response.text
                assert record.response.logprobs == pytest.approx(wanted[item].response.logprobs, abs=1e-4)


def test_an_adapter_that_does_nothing_fails_the_run(base: Path, options: RunOptions, tmp_path: Path) -> None:
    idle = replace(
        options, adapters=(adapter(base, "idle", 3, "zero"),), out=tmp_path / "idle", engine="vllm"
    )
    with pytest.raises(AdapterError, match="'idle' changes no logit"):
        run(idle)


def test_parity_finds_the_engines_alike(base: Path, options: RunOptions) -> None:
    found = measure_parity(replace(options, adapters=(adapter(base, "three", 4),)), ("hf", "vllm"), 1e-4)
    assert found.alike, found
    assert {line.name: line.gap for line in found.scores if line.kind == "average"} == {"average": 0.0}
    assert (found.labels, found.texts) == (12, 6)


def test_a_class_of_transformers_can_be_asked_again(
    toy_tokenizer: PreTrainedTokenizerFast, options: RunOptions, tmp_path: Path
) -> None:
    """vLLM runs transformers' class of GLM, having none of its own; other runs in this process load it."""
    config = GlmConfig(
        vocab_size=384,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=1024,
        bos_token_id=toy_tokenizer.bos_token_id,
        eos_token_id=toy_tokenizer.eos_token_id,
        pad_token_id=toy_tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    glm = save_checkpoint(tmp_path / "glm", AutoModelForCausalLM.from_config(config), toy_tokenizer)
    asked = replace(options, model=str(glm), tasks=TASKS[0])
    folders = [
        run(replace(asked, engine=engine, out=tmp_path / out))[0]  # type: ignore[arg-type]
        for out, engine in (("one", "vllm"), ("two", "vllm"), ("three", "hf"))
    ]
    one, two, three = (by_id(folder, TASKS[0]) for folder in folders)
    for item, record in three.items():
        for found in (one, two):
            assert found[item].response.logprobs == pytest.approx(record.response.logprobs, abs=2e-3)
