"""``cme-bench adapters``: what an adapter is, and adapters from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cme_bench.cli import app
from cme_bench.cli.help import ADAPTERS, command, group
from cme_bench.cli.plugins import Plugins
from cme_bench.cli.shared import tell
from cme_bench.util.options import Offline, Option

if TYPE_CHECKING:
    from cme_bench.prompts.ending import TrainedEnd

adapters = group(help="Describe adapters, import them from other layouts, export them for vLLM.")
app.add_typer(adapters, name="adapters", rich_help_panel=ADAPTERS)
_EXAMPLE_DESCRIBE = {
    "see an adapter's method, rank, targets and size": "cme-bench adapters describe ./team --base ./llama"
}
_EXAMPLE_IMPORT = {
    "import an adapter that another repository's code saved": (
        "cme-bench adapters import ./checkpoint -o ./hydra --base owner/model"
    )
}
LAYOUTS = "auto (by tensors' names), teamlora-2024-08, hydralora, loramoe, mixlora, moslora, llava or peft"
"""As ``cme_bench.adapters.imports.run`` has them, which is heavy to import."""
_EXAMPLE_EXPORT = {
    "serve an adapter with vLLM: this prints the command": (
        "cme-bench adapters export-vllm ./team --base ./llama -o ./served"
    )
}
_EXAMPLE_METHODS = {"see which adapter methods there are": "cme-bench adapters methods"}


@command(adapters, _EXAMPLE_DESCRIBE)
def describe(
    adapter: Annotated[
        str,
        Option("Adapter folder, hub name, or teamlora-demo, which ships with this.", argument=True),
    ],
    base: Annotated[
        str | None, Option("The base model, for the percentage: a folder, a hub name or 'smollm2'.")
    ] = None,
    as_json: Annotated[bool, Option("One JSON object.", flag="--json")] = False,
    offline: Offline = False,
    plugin: Plugins = (),
) -> None:
    """Print method, rank, experts, targets and size of an adapter; loads no weight."""
    from cme_bench.adapters.describe import describe as describe_adapter
    from cme_bench.models.checkpoint import config_folder
    from cme_bench.models.packaged import adapter_folder

    folder = adapter_folder(adapter, offline=offline, note=tell)
    about = describe_adapter(
        folder, None if base is None else config_folder(base, offline=offline, note=tell)
    )
    if as_json:
        typer.echo(json.dumps(about.to_dict()))
        return
    share = (
        "base model unknown; give --base"
        if about.percent_of_base is None
        else f"{about.percent_of_base:.3f} %"
    )
    language = about.percent_of_language_model
    rows = {
        "method": about.method,
        "rank": f"{about.rank} per expert" if about.experts else about.rank,
        "experts": about.experts or "none",
        "targets": ", ".join(about.targets),
        "trainable": f"{about.trainable_parameters:,}",
        "of base": share,
        **({} if language is None else {"of language model": f"{language:.3f} %"}),
        **about.settings,
    }
    for key, value in rows.items():
        typer.echo(f"{key:<20} {value}")


@command(adapters, _EXAMPLE_IMPORT, name="import")
def import_(
    source: Annotated[
        str,
        Option("Their checkpoint: a folder, a hub name, or a file .safetensors or .bin.", argument=True),
    ],
    out: Annotated[Path, Option("Adapter folder to write.", short="-o")],
    base: Annotated[str, Option("Hub name or folder of the base model, recorded in the result.")],
    layout: Annotated[str, Option(f"Whose layout it is in: {LAYOUTS}.")] = "auto",
    alpha: Annotated[float | None, Option("Their lora_alpha, if the source has no config.")] = None,
) -> None:
    """Convert a checkpoint of another repository's adapter into a folder of this package, exactly.

    It may be one of TeamLoRA (August 2024), HydraLoRA, LoRAMoE, MixLoRA (MoE-PEFT) or MoSLoRA, or PEFT's
    own adapter_model.bin.
    """
    from cme_bench.adapters.convert import import_adapter
    from cme_bench.adapters.describe import describe as describe_adapter
    from cme_bench.adapters.files import PICKLES, WEIGHTS_SUFFIX
    from cme_bench.models.base_revision import name_revision
    from cme_bench.models.hub_name import parse_hub_name
    from cme_bench.models.packaged import adapter_folder

    here = Path(source).exists() or source.endswith((WEIGHTS_SUFFIX, *PICKLES))
    found = source if here else adapter_folder(source, role="import", note=tell)
    name = None if Path(base).exists() else parse_hub_name(base)
    repo, revision = (base, None) if name is None else (name.repo, name.revision)
    done = import_adapter(found, out, repo, layout=layout, alpha=alpha)
    if revision is not None:
        name_revision(out, repo, revision)
    for note in done.notes:
        tell(f"note: {note}")
    about = describe_adapter(out)
    experts = f"{about.experts} experts of rank {about.rank}" if about.experts else f"rank {about.rank}"
    typer.echo(f"layout {done.layout} ({done.origin})")
    typer.echo(f"{about.method}, {experts}, scale {done.scale}")
    typer.echo(str(out))


@command(adapters, _EXAMPLE_EXPORT, name="export-vllm")
def export_vllm(
    adapter: Annotated[
        str, Option("Adapter folder or hub name, of any method that vLLM's plugin computes.", argument=True)
    ],
    base: Annotated[str, Option("The base model: a folder, a hub id or 'smollm2'.")],
    out: Annotated[Path, Option("Checkpoint folder to write.", short="-o")],
    beside: Annotated[
        tuple[str, ...],
        Option(
            "One more adapter, under its own name; several times for several. Requests name whom they ask."
        ),
    ] = (),
    link: Annotated[bool, Option("Link the base model's files; both folders then change together.")] = False,
    offline: Offline = False,
    plugin: Plugins = (),
) -> None:
    """Write a checkpoint folder that vLLM serves with the adapter, and print the command that serves it.

    cme-bench must be installed beside vLLM, whose plugin it is. A LoRA with DoRA is merged into the base
    weights instead, in float32, and needs no plugin. With --beside one server answers by several adapters,
    and by the base model, in the same batches: a request names its adapter as it would name a LoRA.
    """
    from cme_bench.engines.vllm.adapter import adapted_linears, read_gated
    from cme_bench.engines.vllm.fields import needs_merging, refuse_rounded
    from cme_bench.models import adapter_tokenizer
    from cme_bench.models.checkpoint import resolve_model
    from cme_bench.models.export_vllm import end_also, export_checkpoint, export_several, serve_command
    from cme_bench.models.folder import adapter_note
    from cme_bench.models.load import check_base, eos_token_id, load_config, load_tokenizer
    from cme_bench.models.merged import write_merged
    from cme_bench.models.packaged import adapter_folder
    from cme_bench.models.quantisation import check_takes_adapter, quantisation
    from cme_bench.models.values import check_stored

    folder = adapter_folder(adapter, offline=offline, note=tell)
    checkpoint = resolve_model(base, offline=offline, note=tell)
    config = load_config(checkpoint)
    check_base(checkpoint, config, "vllm")
    check_takes_adapter(checkpoint.path, config)
    check_stored(checkpoint.path)
    own, eos = load_tokenizer(checkpoint), eos_token_id(checkpoint, config)
    if beside:
        folders = _by_name([adapter, *beside], offline=offline)
        for name, path in folders.items():
            _check_shared(name, path, own)
        gated = {name: read_gated(path, config) for name, path in folders.items()}
        export_several(checkpoint.path, gated, out, link=link)
        for name, path in folders.items():
            if (end := _trained_end(path, own, eos)) is not None:
                typer.echo(
                    f"{name}: {end.note}, if requests name stop_token_ids {list(end.tokens)}", err=True
                )
        typer.echo(serve_command(out, list(gated)))
        return
    tokens = adapter_tokenizer.beside(folder, own)
    for note in (adapter_note(checkpoint.path), tokens.note):
        if note is not None:
            typer.echo(note, err=True)
    tokenizer = None if tokens.note is None else tokens.tokenizer
    options = ""
    if needs_merging(folder):
        adapted_linears(folder, config)
        refuse_rounded(folder, "float32", quantised=quantisation(config) is not None)
        write_merged(checkpoint, folder, out, tokenizer=tokenizer)
        options = " --dtype float32"
    else:
        export_checkpoint(checkpoint.path, read_gated(folder, config), out, tokenizer=tokenizer, link=link)
    if (end := _trained_end(folder, tokens.tokenizer, eos)) is not None:
        end_also(out, eos, end.tokens)
        typer.echo(end.note, err=True)
    typer.echo(f"{serve_command(out)}{options}")


def _trained_end(folder: Path, tokenizer: Any, eos: Any) -> TrainedEnd | None:
    """Return what ends the answers of an adapter, and not its base's, of generation config ``eos``."""
    from cme_bench.models.adapter import read_training
    from cme_bench.prompts.ending import trained_end

    return trained_end(read_training(folder).get("tokenization") or {}, tokenizer, eos)


def _by_name(given: Sequence[str], *, offline: bool) -> dict[str, Path]:
    """Return the adapters' folders by the names that requests will use. UsageError if two have one name."""
    from cme_bench.models.packaged import locate_adapter
    from cme_bench.util.errors import UsageError

    found: dict[str, Path] = {}
    for each in given:
        place = locate_adapter(each, offline=offline, note=tell)
        if place.task is not None or place.label in found:
            why = "a task cannot be chosen here" if place.task is not None else "another one has its name"
            raise UsageError(f"adapter {each}: {why}; requests name an adapter by its folder's name")
        found[place.label] = place.path
    return found


def _check_shared(name: str, folder: Path, tokenizer: Any) -> None:
    """Raise UsageError for an adapter that cannot share a server with others."""
    from cme_bench.engines.vllm.fields import needs_merging
    from cme_bench.models.adapter_tokenizer import beside
    from cme_bench.util.errors import UsageError

    if needs_merging(folder):
        raise UsageError(f"adapter {name}: use_dora is True, which is merged into the base; export it alone")
    if beside(folder, tokenizer).note is not None:
        raise UsageError(f"adapter {name}: it ships a tokenizer of its own; export it alone")


@command(adapters, _EXAMPLE_METHODS)
def methods(
    as_json: Annotated[bool, Option("One JSON object a method.", flag="--json")] = False,
    plugin: Plugins = (),
) -> None:
    """List the adapter methods: how they are computed, their settings, and the forms that are measured."""
    from cme_bench.adapters.plugins import installed_names
    from cme_bench.adapters.registry import methods as registered
    from cme_bench.adapters.support import method_verdict

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
