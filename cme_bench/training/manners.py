"""The two ways to make a training's steps: the loop of this package, and transformers' Trainer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import set_seed

from cme_bench.training.batches import share
from cme_bench.training.curve import LossCurve
from cme_bench.training.loop import STATE, Loop
from cme_bench.training.numbers import Numbers
from cme_bench.training.replay import Replay, static_shapes
from cme_bench.training.session import Session
from cme_bench.training.signals import stop_on_signal
from cme_bench.training.step_log import StepLog
from cme_bench.training.steps import Eager, compile_layers
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    from transformers import TrainingArguments


def train_in_loop(session: Session) -> tuple[int, LossCurve]:
    """Train in this package's loop; return the steps that are made, and the curve."""
    prepared, model, main = session.prepared, session.model, session.ranks.number == 0
    options, out = prepared.options, prepared.options.out
    if session.checkpointing.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if "compile" in session.words:
        compile_layers(model)
    replayed = "graph" in session.words and static_shapes(model.modules())
    numbers = Numbers(model, weight_decay=options.weight_decay)
    with session.open() as tape:
        eager = Eager(model, tape, bf16=session.bf16, accumulate=options.accumulate)
        loop = Loop(
            model,
            options,
            examples=prepared.plan.examples,
            batches=prepared.plan.batches,
            collate=session.layout.collate,
            backward=Replay(eager, session.listener.note) if replayed else eager,
            numbers=numbers,
            folder=out / "checkpoints",
            ranks=session.ranks,
        )
        if loop.restore():
            session.listener.note(f"resuming at step {loop.step}/{loop.steps}")
        curve = LossCurve(out / "loss.csv", last_step=loop.step, writes=main)
        with ExitStack() as stack:
            report = stack.enter_context(session.report(loop.step)) if main else None
            log = StepLog(curve, session.listener, report)
            stack.enter_context(stop_on_signal(log))
            loop.run(log)
    numbers.release()
    return loop.step, curve


def train_with_trainer(
    session: Session, arguments: TrainingArguments, *, resumed: Path | None, step: int
) -> tuple[int, LossCurve]:
    """Train with transformers' Trainer, from a checkpoint if one is given; arguments as for the loop."""
    from cme_bench.training.trainer import AllocateRanks, MixtureTrainer, Watch

    plan, options, main = session.prepared.plan, session.prepared.options, session.ranks.number == 0
    if resumed:
        session.listener.note(f"resuming at step {step}/{plan.steps}")
    arguments.gradient_checkpointing = session.checkpointing.checkpointing
    curve = LossCurve(options.out / "loss.csv", last_step=step, writes=main)
    with ExitStack() as stack:
        report = stack.enter_context(session.report(step)) if main else None
        log = StepLog(curve, session.listener, report)
        watch = Watch(log, every=options.log_every)
        trainer = MixtureTrainer(
            session.model,
            arguments,
            examples=plan.examples,
            batches=share(plan.batches, process=arguments.process_index, processes=arguments.world_size),
            collator=session.layout.collate,
            tape=stack.enter_context(session.open()),
            callbacks=[AllocateRanks(), watch],
        )
        watch.trainer = trainer
        set_seed(options.seed, device_specific=True)
        stack.enter_context(stop_on_signal(log))
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    return trainer.state.global_step, curve


def refuse_other_checkpoint(checkpoints: Path, why: str | None) -> None:
    """Raise UsageError if the loop has made steps, which the Trainer cannot go on from."""
    if (checkpoints / STATE).exists():
        raise UsageError(
            f"{checkpoints / STATE}: the training began without transformers' Trainer and would begin anew "
            f"with it ({why}); go on as it began, or remove that file"
        )
