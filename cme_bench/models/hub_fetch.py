"""Models and adapters of the hub: a name becomes a commit, which is locked, and the files of that commit."""

from __future__ import annotations

import functools
import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from cme_bench.models.hub_client import from_hub, hub_errors
from cme_bench.models.hub_lock import default_lock_file, read_lock, write_lock
from cme_bench.models.hub_name import SHORT, HubName
from cme_bench.util.errors import CmeError, UsageError, did_you_mean, first_line
from cme_bench.util.notes import Note, unheard

Role: TypeAlias = Literal["model", "adapter", "import", "tokenizer"]
"""The use of a repository, which decides the files that are fetched. import: pickles of adapters, too."""
_TEXTS = ("*.json", "*.model", "*.txt", "*.jinja")
_WEIGHTS = ("*.safetensors",)
_NEEDED: dict[Role, tuple[str, ...]] = {
    "model": (*_WEIGHTS, *_TEXTS),
    "adapter": (*_WEIGHTS, *_TEXTS),
    "import": (*_WEIGHTS, *_TEXTS, "adapter_model.bin"),
    "tokenizer": _TEXTS,
}
_SECOND_COPIES = ("consolidated*", "optimizer*", "training_args*")
_MODEL_WEIGHTS = ("model.safetensors", "model-*.safetensors")
_MOVED_SECONDS = 5.0
"""The patience in asking whether a revision moved; no answer is none that matters."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a hub name at the commit that counts."""

    name: HubName
    folder: Path
    commit: str


def fetch_snapshot(
    name: HubName,
    role: Role,
    *,
    offline: bool = False,
    lock_file: Path | None = None,
    local_dir: Path | None = None,
    note: Note = unheard,
) -> Snapshot:
    """Fetch the needed files of ``name`` into the hub's cache, or into ``local_dir``.

    The commit is the locked one; the first time the hub names it. ``note`` is told where the revision has
    moved since. Offline, or where HF_HUB_OFFLINE is set, only what was fetched before is used. Raises
    UsageError, one line, for a name that the hub does not have, a repository that needs a token, and an
    offline miss; CmeError if the hub does not deliver.
    """
    offline = offline or _hub_offline()
    what = f"{'adapter' if role in ('adapter', 'import') else 'model'} {name}"
    lock_file = lock_file or default_lock_file()
    commit = name.commit or read_lock(lock_file).get(name.lock_key)
    if commit is None:
        if offline:
            raise UsageError(f"{what} is not in {lock_file}; {_fetch_it(name)}")
        commit = write_lock(lock_file, name.lock_key, _head(name, what))
    elif not offline and name.commit is None:
        _tell_if_moved(name, commit, lock_file, note)
    allow, ignore = _patterns(name.subfolder, role)
    folder = _downloaded(name, what, commit, allow, ignore, offline=offline, local_dir=local_dir)
    if name.subfolder is not None:
        folder /= name.subfolder
        if not folder.is_dir():
            raise UsageError(f"{what}: commit {commit[:SHORT]} has no folder {name.subfolder!r}")
    if role in ("model", "adapter") and not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{what}: no safetensors weights at commit {commit[:SHORT]} (pickled files are not fetched)"
        )
    return Snapshot(name, folder, commit)


def _downloaded(
    name: HubName,
    what: str,
    commit: str,
    allow: Sequence[str],
    ignore: Sequence[str],
    *,
    offline: bool,
    local_dir: Path | None,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def ask() -> str:
        return snapshot_download(
            name.repo,
            revision=commit,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
            local_files_only=offline,
            local_dir=local_dir,
        )

    if not offline:
        return Path(from_hub(what, ask, refusal=lambda error: _refusal(name, what, error)))
    try:
        return Path(ask())
    except LocalEntryNotFoundError as error:
        raise UsageError(
            f"{what}: commit {commit[:SHORT]} is not complete in the hub's cache on this machine; "
            f"{_fetch_it(name)}"
        ) from error


def _patterns(subfolder: str | None, role: Role) -> tuple[list[str], list[str]]:
    """Return which files are fetched and which of those not: none of folders below, no second copies."""
    inside = "" if subfolder is None else f"{glob.escape(subfolder)}/"
    skipped = [*_SECOND_COPIES, "*/*", *(_MODEL_WEIGHTS if role in ("adapter", "import") else ())]
    return [inside + pattern for pattern in _NEEDED[role]], [inside + pattern for pattern in skipped]


def _head(name: HubName, what: str) -> str:
    from huggingface_hub import HfApi

    info = from_hub(
        what,
        lambda: HfApi().model_info(name.repo, revision=name.revision),
        refusal=lambda error: _refusal(name, what, error),
    )
    return str(info.sha)


def _tell_if_moved(name: HubName, commit: str, lock_file: Path, note: Note) -> None:
    now = _current(name)
    if now is not None and now != commit:
        note(
            f"{name}: the hub is at commit {now[:SHORT]} now; the locked {commit[:SHORT]} is used "
            f"(to move on, remove {name.lock_key!r} from {lock_file})"
        )


@functools.cache
def _current(name: HubName) -> str | None:
    """Return the commit that the hub has for a name now; None if it does not say."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(name.repo, revision=name.revision, timeout=_MOVED_SECONDS).sha)
    except hub_errors():
        return None


def _refusal(name: HubName, what: str, error: Exception) -> CmeError | None:
    """Return the error, in one sentence, of a hub that answers but does not give; None for other failures."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return UsageError(
            f"{what}: the repository is gated; accept its terms on its page, and set HF_TOKEN to a token of "
            "that account"
        )
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"{what}: the repository has no branch, tag or commit {name.revision or 'main'!r}")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return UsageError(
            f"{what}: no such folder here, and {constants.ENDPOINT} has no such repository, or a private one "
            f"(HF_TOKEN gives access){_near_folder(name)}"
        )
    if status in (401, 403):
        return UsageError(f"{what}: the hub refuses access ({status}: {first_line(error)}); set HF_TOKEN")
    return None


def _near_folder(name: HubName) -> str:
    """Return a hint if the name can be a mistyped path of a folder here."""
    text = f"{name.repo}{'' if name.subfolder is None else f'/{name.subfolder}'}"
    if name.revision is not None and Path(text).is_dir():
        return f"; {text} is a folder here, and a folder has no revisions"
    parent = Path(text).parent
    here = [str(entry) for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    return did_you_mean(text, here)


def _fetch_it(name: HubName) -> str:
    return f"fetch it once where there is a network: cme-bench fetch {name}"


def _hub_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
