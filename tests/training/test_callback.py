"""EvaluateCallback: scores in the log, and a training that does not notice it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

import cme_bench
from cme_bench.training import EvaluateCallback
from cme_bench.util.errors import UsageError

TASKS = ["cme_rte_ll", "cme_rte"]
ASKED: dict[str, Any] = {"tasks": TASKS, "every": 2, "data": "mini", "limit": 2, "prompt_format": "plain"}


def train(base: Path, out: Path, callbacks: list[Any], **arguments: Any) -> Trainer:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.3, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    rows = [{"input_ids": ids, "labels": ids} for ids in (torch.arange(6) + i for i in range(16))]
    settings = {"max_steps": 5, "logging_steps": 1, "learning_rate": 0.05, "save_strategy": "no"} | arguments
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            per_device_train_batch_size=2,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=rows,
        callbacks=callbacks,
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_training_does_not_notice(checkpointing: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"gradient_checkpointing": checkpointing}
    plain = train(tiny_checkpoint, tmp_path / "plain", [], **settings)
    callback = EvaluateCallback(**ASKED)
    watched = train(tiny_checkpoint, tmp_path / "watched", [callback], **settings)
    assert losses(plain) == losses(watched)
    for (name, one), (_, other) in zip(
        plain.model.named_parameters(), watched.model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
        assert one.requires_grad == other.requires_grad, name
    assert list(callback.runs) == [2, 4, 5]
    found = {e["step"]: e for e in watched.state.log_history if "eval_cme_rte_ll" in e}
    assert list(found) == [2, 4, 5]
    run = cme_bench.open_run(callback.runs[4])
    assert found[4]["eval_cme_rte_ll"] == run.scores["cme_rte_ll"]
    assert found[4]["eval_cme_rte_ll_stderr"] == run.scores["cme_rte_ll"].stderr
    assert found[4]["eval_average_generated"] == run.averages["generated"]
    assert run.name == "step-4 + default"
    assert run.folder.parent == tmp_path / "watched" / "evaluations"
    first, last = (cme_bench.open_run(callback.runs[step]) for step in (2, 5))
    assert first.view.run.identity.adapter != last.view.run.identity.adapter
    assert first.view.run.identity.model == last.view.run.identity.model


def test_mixed_precision_of_the_trainer_does_not_reach_the_evaluation(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    callback = EvaluateCallback(**(ASKED | {"every": 5}))
    trainer = train(tiny_checkpoint, tmp_path / "bf16", [callback], bf16=True)
    (after,) = cme_bench.evaluate(
        trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False),
        tokenizer=trainer.processing_class,
        tasks=TASKS,
        data="mini",
        limit=2,
        prompt_format="plain",
        out=tmp_path / "after",
        progress=False,
    )
    during = cme_bench.open_run(callback.runs[5])
    assert during.view.run.identity == after.view.run.identity
    pick = ["task", "id", "answer"]
    assert during.items[pick].equals(after.items[pick])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "cme_rte_lll"}, "cme_rte_ll"),
        ({"prompt_format": "auto"}, "give prompt_format="),
        ({"limit": 0}, "--limit"),
        ({"every": 0}, "every: a whole number"),
        ({"shot": 2}, "unknown option 'shot'; did you mean 'shots'?"),
    ],
)
def test_bad_input_stops_before_the_first_step(
    changes: dict[str, Any], message: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        train(tiny_checkpoint, tmp_path / "t", [EvaluateCallback(**(ASKED | changes))])
