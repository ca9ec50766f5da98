"""Models of the hub, fetched into a folder that MODEL may name, with the commit they came from."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson

from cme_bench.models.checkpoint import HUB_FILE, fetch_snapshot, resolve_model
from cme_bench.models.hub_lock import LOCK_NAME
from cme_bench.util.notes import Note, unheard

MODELS_FOLDER = "models"


def fetch_model(name: str, folder: Path, note: Note = unheard) -> Path:
    """Fetch a hub id or ``smollm2`` into ``folder/models/NAME``: weights, configuration and tokenizer.

    The commit is the one in ``folder/hub-lock.json``, resolved by the hub the first time; it is also written
    into the model's folder, so that runs record it. Raises CmeError if the hub does not deliver.
    """
    target = folder / MODELS_FOLDER / name.rpartition("/")[2]
    if name == "smollm2":
        shutil.copytree(resolve_model(name, note=note).path, target, dirs_exist_ok=True)
        return target
    found, commit = fetch_snapshot(name, lock_file=folder / LOCK_NAME, local_dir=target)
    (found / HUB_FILE).write_bytes(orjson.dumps({"id": name, "revision": commit}))
    return found
