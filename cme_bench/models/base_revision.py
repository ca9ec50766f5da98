"""Is this the revision of the base that an adapter was trained on? A difference is told, not refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cme_bench.models.checkpoint import fetched_origin
from cme_bench.models.hub_lock import default_lock_file, read_lock
from cme_bench.models.hub_name import SHORT, HubName, parse_hub_name
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json

_SNAPSHOT = re.compile(r"snapshots[/\\](?P<commit>[0-9a-f]{40})(?:[/\\]|$)")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def other_revision(folder: Path, config: Any, base: str) -> list[str]:
    """Return a sentence if an adapter's config names another revision of its base than the one at ``base``.

    Nothing is said where either is unknown: a base that did not come from the hub, an adapter that records
    no revision or the head of the time. A branch or tag is compared by the commit that is locked for it.
    """
    recorded, actual = getattr(config, "revision", None), base_commit(Path(base))
    if not isinstance(recorded, str) or recorded in ("", "main") or actual is None:
        return []
    named = config.base_model_name_or_path
    where = f"{folder / 'adapter_config.json'}: the adapter was trained on revision {recorded} of {named}"
    here = f"the base model here is at commit {actual[:SHORT]}"
    commit = recorded if _COMMIT.fullmatch(recorded) else _locked(str(named), recorded)
    if commit is None:
        return [f"{where}, whose commit is not known here; {here}"]
    return [] if actual.startswith(commit) else [f"{where}, {here}"]


def name_revision(folder: Path, base: str, revision: str) -> None:
    """Record the revision of its base in an adapter's config, if that is the base which it records."""
    file = folder / "adapter_config.json"
    config = read_json(file)
    if config.get("base_model_name_or_path") == base:
        write_json(file, config | {"revision": revision})


def base_commit(folder: Path) -> str | None:
    """Return the hub's commit of a model folder in the hub's cache, or that ``cme-bench fetch`` wrote."""
    found = _SNAPSHOT.search(str(folder))
    return found["commit"] if found else fetched_origin(folder).get("revision")


def _locked(base: str, revision: str) -> str | None:
    try:
        name = parse_hub_name(base)
    except UsageError:
        return None
    return (
        None
        if name is None
        else read_lock(default_lock_file()).get(HubName(name.repo, None, revision).lock_key)
    )
