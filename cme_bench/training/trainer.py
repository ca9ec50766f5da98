"""transformers' Trainer with our batches, our loss, and resumption that is exact to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from cme_bench.adapters.decay import decayed_names
from cme_bench.adapters.routing.balance import BalanceTape
from cme_bench.models.load import choose_device
from cme_bench.training.batches import IGNORED
from cme_bench.training.checkpoints import load_trainable, rank_allocator, save_trainable
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import TrainingPlan
from cme_bench.training.schedule import warmup_steps
from cme_bench.training.step_log import StepLog


class Meter:
    """Sums of one optimizer step, kept on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)

    def count(self, nll: Tensor, inputs: dict[str, Tensor], balance: Tensor | None) -> None:
        """Add one batch: summed loss, target tokens, tokens, balance loss, batches."""
        targets, tokens = (inputs["labels"] != IGNORED).sum(), inputs["attention_mask"].sum()
        device = self._sums.device
        zero = torch.zeros((), device=device)
        parts = [nll, targets, tokens, zero if balance is None else balance.detach(), zero + 1]
        self._sums += torch.stack([part.to(device).double() for part in parts])

    def take(self) -> Tensor:
        """Return the sums so far, [5]; counting starts again."""
        sums, self._sums = self._sums, torch.zeros_like(self._sums)
        return sums


class MixtureTrainer(Trainer):  # type: ignore[misc]  # transformers carries no types here
    """Trains ``model`` (its base inside ``target_loss``) on the ``batches`` of this process, in their order.

    The loss of a step is the mean over all its target tokens, of every process and accumulated batch, plus
    the balance loss if ``tape`` is given (mean over batches).
    """

    def __init__(
        self,
        model: PeftModel,
        args: TrainingArguments,
        *,
        examples: Any,
        batches: list[list[int]],
        collator: Any,
        tape: BalanceTape | None,
        callbacks: list[TrainerCallback],
    ) -> None:
        super().__init__(
            model=model, args=args, train_dataset=examples, data_collator=collator, callbacks=callbacks
        )
        self.remove_callback(PrinterCallback)
        self.batches = batches
        self.tape = tape
        self.meter = Meter(args.device)
        # transformers then counts the target tokens of a whole step, and divides by nothing itself: 5.17 goes
        # by the first attribute, later ones by the second.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the matrices, without biases and the interaction matrices."""
        return decayed_names(model)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # transformers would walk over all parameters at every step

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        output = model(**inputs, weight=self.args.world_size / num_items_in_batch)
        balance = None if self.tape is None else self.tape.loss(mask=inputs["attention_mask"])
        self.meter.count(output.nll, inputs, balance)
        loss = output.loss
        if balance is not None:
            loss = loss + balance.to(loss.device) / self.current_gradient_accumulation_steps
        return (loss, output) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        save_trainable(self.model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trainable(self.model, Path(resume_from_checkpoint))


class AllocateRanks(TrainerCallback):  # type: ignore[misc]
    """Lets AdaLoRA move rank between layers, after each optimizer step, while there are gradients."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: Any = kwargs["model"]
        if rank_allocator(model) is not None:
            model.base_model.update_and_allocate(state.global_step)


class Watch(TrainerCallback):  # type: ignore[misc]
    """Hands the sums of each step to the log, and saves and stops on a signal."""

    def __init__(self, log: StepLog, *, every: int) -> None:
        self.log, self.every = log, every
        self.trainer: MixtureTrainer
        self._lr = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log.start(state.global_step, state.max_steps)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._lr = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log.add(state.global_step, self._lr, self.trainer.meter.take())
        due = (
            control.should_save or state.global_step == state.max_steps or state.global_step % self.every == 0
        )
        if due or (self.log.interrupted and args.world_size == 1):
            self.log.flush(lambda sums: self.trainer.accelerator.reduce(sums, reduction="sum"))
            if self._stop_agreed():
                control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.log.listener.finish("training")

    def _stop_agreed(self) -> bool:
        """Return whether any process was told to stop; all processes ask at the same steps."""
        flag = torch.tensor(float(self.log.interrupted), device=self.trainer.args.device)
        return bool(self.trainer.accelerator.reduce(flag, reduction="sum").item())


def trainer_arguments(
    options: TrainOptions, plan: TrainingPlan, checkpoints: Path, *, bf16: bool
) -> TrainingArguments:
    """Return transformers' settings of a training; gradient checkpointing is decided later."""
    cuda = choose_device().type == "cuda"
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=plan.steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=warmup_steps(options.warmup, plan.steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=bf16,
        use_cpu=not cuda,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False,
        save_steps=options.save_every,
        save_total_limit=2,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=options.seed,
    )
    if arguments.world_size == 1:
        arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are used through accelerate launch only
    return arguments
