"""``cme-bench adapters``: what an adapter is, and adapters from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cme_bench.cli.plugins import Plugins, load_plugins

app = typer.Typer(
    help="Describe adapters, import them from other layouts, export them for vLLM.", no_args_is_help=True
)


@app.command()
def describe(
    adapter: Annotated[str, typer.Argument(help="Adapter folder, or teamlora-demo, which ships with this.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the base model, for the percentage.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plugin: Plugins = None,
) -> None:
    """Method, rank, experts, targets and size of an adapter; loads no weight."""
    from cme_bench.adapters.describe import describe as describe_adapter
    from cme_bench.models.packaged import adapter_folder

    load_plugins(plugin)
    found = describe_adapter(adapter_folder(adapter), base)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
        return
    share = (
        "base model unknown; give --base"
        if found.percent_of_base is None
        else f"{found.percent_of_base:.3f} %"
    )
    rows = {
        "method": found.method,
        "rank": f"{found.rank} per expert" if found.experts else found.rank,
        "experts": found.experts or "none",
        "targets": ", ".join(found.targets),
        "trainable": f"{found.trainable_parameters:,}",
        "of base": share,
        **found.settings,
    }
    for key, value in rows.items():
        typer.echo(f"{key:<20} {value}")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The authors' checkpoint: a folder or a safetensors file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Adapter folder to write.")],
    base: Annotated[str, typer.Option(help="Hub id or folder of the base model, recorded in the result.")],
    alpha: Annotated[
        float | None, typer.Option(help="Their lora_alpha, if the source has no config.")
    ] = None,
) -> None:
    """Converts a TeamLoRA checkpoint in the layout of the authors' code of August 2024, exactly."""
    from cme_bench.adapters.convert import import_authors

    config = import_authors(source, out, base, alpha=alpha)
    typer.echo(f"{config.num_experts} experts of rank {config.r}, scale {config.scale:g}")
    typer.echo(str(out))


@app.command("export-vllm")
def export_vllm(
    adapter: Annotated[
        Path, typer.Argument(help="Adapter folder, of any method that vLLM's plugin computes.")
    ],
    base: Annotated[str, typer.Option(help="The base model: a folder, a hub id or 'smollm2'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Checkpoint folder to write.")],
    link: Annotated[
        bool, typer.Option("--link", help="Link the base model's files; both folders then change together.")
    ] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
    plugin: Plugins = None,
) -> None:
    """Write a checkpoint folder that vLLM serves with the adapter, and print the command that serves it.

    cme-bench must be installed beside vLLM, whose plugin it is.
    """
    from cme_bench.engines.vllm.adapter import read_gated
    from cme_bench.engines.vllm.export import export_checkpoint, serve_command
    from cme_bench.models.adapter_tokenizer import beside
    from cme_bench.models.checkpoint import resolve_model
    from cme_bench.models.folder import adapter_note
    from cme_bench.models.load import check_base, load_config, load_tokenizer
    from cme_bench.models.quantisation import check_takes_adapter

    load_plugins(plugin)
    checkpoint = resolve_model(base, offline=offline)
    config = load_config(checkpoint)
    check_base(checkpoint, config, "vllm")
    check_takes_adapter(checkpoint.path, config)
    own = beside(adapter, load_tokenizer(checkpoint))
    for note in (adapter_note(checkpoint.path), own.note):
        if note is not None:
            typer.echo(note, err=True)
    tokenizer = None if own.note is None else own.tokenizer
    export_checkpoint(checkpoint.path, read_gated(adapter, config), out, tokenizer=tokenizer, link=link)
    typer.echo(serve_command(out))


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a method.")] = False,
    plugin: Plugins = None,
) -> None:
    """List the adapter methods: how they are computed, their settings, and the forms that are measured."""
    from cme_bench.adapters.plugins import installed_names
    from cme_bench.adapters.registry import methods as registered
    from cme_bench.adapters.support import method_verdict

    load_plugins(plugin)
    for method in registered():
        how = method_verdict(method.name.upper())
        about = {
            "routed": method.routed,
            "transformers": f"{how.way}: {how.reason}" if how.reason else how.way,
            "vllm": f"no: {method.vllm}" if isinstance(method.vllm, str) else "exact",
            "settings": list(method.settings),
            "measured": [form.name for form in method.measured],
            "code": None if method.code is None else method.code.file,
        }
        if as_json:
            typer.echo(json.dumps({"method": method.name} | about))
            continue
        typer.echo(method.name)
        for key, value in about.items():
            if value:
                typer.echo(f"  {key:<14} {', '.join(value) if isinstance(value, list) else value}")
    if (more := installed_names()) and not as_json:
        typer.echo(f"installed packages name: {', '.join(more)}")
