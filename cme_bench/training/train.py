"""``train``: options to an adapter folder. Killed or interrupted, the same call goes on where it stopped.

Folder: ``adapter_config.json`` and ``adapter_model.safetensors`` (PEFT's, written at the end),
``cme_training.json``, ``loss.csv``, and while the training is unfinished ``checkpoints/``.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_seed
from peft import PeftConfig, PeftModel
from transformers.utils import logging

from cme_bench.adapters.describe import describe
from cme_bench.engines.hf.forward import max_positions
from cme_bench.models.checkpoint import Checkpoint, resolve_model
from cme_bench.models.folder import adapter_note
from cme_bench.models.hub_name import parse_hub_name
from cme_bench.models.load import (
    check_base,
    choose_device,
    choose_dtype,
    load_config,
    load_model,
    load_tokenizer,
)
from cme_bench.models.placement import check_covers, read_device_map
from cme_bench.models.quantisation import quantisation
from cme_bench.prompts.formats import kept_bos
from cme_bench.prompts.vocabulary import check_vocabulary, embeddings
from cme_bench.runs.progress import Listener
from cme_bench.training import record
from cme_bench.training.batches import pad_token
from cme_bench.training.book import book_of, show
from cme_bench.training.checkpoints import last_checkpoint
from cme_bench.training.choose import batch_order, manner, needs_trainer
from cme_bench.training.curve import LossCurve
from cme_bench.training.fresh import put_fresh
from cme_bench.training.liger import check_liger, fuse_base, models_restored
from cme_bench.training.manners import refuse_other_checkpoint, train_in_loop, train_with_trainer
from cme_bench.training.methods import adapter_config, check_fit, check_switches
from cme_bench.training.numbers import mixed_numbers
from cme_bench.training.options import TrainOptions, check_options
from cme_bench.training.plan import (
    ItemSet,
    TrainingPlan,
    chosen_templates,
    load_own_sets,
    load_sets,
    make_plan,
    own_sets,
    usual_format,
)
from cme_bench.training.prepared import Prepared
from cme_bench.training.quantised import check_on_devices, check_trainable, prepare_quantised
from cme_bench.training.ranks import Ranks
from cme_bench.training.replay import replaying
from cme_bench.training.session import Session
from cme_bench.training.shared import Shared
from cme_bench.training.tokens import training_encoder
from cme_bench.training.warm import warm_up
from cme_bench.util.building import build_early, builds_end
from cme_bench.util.early import Early
from cme_bench.util.errors import InterruptedRun, UsageError
from cme_bench.util.files import write_json
from cme_bench.util.locks import try_lock

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments

PROBE_STEPS = 100
"""Number of steps assumed when settings are checked before the data are read."""


def train(
    options: TrainOptions,
    listener: Listener | None = None,
    *,
    sets: Sequence[ItemSet] | None = None,
) -> Path:
    """Train an adapter and return its folder.

    ``sets``: the rows of the mixture where :func:`~cme_bench.training.plan.load_sets` has loaded them. Every
    impossible setting is a UsageError before weights are loaded; a signal saves a checkpoint and raises
    InterruptedRun. On several GPUs run under ``accelerate launch``: each process calls this.
    """
    listener = listener or Listener()
    if needs_trainer(options) is None:
        Ranks.here().take_device()
    with builds_end(), models_restored():
        prepared = prepare(options, listener, sets=sets, early=True)
        if prepared.finished:
            listener.note(f"{options.out}: already trained")
            return options.out
        device = choose_device() if needs_trainer(options) is None else torch.device("cpu")
        with only_writer(options.out), replaying(device):
            _run(prepared, listener)
    return options.out


def prepare(
    options: TrainOptions,
    listener: Listener,
    *,
    sets: Sequence[ItemSet] | None = None,
    early: bool = False,
    shared: Shared | None = None,
) -> Prepared:
    """Check the settings, read and tokenise the rows, and compare the folder; arguments as for
    :func:`train`.

    ``early``: the weights are loaded meanwhile, from when the settings are found possible; ``shared``: what
    other trainings of the same base have made.
    """
    shared = shared or Shared()
    found = possible(options, listener, shared)
    base, config, tokenizer = found.base, found.config, found.tokenizer
    own = load_own_sets(options, note=listener.note) if sets is None else own_sets(sets)
    order = batch_order(options, choose_device(), record.begun_order(options.out))
    options = replace(options, prompt_format=usual_format(options, own), batches=order)
    book = shared.book(lambda: book_of(base, config, tokenizer, own))
    encoder = shared.encoder(options, lambda: training_encoder(options, tokenizer, config, book))
    if own:
        listener.note(f"prompt format: {encoder.format.name}")
    if encoder.encoder.bos.warning is not None:
        listener.note(f"note: {encoder.encoder.bos.warning}")
    for note in (*encoder.format.notes, *kept_bos(encoder.encoder.bos, encoder.format)):
        listener.note(f"note: {note}")
    chosen = chosen_templates(options) if sets is None else []
    loading = _load_early(options, base, config, found.adapter) if early else None
    sets = load_sets(options, note=listener.note, own=own, chosen=chosen) if sets is None else sets
    processes = Ranks.here().count
    if options.device_map is not None and processes > 1:
        raise UsageError(
            f"--device-map spreads one process over the GPUs, and there are {processes}: leave it out, or "
            "start without accelerate launch"
        )
    plan = shared.plan(
        options,
        sets,
        lambda: make_plan(options, None, encoder, processes=processes, note=listener.note, sets=sets),
    )
    _note_plan(plan, listener)
    check_vocabulary(tokenizer, embeddings(config), plan.examples.highest, model=str(base.path))
    identity = record.identity(options, base, plan.mixture, processes, encoder.encoder.bos)
    return Prepared(
        options=options,
        base=base,
        config=adapter_config(options, config, steps=plan.steps),
        plan=plan,
        pad_token=pad_token(tokenizer, embeddings(config)),
        content=record.describe_training(options, base, encoder, plan.mixture, identity),
        finished=record.check_folder(options.out, identity),
        trained=found.trained,
        loading=loading,
        book=book,
    )


@dataclass(frozen=True, slots=True)
class Possible:
    """A training by its settings alone, before rows are read: its base with config and tokenizer, and the
    ``adapter``, except for what hangs on the number of steps. ``trained``: how many numbers it trains."""

    base: Checkpoint
    config: Any
    tokenizer: Any
    adapter: PeftConfig
    trained: int


def possible(options: TrainOptions, listener: Listener, shared: Shared) -> Possible:
    """Check the settings of a training. UsageError for impossible ones."""
    check_options(options)
    check_switches(options)
    base, config, tokenizer = shared.base(options, lambda: _checked_base(options, listener))
    probed = adapter_config(options, config, steps=PROBE_STEPS)
    trained = shared.fit(probed, lambda: check_fit(probed, config))
    if options.max_length > (most := max_positions(config)):
        raise UsageError(f"--max-length {options.max_length}: {base.name} has {most} positions")
    return Possible(base, config, tokenizer, probed, trained)


def _checked_base(options: TrainOptions, listener: Listener) -> tuple[Checkpoint, Any, Any]:
    """Return the base, its config and its tokenizer. UsageError if it cannot be trained as asked."""
    base = resolve_model(options.model, offline=options.offline, note=listener.note)
    config = load_config(base)
    check_base(base, config, quantize=options.quantize)
    check_trainable(base.path, config)
    check_covers(options.device_map, config)
    if options.liger:
        check_liger(choose_device(), config)
    if beside := adapter_note(base.path):
        listener.note(beside)
    return base, config, load_tokenizer(base)


def _load_early(
    options: TrainOptions, base: Checkpoint, config: Any, adapter: PeftConfig
) -> Early[PreTrainedModel] | None:
    """Begin to load the base, where it is sure to be trained, on the usual device."""
    if needs_trainer(options) is not None or (options.out / record.FILE).exists():
        return None
    device = choose_device()
    dtype = choose_dtype(options.dtype, config, device)

    def loaded() -> PreTrainedModel:
        Ranks.here().take_device()  # a thread begins on the first GPU
        model = frozen_base(base, dtype, device, options)
        warm_up(model, adapter, dtype)
        return model

    return build_early(loaded)


def _note_plan(plan: TrainingPlan, listener: Listener) -> None:
    lengths = plan.examples.lengths
    listener.note(
        f"{plan.steps:,} steps; {len(lengths):,} examples of {lengths.mean():.0f} tokens on average, "
        f"{lengths.max()} at most"
    )
    for what, count in (("prompts", plan.examples.cut_sources), ("answers", plan.examples.cut_targets)):
        if count:
            share_cut = 100 * count / len(lengths)
            listener.note(f"{count:,} {what} ({share_cut:.1f} %) were cut to fit --max-length")


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Make the folder and lock it for the main process. UsageError if it is in use or unwritable."""
    if Ranks.here().number > 0:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as err:
        raise UsageError(f"--out {out}: cannot be written ({err.strerror})") from err
    with lock:
        if not try_lock(lock):
            raise UsageError(f"{out} is being written by another training")
        yield
    (out / ".lock").unlink(missing_ok=True)


def _run(prepared: Prepared, listener: Listener) -> None:
    options, base, plan = prepared.options, prepared.base, prepared.plan
    out, checkpoints = options.out, options.out / "checkpoints"
    by_trainer, ranks = needs_trainer(options), Ranks.here()
    resumed, step = last_checkpoint(checkpoints, processes=prepared.content["identity"]["processes"])
    if resumed:
        by_trainer = by_trainer or "it began so"
    device = choose_device()
    dtype = choose_dtype(options.dtype, load_config(base), device)
    bf16 = dtype == torch.bfloat16
    arguments = _trainer_arguments(prepared, bf16=bf16) if by_trainer else None
    if arguments is None:
        ranks.join(device)
    model = _adapted_model(prepared, dtype, arguments.device if arguments else device, listener.note)
    if by_trainer is None and (by_trainer := mixed_numbers(model)):
        arguments = _trainer_arguments(prepared, bf16=bf16)
    if by_trainer is not None:
        refuse_other_checkpoint(checkpoints, by_trainer)
    words = manner(device) if by_trainer is None else frozenset()
    session = Session(prepared, model, listener, by_trainer, words, ranks, device, bf16)
    prepared.content["adapter"] = describe(model).to_dict()
    if ranks.number == 0:
        write_json(out / record.FILE, prepared.content)
    listener.note(
        f"{options.method}: {prepared.content['adapter']['trainable_parameters']:,} trainable parameters "
        f"({prepared.content['adapter']['percent_of_base']:.2f} % of {base.name})"
    )
    session.note()
    if arguments is None:
        done, curve = train_in_loop(session)
    else:
        done, curve = train_with_trainer(session, arguments, resumed=resumed, step=step)
    if done < plan.steps:
        raise InterruptedRun(f"stopped at step {done} of {plan.steps}; the same command goes on there")
    if ranks.number == 0:
        finish(model, curve, prepared)
        shutil.rmtree(checkpoints, ignore_errors=True)
    if arguments is None:
        ranks.any(False, device)  # no process goes on before the folder is whole


def frozen_base(
    base: Checkpoint, dtype: torch.dtype, device: torch.device, options: TrainOptions
) -> PreTrainedModel:
    """Return the base model as adapters are put on it, quantised or spread over devices as options say."""
    logging.set_verbosity_error()
    spread = read_device_map(options.device_map)
    model: PreTrainedModel = load_model(base, dtype, device, quantize=options.quantize, device_map=spread)
    model.config.use_cache = False
    check_on_devices(model)
    if options.quantize is not None or quantisation(load_config(base)) is not None:
        prepare_quantised(model)
    fuse_base(model, dtype, device, liger=options.liger)
    return model


def _trainer_arguments(prepared: Prepared, *, bf16: bool) -> TrainingArguments:
    from cme_bench.training.trainer import trainer_arguments  # transformers' Trainer takes long to import

    out = prepared.options.out
    return trainer_arguments(prepared.options, prepared.plan, out / "checkpoints", bf16=bf16)


def _adapted_model(
    prepared: Prepared, dtype: torch.dtype, device: torch.device, note: Callable[[str], None]
) -> PeftModel:
    """Return the base with a fresh adapter that depends on the seed alone; adapter parameters in float32."""
    options, base, peft_config = prepared.options, prepared.base, prepared.config
    begun = prepared.loading
    model = frozen_base(base, dtype, device, options) if begun is None else begun.result()
    if prepared.book is not None:
        show(model, prepared.book, note)
    set_seed(options.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice on settings that are ours to choose
        adapted = put_fresh(model, peft_config)
    name_base(peft_config, base)
    return adapted


def name_base(config: PeftConfig, base: Checkpoint) -> None:
    """Record a base of the hub by its name and commit, by which it is found on every machine."""
    name = None if base.hub is None else parse_hub_name(base.hub)
    if name is not None and name.subfolder is None:
        config.base_model_name_or_path, config.revision = name.repo, base.revision


def in_order(config: PeftConfig) -> None:
    """Give a config sorted lists in place of sets, whose order in its file, and so the adapter's hash, is
    another in every process."""
    for name, value in list(vars(config).items()):
        if isinstance(value, set):
            setattr(config, name, sorted(value))


def finish(model: PeftModel, curve: LossCurve, prepared: Prepared, *, together: int = 1) -> None:
    """Write the adapter's files first, then the record that calls them finished.

    ``together``: adapters of the sweep that it was trained in; their seconds are those of all.
    """
    options = prepared.options
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, options.save_dtype))
    for config in model.peft_config.values():
        in_order(config)
    model.save_pretrained(options.out)
    last = curve.last
    tail = curve.points[-max(1, prepared.plan.steps // 20) :]
    content = prepared.content | {
        "finished": True,
        "steps": prepared.plan.steps,
        "tokens_trained": last.tokens,
        "target_tokens_trained": last.target_tokens,
        "seconds": last.seconds,
        **({"together": together} if together > 1 else {}),
        "final_loss": sum(p.loss for p in tail) / len(tail),
    }
    write_json(options.out / record.FILE, content)
