"""Runs with adapters: one base, several adapters, a folder each; dead and foreign adapters are refused."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PolyConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import cme_bench
from cme_bench.adapters import HydraLoraConfig, MoeLoraConfig, MosLoraConfig, TeamLoraConfig
from cme_bench.adapters.routing import inference
from cme_bench.adapters.row_task import choose_task
from cme_bench.models import loaded
from cme_bench.reports.run_summary import warnings as warnings_of
from cme_bench.reports.runs import open_run
from cme_bench.reports.table import comparison_tables
from cme_bench.reports.table_text import render
from cme_bench.runs import planner
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.options import RunOptions
from cme_bench.runs.responder import Responder
from cme_bench.runs.runner import run
from cme_bench.runs.store import read_records, samples_file
from cme_bench.util.errors import UsageError
from cme_bench.util.files import write_json

CONFIGS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM"),
    "teamlora": TeamLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM"),
    "moelora": MoeLoraConfig(r=2, num_experts=4, task_type="CAUSAL_LM"),
    "hydralora": HydraLoraConfig(r=4, num_experts=3, task_type="CAUSAL_LM"),
    "moslora": MosLoraConfig(r=4, task_type="CAUSAL_LM"),
}


def save_adapter(base: Path, out: Path, config: PeftConfig, *, alive: bool = True) -> Path:
    torch.manual_seed(2)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    if alive:
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out)
    return out


def logprobs(folder: Path) -> list[list[float]]:
    records = sorted(read_records(samples_file(folder, "cme_rte_ll")), key=lambda r: r.id)
    return [r.response.logprobs for r in records]


def options(model: Path, out: Path, *adapters: Path, **changes: Any) -> RunOptions:
    settings: dict[str, Any] = {"tasks": "cme_rte_ll", "data": "mini", "limit": 4} | changes
    return RunOptions(model=str(model), out=out, adapters=tuple(str(a) for a in adapters), **settings)


@pytest.mark.parametrize("method", ["teamlora", "hydralora"])
def test_matrices_of_a_routed_adapter_are_made_once_in_a_run(
    method: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check that an adapter does anything leaves it frozen, so that no layer makes them at every call."""
    made = []
    make = inference.Matrices.of
    monkeypatch.setattr(inference.Matrices, "of", lambda *given: made.append(1) or make(*given))
    adapter = save_adapter(tiny_checkpoint, tmp_path / method, CONFIGS[method])
    run(options(tiny_checkpoint, tmp_path / "run", adapter))
    layers = sum(name.endswith("_up") for name in load_file(adapter / "adapter_model.safetensors"))
    assert len(made) == layers > 0


def test_every_method_on_one_base(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = [save_adapter(tiny_checkpoint, tmp_path / name, config) for name, config in CONFIGS.items()]
    loads = []
    original = loaded.load_model
    monkeypatch.setattr(loaded, "load_model", lambda *a, **k: loads.append(1) or original(*a, **k))
    builds = []
    build = planner.build_items
    monkeypatch.setattr(planner, "build_items", lambda *a, **k: builds.append(1) or build(*a, **k))
    folders = run(options(tiny_checkpoint, tmp_path / "all", *adapters))
    assert len(loads) == 1, "the base is loaded once"
    assert len(builds) == 1, "prompts are made once"
    assert [f.name for f in folders] == list(CONFIGS)
    (alone,) = run(options(tiny_checkpoint, tmp_path / "alone", adapters[-2]))
    (base,) = run(options(tiny_checkpoint, tmp_path / "base"))
    torch.testing.assert_close(logprobs(alone), logprobs(folders[-2]), atol=1e-5, rtol=0)
    answers = {str(logprobs(f)) for f in (*folders, base)}
    assert len(answers) == len(CONFIGS) + 1, "every adapter changes the answers, each in its own way"
    (table,) = comparison_tables([open_run(f) for f in (base, *folders)])
    assert [row[1].text for row in table.rows] == ["base", *CONFIGS]
    assert "tiny + teamlora" in render([table], "md")
    manifest = orjson.loads((folders[1] / "run.json").read_bytes())
    assert manifest["adapter"]["rank"] == 2
    assert manifest["adapter"]["experts"] == 4
    assert manifest["adapter"]["hash"] == manifest["identity"]["adapter"]


def test_the_tasks_of_one_adapter_are_runs_of_their_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"r": 2, "n_tasks": 2, "n_skills": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    poly = save_adapter(tiny_checkpoint, tmp_path / "poly", PolyConfig(**settings))
    with pytest.raises(UsageError, match=r"adapter_config.json: method POLY: .* ADAPTER#task=0 to #task=1$"):
        run(options(tiny_checkpoint, tmp_path / "r", poly))
    for wrong, words in (("2", "it has 2 tasks, 0 to 1"), ("-1", "a number from 0"), ("", "a number from 0")):
        with pytest.raises(UsageError, match=words):
            run(options(tiny_checkpoint, tmp_path / "r", Path(f"{poly}#task={wrong}")))
    both = [Path(f"{poly}#task={task}") for task in (0, 1)]
    folders = run(options(tiny_checkpoint, tmp_path / "r", *both))
    assert [folder.name for folder in folders] == ["poly#task=0", "poly#task=1"]
    records = [orjson.loads((folder / "run.json").read_bytes())["adapter"] for folder in folders]
    assert [record["task"] for record in records] == [0, 1]
    assert records[0]["hash"] != records[1]["hash"]
    assert logprobs(folders[0]) != logprobs(folders[1])
    plain: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), poly).eval()
    live = {
        "tokenizer": AutoTokenizer.from_pretrained(tiny_checkpoint),
        "tasks": "cme_rte_ll",
        "data": "mini",
        "limit": 4,
        "prompt_format": "plain",
        "progress": False,
    }
    for task in (0, 1):
        choose_task(plain, "default", task)
        (found,) = cme_bench.evaluate(plain, out=tmp_path / f"live{task}", **live)
        record = found.view.run.adapter
        assert record is not None
        assert record.task == task
        torch.testing.assert_close(logprobs(found.folder), logprobs(folders[task]), atol=1e-5, rtol=0)


def test_an_adapter_that_changes_nothing_fails_the_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    dead = save_adapter(tiny_checkpoint, tmp_path / "dead", CONFIGS["teamlora"], alive=False)
    with pytest.raises(UsageError, match="'dead' changes no logit"):
        run(options(tiny_checkpoint, tmp_path / "r", dead))


def test_the_saved_prompt_format_wins_over_the_default(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "team", CONFIGS["teamlora"])
    (adapter / "cme_training.json").write_text('{"prompt_format": "teamlora"}')
    (folder,) = run(options(tiny_checkpoint, tmp_path / "r", adapter))
    task = orjson.loads((folder / "run.json").read_bytes())["tasks"]["cme_rte_ll"]
    assert (task["prompt_format"], task["policy"]) == ("teamlora", "separate")
    assert next(iter(read_records(samples_file(folder, "cme_rte_ll")))).prompt.endswith("</s>")


def test_an_answer_ends_where_the_adapters_training_ended_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Trained with another EOS than it is evaluated with: its answers do not run on, and the user is told."""
    adapter = save_adapter(tiny_checkpoint, tmp_path / "team", CONFIGS["teamlora"])
    asked = replace(options(tiny_checkpoint, tmp_path / "r", adapter), tasks="cme_emotion")
    (folder,) = run(asked)
    first = {r.id: r for r in read_records(samples_file(folder, "cme_emotion"))}
    end, chosen = next((c, r.id) for r in first.values() for c in r.response.text if c in string.punctuation)
    (token,) = AutoTokenizer.from_pretrained(tiny_checkpoint).encode(end, add_special_tokens=False)
    write_json(adapter / "cme_training.json", {"tokenization": {"end_of_answer": [token]}})
    (again,) = run(replace(asked, out=tmp_path / "again"))
    second = {r.id: r for r in read_records(samples_file(again, "cme_emotion"))}
    assert all(second[n].key != record.key for n, record in first.items())
    assert second[chosen].response.finish == "eos"
    assert second[chosen].response.text == first[chosen].response.text.partition(end)[0]
    notes = orjson.loads((again / "run.json").read_bytes())["notes"]
    assert any("trained to end its answers with" in note for note in notes)
    (chosen_only,) = run(options(tiny_checkpoint, tmp_path / "ll", adapter))
    said = orjson.loads((chosen_only / "run.json").read_bytes())["notes"]
    assert not [note for note in said if "trained to end" in note], (
        "where nothing is generated it is no matter"
    )


def changed(folder: Path, change: Callable[[Tensor], Tensor]) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    save_file(tensors | {name: change(tensors[name])}, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: (d / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda d: (d / "adapter_model.safetensors").rename(d / "adapter_model.bin"), "pickle|safetensors"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x00" * 64), "adapter_model.safetensors"),
        (
            lambda d: changed(d, lambda t: t.fill_(torch.nan)),
            "tensor base_model.* holds NaN",
        ),
        (lambda d: changed(d, lambda t: t.to(torch.int8)), "tensor base_model.* is stored as I8"),
    ],
)
def test_broken_adapters_are_refused(tiny_checkpoint: Path, tmp_path: Path, harm: Any, message: str) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "team", CONFIGS["teamlora"])
    harm(adapter)
    with pytest.raises(UsageError, match=message):
        run(options(tiny_checkpoint, tmp_path / "r", adapter))


def test_no_such_adapter_and_equal_names(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        run(options(tiny_checkpoint, tmp_path / "r", tmp_path / "none"))
    adapter = save_adapter(tiny_checkpoint, tmp_path / "team", CONFIGS["teamlora"])
    with pytest.raises(UsageError, match="two adapters would write"):
        run(options(tiny_checkpoint, tmp_path / "r", adapter, adapter))


def notes(folder: Path) -> list[str]:
    found: list[str] = orjson.loads((folder / "run.json").read_bytes())["notes"]
    return [note for note in found if "adapter" in note or "embeddings" in note]


def plain_logprobs(model: Any, tokenizer: Any, folder: Path) -> list[list[float]]:
    """Of what a run recorded, by one plain forward a choice, tokenised with ``tokenizer``."""
    found = []
    for record in sorted(read_records(samples_file(folder, "cme_rte_ll")), key=lambda r: r.id):
        context = tokenizer(record.prompt).input_ids
        scores = []
        for choice in record.choices:
            ids = tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context + ids]), use_cache=False).logits[0]
            logprobs = logits.log_softmax(-1)[-len(ids) - 1 : -1]
            scores.append(sum(float(logprobs[i, t]) for i, t in enumerate(ids)))
        found.append(scores)
    return found


def test_adapters_of_one_name_from_different_folders(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapters = [
        save_adapter(tiny_checkpoint, tmp_path / seed / "llama-3.1 r4", CONFIGS[method])
        for seed, method in (("seed1", "lora"), ("seed2", "teamlora"))
    ]
    folders = run(options(tiny_checkpoint, tmp_path / "r", *adapters))
    assert [f.name for f in folders] == ["seed1-llama-3.1 r4", "seed2-llama-3.1 r4"]
    assert logprobs(folders[0]) != logprobs(folders[1])


def test_another_base_is_said_and_recorded(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "lora", CONFIGS["lora"])
    (first,) = run(options(tiny_checkpoint, tmp_path / "first", adapter))
    assert notes(first) == []
    file = adapter / "adapter_config.json"
    file.write_text(file.read_text().replace(str(tiny_checkpoint), "meta-llama/Llama-2-7b-chat-hf"))
    (second,) = run(options(tiny_checkpoint, tmp_path / "second", adapter))
    assert [("trained on meta-llama/Llama-2-7b-chat-hf" in note) for note in notes(second)] == [True]
    assert logprobs(first) == logprobs(second)
    assert any("Llama-2-7b-chat-hf" in line for line in warnings_of(second))


@pytest.mark.parametrize("tuning", [PromptTuningConfig, PrefixTuningConfig])
def test_virtual_tokens(tuning: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Scored as plain PEFT scores them; they take positions, so fewer are left for a prompt."""
    config = tuning(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapter = save_adapter(tiny_checkpoint, tmp_path / "virtual", config)
    other = save_adapter(tiny_checkpoint, tmp_path / "lora", CONFIGS["lora"])
    folders = run(options(tiny_checkpoint, tmp_path / "r", adapter, other, limit=2, bos="never"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    for folder, path in zip(folders, (adapter, other), strict=True):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_checkpoint), path).eval()
        wanted = plain_logprobs(model, tokenizer, folder)
        torch.testing.assert_close(logprobs(folder), wanted, atol=1e-4, rtol=0)
    asked = options(tiny_checkpoint, tmp_path / "r", adapter)
    engines = open_engines(asked)
    lengths = [Responder(engines, str(path)).max_length for path in (adapter, other)]
    assert lengths[1] - lengths[0] == 4


def test_a_larger_vocabulary_and_its_tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The tokenizer beside the adapter makes its prompts, and only its; the base is as before afterwards."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.add_tokens(["Statement", "True", *(f"<new{i}>" for i in range(300 - len(tokenizer)))])
    torch.manual_seed(2)

    def grown() -> Any:
        model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
        model.resize_token_embeddings(len(tokenizer) + 3, mean_resizing=False)
        return model

    trained = get_peft_model(grown(), LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=False))
    with torch.no_grad():
        trained.get_base_model().get_input_embeddings().weight.add_(0.1)
    adapter = tmp_path / "grown"
    trained.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    other = save_adapter(tiny_checkpoint, tmp_path / "lora", CONFIGS["lora"])
    folders = run(options(tiny_checkpoint, tmp_path / "r", adapter, other, bos="never"))
    wanted = plain_logprobs(trained.eval(), tokenizer, folders[0])
    torch.testing.assert_close(logprobs(folders[0]), wanted, atol=1e-4, rtol=0)
    told = "\n".join(notes(folders[0]))
    assert f"the base's embeddings grow to the {len(tokenizer) + 3} rows that are shipped" in told
    assert "the tokenizer beside the adapter is used, not the base model's ('Statement' and" in told
    assert "embed_tokens.weight differs from the base model's own and replaces it" in told
    identity = orjson.loads((folders[0] / "run.json").read_bytes())["identity"]
    assert len(identity["tokenizer"]) == 64
    assert notes(folders[1]) == []
    (alone,) = run(options(tiny_checkpoint, tmp_path / "alone", other, bos="never"))
    assert logprobs(alone) == logprobs(folders[1])


def test_the_base_s_own_tokenizer_beside_an_adapter_is_silent(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "lora", CONFIGS["lora"])
    (plain,) = run(options(tiny_checkpoint, tmp_path / "plain", adapter))
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(adapter)
    (beside,) = run(options(tiny_checkpoint, tmp_path / "beside", adapter))
    assert notes(beside) == []
    assert "tokenizer" not in orjson.loads((beside / "run.json").read_bytes())["identity"]
    assert logprobs(plain) == logprobs(beside)


@pytest.mark.parametrize("form", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"])
def test_a_chat_template_beside_an_adapter(form: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "lora", CONFIGS["lora"])
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    content = template if form.endswith("jinja") else json.dumps({"chat_template": template})
    (adapter / form).write_text(content)
    asked = options(tiny_checkpoint, tmp_path / "r", adapter, tasks="cme_rte", limit=1)
    (folder,) = run(asked)
    assert notes(folder) == [f"{adapter}: the chat template beside the adapter is used"]
    (record,) = read_records(samples_file(folder, "cme_rte"))
    assert record.prompt.startswith("[user] ") and record.prompt.endswith("[assistant]")


def test_faults_beside_an_adapter_are_its_own(
    tiny_checkpoint: Path, toy_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lora = save_adapter(tiny_checkpoint, tmp_path / "lora", CONFIGS["lora"])
    (lora / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with pytest.raises(UsageError, match=f"^{lora}: its chat template fails"):
        run(options(tiny_checkpoint, tmp_path / "r", lora, tasks="cme_rte", limit=1))
    more = save_adapter(tiny_checkpoint, tmp_path / "more", CONFIGS["lora"])
    own = copy.deepcopy(toy_tokenizer)
    own.add_tokens([*(f"<{number}>" for number in range(60)), "Answer:"])
    own.save_pretrained(more)
    with pytest.raises(UsageError, match=f"^{more}: the tokenizer has token ids up to"):
        run(options(tiny_checkpoint, tmp_path / "r", more, limit=1))


def test_a_broken_tokenizer_beside_an_adapter_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_checkpoint, tmp_path / "lora", CONFIGS["lora"])
    (adapter / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="the tokenizer beside the adapter cannot be loaded"):
        run(options(tiny_checkpoint, tmp_path / "r", adapter))
