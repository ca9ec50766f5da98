"""``cme-bench train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli import app
from cme_bench.cli.plugins import Plugins, load_plugins
from cme_bench.terminal import say
from cme_bench.training.options import method_names

_EPILOG = (
    "Examples:  cme-bench train smollm2 --method teamlora --data ./data --out adapters/team   |   the same "
    "command again goes on after an interruption   |   several GPUs: accelerate launch -m cme_bench train.   "
    "Exit codes: 0 done, 2 bad input, 3 interrupted and resumable, 1 anything else."
)
_DATA, _ADAPTER, _TEAM, _LEARNING, _RUN = "Data", "Adapter", "TeamLoRA", "Learning", "Running"


@app.command(epilog=_EPILOG)
def train(
    model: Annotated[
        str, typer.Argument(help="A model folder, a hub id, or 'smollm2' (the embedded default).")
    ],
    method: Annotated[
        str, typer.Option(help=f"{', '.join(method_names())}, or one of a --plugin.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the adapter.", show_default=False)],
    data: Annotated[
        str,
        typer.Option(help="'hub', 'mini', or a folder of DATASET/SPLIT.jsonl.", rich_help_panel=_DATA),
    ] = "hub",
    datasets: Annotated[
        str, typer.Option(help="Comma-separated datasets and domains, or 'all' 22.", rich_help_panel=_DATA)
    ] = "all",
    weighting: Annotated[
        str,
        typer.Option(
            help="Share of each dataset: proportional to its size, equal, or temperature.",
            rich_help_panel=_DATA,
        ),
    ] = "proportional",
    temperature: Annotated[
        float, typer.Option(help="T of --weighting temperature: size^(1/T).", rich_help_panel=_DATA)
    ] = 2.0,
    samples: Annotated[
        int | None, typer.Option(help="Examples an epoch; default: all items.", rich_help_panel=_DATA)
    ] = None,
    cap: Annotated[
        int | None, typer.Option(help="At most N items of each dataset.", rich_help_panel=_DATA)
    ] = None,
    holdout: Annotated[
        int,
        typer.Option(min=0, help="Items of each dataset kept for validation.", rich_help_panel=_DATA),
    ] = 0,
    prompt_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="teamlora, chat or plain; saved with the adapter, and used to evaluate it.",
            rich_help_panel=_DATA,
        ),
    ] = "teamlora",
    bos: Annotated[
        str,
        typer.Option(
            help="auto, always or never: whether prompts begin with BOS, as for `run`; saved, and followed.",
            rich_help_panel=_DATA,
        ),
    ] = "auto",
    max_length: Annotated[
        int, typer.Option(help="Most tokens of an example; longer prompts are cut.", rich_help_panel=_DATA)
    ] = 1024,
    rank: Annotated[int, typer.Option(help="Rank; of ONE expert.", rich_help_panel=_ADAPTER)] = 16,
    experts: Annotated[
        int | None, typer.Option(help="Experts of a routed method; default 4.", rich_help_panel=_ADAPTER)
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Scaling numerator; default 2 x rank.", rich_help_panel=_ADAPTER)
    ] = None,
    dropout: Annotated[float, typer.Option(help="Adapter dropout.", rich_help_panel=_ADAPTER)] = 0.05,
    targets: Annotated[
        str,
        typer.Option(
            help="ffn, attention, ffn+attention, all-linear, or layer names.", rich_help_panel=_ADAPTER
        ),
    ] = "ffn",
    balance_loss: Annotated[
        float, typer.Option(help="Weight of the load-balance loss.", rich_help_panel=_ADAPTER)
    ] = 0.0,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Any field of the PEFT config.", rich_help_panel=_ADAPTER
        ),
    ] = None,
    plugin: Plugins = None,
    preset: Annotated[
        str | None, typer.Option(help="paper or authors-2024-08.", rich_help_panel=_TEAM)
    ] = None,
    scaling: Annotated[
        str | None, typer.Option(help="alpha/r, alpha/(k*r) or a number.", rich_help_panel=_TEAM)
    ] = None,
    collaboration: Annotated[
        bool, typer.Option(help="One shared down-projection.", rich_help_panel=_TEAM)
    ] = True,
    competition: Annotated[
        bool, typer.Option(help="Learnable interaction matrix M.", rich_help_panel=_TEAM)
    ] = True,
    epochs: Annotated[int, typer.Option(help="Passes over the mixture.", rich_help_panel=_LEARNING)] = 1,
    max_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps, instead of epochs.", rich_help_panel=_LEARNING)
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Examples a batch and process.", rich_help_panel=_LEARNING)
    ] = 8,
    accumulate: Annotated[int, typer.Option(help="Batches a step.", rich_help_panel=_LEARNING)] = 1,
    pack: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Lay a batch's examples end to end, about N a row, instead of padding each.",
            rich_help_panel=_LEARNING,
        ),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Peak rate.", rich_help_panel=_LEARNING)] = 2e-4,
    warmup: Annotated[float, typer.Option(help="Share of warm-up steps.", rich_help_panel=_LEARNING)] = 0.03,
    weight_decay: Annotated[
        float, typer.Option(help="On matrices; never on M.", rich_help_panel=_LEARNING)
    ] = 0.0,
    max_grad_norm: Annotated[
        float, typer.Option(help="Gradient clipping; 0 for none.", rich_help_panel=_LEARNING)
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides everything random.", rich_help_panel=_LEARNING)] = 0,
    dtype: Annotated[
        str,
        typer.Option(
            help="Of the base: auto, float32 or bfloat16; the adapter is float32.", rich_help_panel=_RUN
        ),
    ] = "auto",
    save_dtype: Annotated[
        str,
        typer.Option(
            help="Of the saved adapter: float32, or bfloat16, which rounds it and halves the file.",
            rich_help_panel=_RUN,
        ),
    ] = "float32",
    checkpointing: Annotated[
        bool | None,
        typer.Option(
            help="Gradient checkpointing (less memory, more time); default: on a GPU.", rich_help_panel=_RUN
        ),
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", rich_help_panel=_RUN)] = 500,
    log_every: Annotated[
        int, typer.Option(help="Steps between writes to loss.csv.", rich_help_panel=_RUN)
    ] = 10,
    offline: Annotated[
        bool, typer.Option("--offline", help="Never use the network.", rich_help_panel=_RUN)
    ] = False,
) -> None:
    """Train an adapter on the CME mixture: 22 datasets as instructions, loss on the answers only.

    Interrupted or killed, the same command goes on at the last checkpoint, exactly.
    """
    import os

    from cme_bench.training.options import TrainOptions, check_options, parse_fields
    from cme_bench.training.progress import show_training

    load_plugins(plugin)
    options = TrainOptions(
        model=model,
        method=method,
        out=out,
        data=data,
        datasets=datasets,
        weighting=weighting,
        temperature=temperature,
        samples=samples,
        cap=cap,
        holdout=holdout,
        rank=rank,
        experts=experts,
        alpha=alpha,
        dropout=dropout,
        targets=targets,
        preset=preset,
        scaling=scaling,
        collaboration=collaboration,
        competition=competition,
        balance_loss=balance_loss,
        settings=parse_fields(set_ or []),
        prompt_format=prompt_format,
        bos=bos,
        max_length=max_length,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        accumulate=accumulate,
        pack=pack,
        learning_rate=learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        dtype=dtype,
        save_dtype=save_dtype,
        checkpointing=checkpointing,
        seed=seed,
        save_every=save_every,
        log_every=log_every,
        offline=offline,
    )
    check_options(options)  # before anything slow is imported
    from cme_bench.training.train import train as train_adapter

    main_process = os.environ.get("RANK", "0") == "0"
    with show_training(main_process=main_process) as listener:
        listener.note(f"cme-bench train {model} --method {method}: preparing")
        folder = train_adapter(options, listener)
    if main_process:
        say(f"The adapter is in {folder}")
