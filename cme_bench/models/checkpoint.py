"""Who answers: a model named on the command line, found on disk, and identified by its contents."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import orjson

from cme_bench.models.bundled import BUNDLED, NAMES, ensure_bundled
from cme_bench.models.folder import check_model_folder
from cme_bench.models.hub_fetch import Role, Snapshot, fetch_snapshot
from cme_bench.models.hub_lock import default_lock_file, read_lock
from cme_bench.models.hub_name import HubName, parse_hub_name, path_hint
from cme_bench.models.weights import adapter_files, weight_files
from cme_bench.util.early import Early
from cme_bench.util.errors import UsageError
from cme_bench.util.notes import Note, unheard
from cme_bench.util.paths import cache_folder
from cme_bench.util.phases import phase
from cme_bench.util.remembered import remember, remembered
from cme_bench.vllm_plugin.spec import QUANT_METHOD, SUBFOLDER

_CONFIG = "config.json"
"""Also the end of other names: generation_config.json, tokenizer_config.json."""
_SETTLED_SECONDS = 1.0
HUB_FILE = "hub.json"
"""In a folder that ``cme-bench fetch`` wrote: the model's hub id and commit."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model folder. ``hashed``: its hash, or the work of making it; ``revision``: the hub's commit;
    ``hub``: the hub name that it was asked for by."""

    name: str
    path: Path
    hashed: str | Early[str]
    revision: str | None = None
    hub: str | None = None

    @property
    def hash(self) -> str:
        """The sha256 over its weight and config files. Waits for it: large weights take seconds to read."""
        return self.hashed if isinstance(self.hashed, str) else self.hashed.result()


def resolve_model(
    name: str, *, offline: bool = False, lock_file: Path | None = None, note: Note = unheard
) -> Checkpoint:
    """Resolve MODEL to a checkpoint: a bundled model, a folder, or a hub name (fetched at its locked commit).

    ``note`` is told of what takes long, and of a folder here that has a hub name's form. Raises UsageError
    if there is no such folder, no config.json in it, or no safetensors weights.
    """
    if name in BUNDLED:
        path = ensure_bundled(name, offline=offline, note=note)
        return Checkpoint(name, path, _hashed(path))
    found = folder_or_snapshot(name, "model", offline=offline, lock_file=lock_file, note=note)
    if isinstance(found, Snapshot):
        check_model_folder(found.folder)
        return Checkpoint(
            found.name.label, found.folder, _hashed(found.folder), found.commit, str(found.name)
        )
    check_model_folder(found)
    origin = fetched_origin(found)
    return Checkpoint(found.name, found, _hashed(found), origin.get("revision"), origin.get("id"))


def _hashed(folder: Path) -> Early[str]:
    """Begin to hash a model, while libraries are imported."""

    def hashed() -> str:
        with phase("hash"):
            return hash_model(folder)

    return Early(hashed)


def config_folder(name: str, *, offline: bool = False, note: Note = unheard) -> Path:
    """Return a folder with the config.json and the tokenizer of MODEL; of the hub only those are fetched."""
    if name in BUNDLED:
        return resolve_model(name, offline=offline, note=note).path
    found = folder_or_snapshot(name, "tokenizer", offline=offline, note=note)
    return found.folder if isinstance(found, Snapshot) else found


def folder_or_snapshot(
    name: str, role: Role, *, offline: bool = False, lock_file: Path | None = None, note: Note = unheard
) -> Path | Snapshot:
    """Return the folder ``name`` on this machine, or else the snapshot of that hub name.

    A folder wins over the hub's, visibly: ``note`` is told. UsageError if the name is locked as one of the
    hub, so that it has had the other meaning, and as ``fetch_snapshot``.
    """
    noun = "model" if role in ("model", "tokenizer") else "adapter"
    path, hub = Path(name).expanduser(), None
    if not name.startswith((".", "~", "/")):
        hub = parse_hub_name(name)
    if path.is_dir():
        if hub is not None:
            _tell_of_folder(hub, path, noun, lock_file or default_lock_file(), note)
        return path.resolve()
    if hub is None:
        ours = f" or {NAMES}" if noun == "model" else ""
        hint = path_hint(name)
        raise UsageError(f"{noun} {name!r}: no such folder, and not a hub id ('owner/name'){ours}{hint}")
    return fetch_snapshot(hub, role, offline=offline, lock_file=lock_file, note=note)


def _tell_of_folder(hub: HubName, path: Path, noun: str, lock_file: Path, note: Note) -> None:
    if locked := read_lock(lock_file).get(hub.lock_key):
        raise UsageError(
            f"{noun} {hub}: the folder here, or the hub's, which was used before? Write ./{path} for the "
            f"folder, {hub.at(locked)} for the hub's"
        )
    note(f"{noun} {hub}: the folder {path.resolve()}, not the hub's (./{path} says so)")


def fetched_origin(path: Path) -> dict[str, str]:
    """Return the hub's ``id`` and ``revision`` of a folder that ``cme-bench fetch`` wrote; else {}."""
    return read_lock(path / HUB_FILE)


def hash_model(folder: Path) -> str:
    """Return the sha256 that identifies a model: over names and contents of its config files and of the
    weight files that are read. An exported folder (``adapters export-vllm``) counts its adapters.

    Config files are those of model, generation (end tokens) and tokenizer. A tokenizer's vocabulary and a
    chat template decide token ids, which stand in the keys of responses. An adapter that lies beside the
    weights is not applied, and does not count.
    """
    configs = {file for file in folder.iterdir() if file.name.endswith(_CONFIG)} - {*adapter_files(folder)}
    files = [*configs, *weight_files(folder)]
    block = orjson.loads((folder / _CONFIG).read_bytes()).get("quantization_config")
    if isinstance(block, dict) and block.get("quant_method") == QUANT_METHOD:
        files += (folder / SUBFOLDER).rglob("*.safetensors")
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
    if known := remembered(memory).get(key):
        return known
    with real.open("rb") as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
    if time.time() - max(before.st_mtime, before.st_ctime) > _SETTLED_SECONDS:
        remember(memory, key, value)
    return value
