"""Who answers: a model named on the command line, found on disk, and identified by its contents."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from cme_bench.models.folder import check_model_folder
from cme_bench.models.hub_client import from_hub
from cme_bench.models.hub_lock import default_lock_file, read_lock, write_lock
from cme_bench.models.weights import adapter_files, weight_files
from cme_bench.util.errors import UsageError
from cme_bench.util.files import replacing
from cme_bench.util.locks import locked
from cme_bench.util.notes import Note, unheard
from cme_bench.util.paths import cache_folder
from cme_bench.vllm_plugin.spec import QUANT_METHOD, SUBFOLDER

_CONFIG = "config.json"
"""Also the end of other names: generation_config.json, tokenizer_config.json."""
_SETTLED_SECONDS = 1.0
HUB_FILE = "hub.json"
"""In a folder that ``cme-bench fetch`` wrote: the model's hub id and commit."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder. ``hash``: sha256 over its weight and config files; ``revision``: the hub's commit."""

    name: str
    path: Path
    hash: str
    revision: str | None = None


def resolve_model(
    name: str, *, offline: bool = False, lock_file: Path | None = None, note: Note = unheard
) -> Checkpoint:
    """Resolve MODEL to a checkpoint: ``smollm2``, a folder, or a hub id (fetched at its locked commit).

    ``note`` is told of what takes long. Raises UsageError if there is no such folder, no config.json in it,
    or no safetensors weights.
    """
    if name == "smollm2":
        from cme_bench.models.smollm2 import ensure

        path = ensure(offline=offline, note=note)
        return Checkpoint(name, path, hash_model(path))
    path = Path(name).expanduser()
    if path.is_dir():
        check_model_folder(path)
        return Checkpoint(path.resolve().name, path.resolve(), hash_model(path), _fetched_revision(path))
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UsageError(f"model {name!r}: no such folder, and not a hub id ('owner/name') or 'smollm2'")
    folder, revision = fetch_snapshot(name, lock_file=lock_file or default_lock_file(), offline=offline)
    check_model_folder(folder)
    return Checkpoint(name.split("/")[1], folder, hash_model(folder), revision)


def _fetched_revision(path: Path) -> str | None:
    """Return the commit of a model that ``cme-bench fetch`` wrote; None for any other folder."""
    file = path / HUB_FILE
    return read_lock(file).get("revision")


def fetch_snapshot(
    name: str, *, lock_file: Path, offline: bool = False, local_dir: Path | None = None
) -> tuple[Path, str]:
    """Fetch a model of the hub into the hub's cache, or into ``local_dir``; return its folder and commit.

    UsageError if ``name`` is no hub id.
    """
    if not _HUB_ID.fullmatch(name):
        raise UsageError(f"model {name!r}: not a hub id ('owner/name')")
    from huggingface_hub import HfApi, snapshot_download

    commit = read_lock(lock_file).get(f"models/{name}")
    if commit is None:
        if offline:
            raise UsageError(f"model {name} is not in {lock_file}; fetch it once without --offline")
        info = from_hub(f"model {name}", lambda: HfApi().model_info(name))
        commit = write_lock(lock_file, f"models/{name}", str(info.sha))
    folder = from_hub(
        f"model {name}",
        lambda: snapshot_download(
            name,
            revision=commit,
            allow_patterns=_HUB_FILES,
            local_files_only=offline,
            local_dir=local_dir,
        ),
    )
    return Path(folder), commit


def hash_model(folder: Path) -> str:
    """Return the sha256 that identifies a model: over names and contents of its config files and of the
    weight files that are read. An exported folder (``adapters export-vllm``) counts its adapter too.

    Config files are those of model, generation (end tokens) and tokenizer. A tokenizer's vocabulary and a
    chat template decide token ids, which stand in the keys of responses. An adapter that lies beside the
    weights is not applied, and does not count.
    """
    configs = {file for file in folder.iterdir() if file.name.endswith(_CONFIG)} - {*adapter_files(folder)}
    files = [*configs, *weight_files(folder)]
    block = orjson.loads((folder / _CONFIG).read_bytes()).get("quantization_config")
    if isinstance(block, dict) and block.get("quant_method") == QUANT_METHOD:
        files += (folder / SUBFOLDER).glob("*.safetensors")
    return _hash_files(folder, files)


def hash_checkpoint(folder: Path) -> str:
    """Return the sha256 over the names and contents of the weight and config files of an adapter folder."""
    return _hash_files(folder, [p for p in folder.iterdir() if p.name.endswith((".safetensors", _CONFIG))])


def _hash_files(folder: Path, files: Iterable[Path]) -> str:
    """Hash files by their contents, once per state of a file; the user cache remembers the hashes."""
    digest = hashlib.sha256()
    for name, file in sorted((str(file.relative_to(folder)), file) for file in files):
        digest.update(f"{name}:{hash_file(file)}\n".encode())
    return digest.hexdigest()


def hash_file(file: Path) -> str:
    """Return the sha256 of a file's contents, remembered by path, size, inode, modification and change time.

    The change time cannot be set back, as a copy that keeps modification times would do. A file that changed
    just now may change again within the same tick of the clock: its hash is not remembered yet.
    """
    real = file.resolve()
    before = real.stat()
    memory = cache_folder() / "file-hashes.json"
    key = f"{real}:{before.st_size}:{before.st_ino}:{before.st_mtime_ns}:{before.st_ctime_ns}"
    if known := _remembered(memory).get(key):
        return known
    with real.open("rb") as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED_SECONDS:
        _remember(memory, key, value)
    return value


def _remembered(memory: Path) -> dict[str, str]:
    try:
        known = orjson.loads(memory.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}  # only a cache: a missing or broken one costs a hash, nothing else
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, key: str, value: str) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with locked(memory.with_suffix(".flock")), replacing(memory) as stream:
            stream.write(orjson.dumps(_remembered(memory) | {key: value}))
    except OSError:
        return  # a read-only home: hash again next time
