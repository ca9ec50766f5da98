"""The whole training on a tiny model: every method learns, resumption is exact, the folder says it all."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

import cme_bench.adapters  # noqa: F401 - registers our methods with PEFT
from cme_bench.adapters.load import load_adapter
from cme_bench.adapters.registry import routed_names
from cme_bench.models.checkpoint import resolve_model
from cme_bench.runs.progress import Listener
from cme_bench.training.choose import MANNER
from cme_bench.training.curve import Point, read_curve
from cme_bench.training.options import TrainOptions, method_names, parse_fields
from cme_bench.training.schedule import warmup_steps
from cme_bench.training.train import in_order, prepare, train
from cme_bench.training.trainer import MixtureTrainer
from cme_bench.util.errors import CmeError, InterruptedRun, UsageError

Make = Callable[..., TrainOptions]


class StopAt(Listener):
    """A listener that sends this process a signal once a step is reached."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)

    def start(self, task: str, *, total: int, done: int) -> None:
        self.done = done

    def advance(self, items: int, detail: str = "") -> None:
        self.done += items
        if self.done == self.step:
            os.kill(os.getpid(), self.number)


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "cme_training.json").read_text()))


def without_time(points: list[Point]) -> list[Point]:
    return [replace(point, seconds=0.0) for point in points]


@pytest.mark.parametrize("method", method_names())
def test_every_method_learns_and_reloads(method: str, options: Make, tiny_checkpoint: Path) -> None:
    faster = {"learning_rate": 0.1, "alpha": 64.0} if method == "adalora" else {}
    balance = 0.01 if method in routed_names() else 0.0
    folder = train(options(method, max_steps=30, balance_loss=balance, **faster))
    losses = [point.loss for point in read_curve(folder / "loss.csv")]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert not (folder / "checkpoints").exists()
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        before = base(ids).logits.clone()
        after = PeftModel.from_pretrained(base, str(folder))(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)


@pytest.mark.parametrize("method", ("teamlora", "lora"))
def test_saved_in_bfloat16_it_is_the_same_adapter_rounded(
    method: str, options: Make, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    whole = train(options(method, max_steps=3))
    half = train(options(method, max_steps=3, save_dtype="bfloat16", out=tmp_path / "half"))
    exact, rounded = (load_file(f / "adapter_model.safetensors") for f in (whole, half))
    assert exact.keys() == rounded.keys()
    for name, tensor in exact.items():
        assert torch.equal(rounded[name], tensor.to(torch.bfloat16)), name
    assert (
        record(half)["identity"]["save_dtype"] == "bfloat16" and "save_dtype" not in record(whole)["identity"]
    )
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    loaded = load_adapter(base, half)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    with pytest.raises(UsageError, match="save_dtype"):
        train(options(method, max_steps=3, out=half))
    with pytest.raises(UsageError, match="save_dtype"):
        train(options(method, max_steps=3, save_dtype="bfloat16", out=whole))


RESUMED = {
    "teamlora": {"dropout": 0.1, "accumulate": 2, "balance_loss": 0.1, "weight_decay": 0.1},
    "adalora": {"dropout": 0.1},
    "lora": {"checkpointing": True, "dropout": 0.1},
    "moelora": {"pack": 2, "accumulate": 2, "balance_loss": 0.1, "dropout": 0.1},
}


@pytest.mark.parametrize(
    "method", ["teamlora", *(pytest.param(m, marks=pytest.mark.slow) for m in RESUMED if m != "teamlora")]
)
def test_resumed_equals_uninterrupted_bit_for_bit(method: str, options: Make, tmp_path: Path) -> None:
    whole = options(method, datasets="sst2,rte,winogrande", max_steps=12, batch_size=2, **RESUMED[method])
    train(whole)
    parts = replace(whole, out=tmp_path / "parts", save_every=3, log_every=2)
    for stop in (4, 10):  # after a checkpoint of its own, and then past AdaLoRA's last allocation
        with pytest.raises(InterruptedRun, match=f"stopped at step {stop} of 12"):
            train(parts, StopAt(stop))
        assert not (parts.out / "adapter_model.safetensors").exists()
    listener = StopAt(99)
    train(parts, listener)
    assert "resuming at step 10/12" in listener.lines
    one, other = (load_file(o.out / "adapter_model.safetensors") for o in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    curves = [read_curve(o.out / "loss.csv") for o in (whole, parts)]
    assert without_time(curves[0]) == without_time(curves[1])
    assert record(whole.out)["tokens_trained"] == record(parts.out)["tokens_trained"]


def test_killed_between_checkpoints_goes_on_from_the_last(options: Make, tmp_path: Path) -> None:
    whole = options("moslora", max_steps=9)
    train(whole)

    class Killed(Listener):
        done = 0

        def advance(self, items: int, detail: str = "") -> None:
            self.done += items
            if self.done == 7:
                raise SystemExit(137)

    parts = replace(whole, out=tmp_path / "parts", save_every=4, log_every=1)
    with pytest.raises(SystemExit):
        train(parts, Killed())
    torn = parts.out / "checkpoints" / "checkpoint-8"
    torn.mkdir()
    (torn / "trainer_state.json").write_text("{")  # killed while saving
    train(parts)
    one, other = (load_file(o.out / "adapter_model.safetensors") for o in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert [p.step for p in read_curve(parts.out / "loss.csv")] == list(range(1, 10))


def test_one_step_is_no_warm_up_and_changes_the_adapter(options: Make) -> None:
    assert [warmup_steps(0.03, steps) for steps in (1, 2, 33, 34, 100)] == [0, 1, 1, 2, 3]
    made = options(max_steps=1, warmup=0.03)
    train(made)
    ups = {k: t for k, t in load_file(made.out / "adapter_model.safetensors").items() if k.endswith("_up")}
    assert ups
    assert any(t.abs().max() > 0 for t in ups.values())


def test_interrupts_exit_with_3_and_the_handlers_come_back(options: Make) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRun) as caught:
        train(options("lora"), StopAt(5, signal.SIGINT))
    assert caught.value.exit_code == 3
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_training_is_not_repeated_and_another_is_refused(options: Make) -> None:
    first = options("lora", max_steps=2)
    train(first)
    listener = StopAt(99)
    train(replace(first, save_every=1), listener)
    assert any("already trained" in line for line in listener.lines)
    with pytest.raises(UsageError, match=r"other rank \(4 there, 8 now\)"):
        train(replace(first, rank=8))
    with pytest.raises(UsageError, match=r"other pack \(None there, 2 now\)"):
        train(replace(first, pack=2))
    foreign = options("moslora").out
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(UsageError, match="exists and is no training of ours"):
        train(options("moslora"))


def test_the_record_names_everything(options: Make, tiny_checkpoint: Path) -> None:
    chosen = options(
        "hydralora", datasets="nli,rte", weighting="equal", samples=40, max_steps=None, batch_size=8
    )
    said = record(train(chosen))
    assert said["finished"] and said["steps"] == 5
    assert said["prompt_format"] == "teamlora"
    assert said["tokenization"]["source_and_target"] == "separate"
    assert said["base"]["hash"] == resolve_model(str(tiny_checkpoint)).hash
    mixture = {d["dataset"]: d for d in said["mixture"]["datasets"]}
    assert list(mixture) == ["anli", "mnli", "snli", "rte"]
    assert all(d["weight"] == 0.25 and d["examples"] == 10 for d in mixture.values())
    assert sum(d["tokens"] for d in mixture.values()) == said["tokens_trained"]
    assert len(mixture["anli"]["parts"]) == 3
    assert all(len(p["sha256"]) == 64 for d in mixture.values() for p in d["parts"])
    assert said["adapter"]["method"] == "hydralora" and said["adapter"]["experts"] == 4
    assert said["seconds"] > 0 and said["versions"]["peft"] and said["hardware"]["processes"] == 1
    assert said["arguments"]["weighting"] == "equal"


def test_the_loss_is_that_of_the_written_formula(options: Make, tiny_checkpoint: Path) -> None:
    """Step 1 of a fresh adapter is the base model's own token-mean loss, over accumulated batches too."""
    chosen = options("teamlora", max_steps=1, batch_size=2, accumulate=2)
    point = read_curve(train(chosen) / "loss.csv")[0]

    from cme_bench.models.load import load_config, load_tokenizer
    from cme_bench.tasks.sources import mini_source
    from cme_bench.training.plan import make_plan
    from cme_bench.training.tokens import training_encoder

    tiny = resolve_model(str(tiny_checkpoint))
    encoder = training_encoder(chosen, load_tokenizer(tiny), load_config(tiny))
    plan = make_plan(chosen, mini_source(), encoder, processes=1, note=lambda _: None)
    base = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    total, count = 0.0, 0
    for index in [i for one in plan.batches for i in one]:
        example = plan.examples[index]
        ids = torch.tensor(example["ids"].tolist())[None]
        with torch.no_grad():
            chosen_p = base(ids).logits[0].log_softmax(-1)
        for t in range(example["source_length"], ids.shape[1]):
            total -= float(chosen_p[t - 1, ids[0, t]])
            count += 1
    assert point.target_tokens == count
    assert point.loss == pytest.approx(total / count, rel=1e-5)


def test_gradient_checkpointing_changes_nothing(options: Make, tmp_path: Path) -> None:
    plain = options("teamlora", max_steps=4, balance_loss=0.1)
    saving = replace(plain, out=tmp_path / "saving", checkpointing=True)
    curves = [read_curve(train(o) / "loss.csv") for o in (plain, saving)]
    for one, other in zip(*curves, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.balance_loss == pytest.approx(other.balance_loss, rel=1e-4)
        assert one.balance_loss > 0


def test_accumulated_batches_train_like_one_large_batch(options: Make, tmp_path: Path) -> None:
    large = options("teamlora", max_steps=4, batch_size=4, balance_loss=0.0)
    small = replace(large, out=tmp_path / "small", batch_size=2, accumulate=2)
    curves = [read_curve(train(o) / "loss.csv") for o in (large, small)]
    for one, other in zip(*curves, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.tokens == other.tokens


def test_packed_batches_train_like_padded_ones(options: Make, tmp_path: Path) -> None:
    chosen = {"datasets": "sst2,rte,winogrande", "max_steps": 4, "accumulate": 2, "balance_loss": 0.1}
    padded = options("teamlora", **chosen)
    packed = replace(padded, out=tmp_path / "packed", pack=3, checkpointing=True)
    curves = [read_curve(train(o) / "loss.csv") for o in (padded, packed)]
    for one, other in zip(*curves, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert one.balance_loss == pytest.approx(other.balance_loss, rel=1e-3)
        assert (one.tokens, one.target_tokens) == (other.tokens, other.target_tokens)
    assert record(packed.out)["arguments"]["pack"] == 3


def test_bfloat16_keeps_the_adapter_in_float32(options: Make, tmp_path: Path) -> None:
    exact = options("teamlora", max_steps=10, balance_loss=0.1)
    rounded = replace(exact, out=tmp_path / "rounded", dtype="bfloat16", checkpointing=True)
    curves = [read_curve(train(o) / "loss.csv") for o in (exact, rounded)]
    assert curves[1][-1].loss < 0.8 * curves[1][0].loss
    assert curves[0][0].loss == pytest.approx(curves[1][0].loss, rel=0.02)
    saved = load_file(rounded.out / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_no_decay_on_the_interaction_matrix(options: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[dict[str, Any]] = []
    names: dict[int, str] = {}

    class Look(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            groups.extend(kwargs["optimizer"].param_groups)
            names.update({id(p): n for n, p in kwargs["model"].named_parameters()})

    built = MixtureTrainer.__init__

    def build(self: MixtureTrainer, *args: Any, callbacks: list[Any], **kwargs: Any) -> None:
        built(self, *args, callbacks=[*callbacks, Look()], **kwargs)

    monkeypatch.setattr(MixtureTrainer, "__init__", build)
    monkeypatch.setenv(MANNER, "trainer")
    train(options("teamlora", max_steps=1, weight_decay=0.1))
    decayed = {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in groups if not group["weight_decay"] for p in group["params"]}
    assert decayed and spared
    assert all("interaction" in name for name in spared)
    assert not any("interaction" in name for name in decayed)


def test_adalora_allocates_ranks(options: Make) -> None:
    folder = train(options("adalora", max_steps=20))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["init_r"], config["target_r"]) == (6, 4)
    ranks = [sum(kept) for kept in config["rank_pattern"].values()]
    assert len(ranks) == 6
    assert sum(ranks) == 4 * len(ranks)


def test_a_config_does_not_depend_on_the_order_of_a_set(options: Make) -> None:
    """Which is another in every process; the adapter's hash covers the file."""
    names = {f"module_{n}" for n in range(30)}
    config = LoraConfig(target_modules=names, modules_to_save=["head"])
    in_order(config)
    assert config.target_modules == sorted(names) and config.modules_to_save == ["head"]
    folder = train(options("lora", max_steps=1))
    saved = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert saved == sorted(saved) and len(saved) > 2


def test_a_loss_that_is_not_finite_stops_the_training(options: Make) -> None:
    with pytest.raises(CmeError, match="lower --learning-rate"):
        train(options("lora", learning_rate=1e30, warmup=0.0, max_grad_norm=0.0))


def test_the_curve_drops_what_a_killed_session_wrote_later(tmp_path: Path) -> None:
    from cme_bench.training.curve import LossCurve

    file = tmp_path / "loss.csv"
    points = [Point(i, 10 * i, i, 1.0 / i, 0.1, 0.0, 2.0 * i) for i in (1, 2, 3)]
    LossCurve(file, last_step=0).add(points)
    with file.open("a") as stream:
        stream.write("4,40")  # torn
    assert LossCurve(file, last_step=2).last == points[1]
    assert read_curve(file) == points[:2]


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("teamlara", {}, "unknown method 'teamlara'; did you mean 'teamlora'"),
    ("lora", {"rank": 0}, "--rank must be at least 1, got 0"),
    ("teamlora", {"experts": 1}, "--experts must be at least 2, got 1"),
    ("lora", {"experts": 4}, "--experts: lora has no experts"),
    ("moslora", {"balance_loss": 0.1}, "--balance-loss: moslora has no experts"),
    ("hydralora", {"preset": "paper"}, "--preset belongs to teamlora"),
    ("moelora", {"competition": False}, "--no-competition belongs to teamlora"),
    ("teamlora", {"preset": "papers"}, "did you mean 'paper'"),
    ("teamlora", {"scaling": "alpha"}, "scaling must be"),
    ("teamlora", {"settings": {"rank": 3}}, "--set rank: teamlora has no such field"),
    ("teamlora", {"targets": "gate_prj"}, "gate_prj; linear layers of this model: down_proj, gate_proj"),
    ("lora", {"targets": "gate_prj"}, "gate_prj; linear layers of this model: down_proj, gate_proj"),
    ("lora", {"data": "/nowhere"}, "--data /nowhere: no such folder"),
    ("lora", {"max_length": 8}, "--max-length 8 is too small"),
    ("lora", {"max_length": 10_000}, "has 8192 positions"),
    ("lora", {"datasets": "sst3"}, "unknown dataset 'sst3'; did you mean 'sst2'"),
    ("lora", {"weighting": "even"}, "unknown weighting 'even'"),
    ("lora", {"prompt_format": "chatty"}, "did you mean 'chat'"),
    ("lora", {"learning_rate": 0.0}, "--learning-rate must be above 0"),
    ("lora", {"save_dtype": "float16"}, "unknown save dtype 'float16'"),
    ("lora", {"batch_size": 0}, "--batch-size must be at least 1"),
    ("lora", {"pack": 1}, "--pack must be at least 2, got 1"),
    ("lora", {"warmup": 1.5}, "--warmup is a share"),
    ("lora", {"alpha": float("nan")}, "--alpha must be a finite number, got nan"),
    ("lora", {"weight_decay": float("inf")}, "--weight-decay must be a finite number, got inf"),
    ("lora", {"alpha": 0.0}, "--alpha must not be 0"),
    ("lora", {"seed": -1}, "--seed: from 0 to 4294967295"),
    ("lora", {"seed": 1 << 32}, "--seed: from 0 to 4294967295"),
    ("lora", {"rank": "8"}, "--rank: a whole number, not '8'"),
    ("lora", {"settings": {"use_rslora": "yes"}}, "--set: field 'use_rslora' cannot be 'yes'"),
    ("mixlora", {"settings": {"attention_alpha": "x"}}, "--set: field 'attention_alpha' cannot be 'x'"),
    (
        "mixlora",
        {"settings": {"router_init_range": float("nan")}},
        "router_init_range must be a finite number",
    ),
    ("lora", {"model": "/no/model"}, "no such folder"),
]


@pytest.mark.parametrize(
    ("method", "changes", "message"), BAD, ids=lambda v: v if isinstance(v, str) else None
)
def test_impossible_settings_fail_early_with_one_line(
    method: str, changes: dict[str, Any], message: str, options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr("cme_bench.training.train.load_model", lambda *args, **kwargs: loaded.append(args))
    chosen = options(method, **changes)
    with pytest.raises(UsageError) as caught:
        train(chosen)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not chosen.out.exists()
    assert not loaded, "weights were loaded before the settings were checked"


def test_weights_are_loaded_early_only_where_the_training_begins_in_the_loop(
    options: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options("lora", max_steps=1)
    begun = prepare(chosen, Listener(), early=True).loading
    assert begun is not None and not begun.result().training
    assert prepare(chosen, Listener()).loading is None
    monkeypatch.setenv(MANNER, "trainer")
    assert prepare(chosen, Listener(), early=True).loading is None
    monkeypatch.delenv(MANNER)
    train(chosen)
    again = prepare(chosen, Listener(), early=True)
    assert again.finished and again.loading is None


@pytest.mark.parametrize(
    ("row", "told"), [("{}", "has no columns"), ('{"prompt": "a", "completion": "b"}', "torn")]
)
def test_what_is_wrong_with_rows_is_told_before_what_is_wrong_with_weights(
    row: str, told: str, options: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(*args: Any, **kwargs: Any) -> None:
        raise CmeError("the weights are torn")

    monkeypatch.setattr("cme_bench.training.train.load_model", torn)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(row + "\n")
    with pytest.raises(CmeError, match=told):
        train(options("lora", data=str(rows), datasets="all"))


def test_switches_reach_the_config(options: Make) -> None:
    from cme_bench.models.load import load_config
    from cme_bench.training.methods import adapter_config

    chosen = options(
        "teamlora",
        preset="authors-2024-08",
        experts=2,
        competition=False,
        targets="ffn+attention",
        settings=parse_fields(["init=random", "interaction_init=0.2"]),
    )
    base = load_config(resolve_model(chosen.model))
    config = adapter_config(chosen, base, steps=10)
    assert config.normalize_omega and config.scaling == "alpha/(k*r)" and config.alpha == 8.0
    assert (config.num_experts, config.competition, config.init) == (2, False, "random")
    assert config.interaction_init == 0.2
    assert len(config.target_modules) == 7
    number = adapter_config(options("teamlora", scaling="1.5"), base, steps=10)
    assert number.scaling == 1.5
    with pytest.raises(UsageError, match="FIELD=VALUE"):
        parse_fields(["rank"])


def test_two_trainings_of_one_folder_do_not_mix(options: Make) -> None:
    import fcntl

    chosen = options("lora")
    chosen.out.mkdir()
    with (chosen.out / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is being written by another training"):
            train(chosen)


def test_an_adapter_is_evaluated_as_it_was_trained(
    options: Make, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Trained without the BOS that its base would get: a run follows, and says so."""
    from cme_bench.runs.options import RunOptions
    from cme_bench.runs.runner import run

    for bos, prefix in (("never", []), ("auto", [270])):
        chosen = options("lora", max_steps=4, bos=bos, out=tmp_path / bos)
        adapter = train(chosen)
        record = json.loads((adapter / "cme_training.json").read_text())
        assert record["tokenization"]["bos"]["prefix"] == prefix
        assert record["tokenization"]["prefix_tokens"] == len(prefix)
        asked = RunOptions(
            str(tiny_checkpoint),
            tasks="cme_sst2_ll",
            adapters=(str(adapter),),
            data="mini",
            limit=1,
            out=tmp_path / f"run {bos}",
        )
        (folder,) = run(asked)
        told = json.loads((folder / "run.json").read_text())
        assert told["bos"]["prefix"] == prefix
        assert any("evaluation follows the training" in note for note in told["notes"]) == (bos == "never")
        assert told["adapter"]["training"]["max_steps"] == 4
        assert told["adapter"]["training"].keys() & {"seed", "out", "model"} == set()
        assert told["adapter"]["training"]["bos"] == (prefix or None)
        assert told["adapter"]["config"]["r"] == 4
    with pytest.raises(UsageError, match="holds a training with other bos"):
        train(options("lora", max_steps=4, bos="never", out=tmp_path / "auto"))
