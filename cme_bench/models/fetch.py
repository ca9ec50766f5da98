"""Models and adapters of the hub, fetched for later, with the commit they came from."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson

from cme_bench.models.bundled import BUNDLED
from cme_bench.models.checkpoint import HUB_FILE, fetched_origin, resolve_model
from cme_bench.models.hub_fetch import fetch_snapshot
from cme_bench.models.hub_lock import LOCK_NAME
from cme_bench.models.hub_name import parse_hub_name, path_hint
from cme_bench.util.errors import UsageError
from cme_bench.util.notes import Note, unheard

MODELS_FOLDER = "models"


def fetch_model(name: str, folder: Path | None = None, note: Note = unheard) -> Path:
    """Fetch a model or an adapter of the hub, or a bundled one: weights, configuration and tokenizer.

    Without ``folder`` into the hub's cache, where the same name finds it offline; else into
    ``folder/models/NAME``. The commit is the one in ``folder/hub-lock.json``, resolved by the hub the first
    time; it is also written into the model's folder, so that runs record it. Raises UsageError for a name
    that is no hub name, or whose folder holds another model; CmeError if the hub does not deliver.
    """
    if name in BUNDLED:
        made = resolve_model(name, note=note).path
        return made if folder is None else _copied(made, folder / MODELS_FOLDER / name)
    hub = parse_hub_name(name)
    if hub is None:
        raise UsageError(f"model {name!r}: not a hub id ('owner/name@revision'){path_hint(name)}")
    if folder is None:
        return fetch_snapshot(hub, "model", note=note).folder
    target = folder / MODELS_FOLDER / hub.label
    if (held := fetched_origin(target / (hub.subfolder or "")).get("id", name)) != name:
        raise UsageError(f"model {name}: {target} holds {held}; choose another folder with --out")
    found = fetch_snapshot(hub, "model", lock_file=folder / LOCK_NAME, local_dir=target, note=note)
    (found.folder / HUB_FILE).write_bytes(orjson.dumps({"id": name, "revision": found.commit}))
    return found.folder


def _copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target
