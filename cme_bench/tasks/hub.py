"""Rows from the Hugging Face hub, at a commit that is resolved once, written down and used from then on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cme_bench.models.hub_client import from_hub
from cme_bench.models.hub_lock import default_lock_file, read_lock, write_lock
from cme_bench.tasks.row_files import Rows
from cme_bench.tasks.sources import DataSource
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.stored_rows import undecoded
from cme_bench.util.errors import CmeError, UsageError

if TYPE_CHECKING:
    import datasets

_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubSource(DataSource):
    """Datasets of the hub (``HF_ENDPOINT`` is honoured).

    The network is used for the commit of a dataset that is not in the lock file, and for rows that are not
    in the local cache at the locked commit; with ``offline`` neither is fetched, which is an error.
    """

    name = "hub"

    def __init__(self, *, lock_file: Path | None = None, offline: bool = False) -> None:
        self.lock_file = lock_file or default_lock_file()
        self.offline = offline

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        """Return the rows of ``split`` at the locked commit.

        UsageError if they are not at hand and ``offline``; CmeError if the hub does not deliver them.
        """
        path, name = str(spec.config["dataset_path"]), spec.config.get("dataset_name")
        kwargs = dict(spec.config.get("dataset_kwargs") or {})
        return self.dataset_rows(path, name, split, kwargs=kwargs)[0]

    def dataset_rows(
        self,
        path: str,
        name: str | None,
        split: str,
        *,
        kwargs: dict[str, Any] | None = None,
        revision: str | None = None,
    ) -> tuple[Rows, str]:
        """Return the rows of a dataset's split at the locked commit of ``revision`` (its newest), and the
        commit. Raises as :meth:`rows` does."""
        commit = self._commit(path, revision)
        table = None if kwargs else _cached(path, name, split, commit)
        if table is None:
            if self.offline:
                raise UsageError(
                    f"dataset {path}: split {split!r} at commit {commit[:8]} is not in the local cache; "
                    "fetch it once without --offline"
                )
            table = _load(path, name, split, commit, kwargs or {})
        return Rows(undecoded(table), f"{path}@{commit[:8]}/{split}", folder=_cache()), commit

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        kept = {key: spec.config[key] for key in ("dataset_path", "dataset_name") if key in spec.config}
        kwargs = dict(spec.config.get("dataset_kwargs") or {}) | {"revision": self.revision(spec)}
        return kept | {"dataset_kwargs": kwargs}

    def revision(self, spec: TaskSpec) -> str | None:
        return self._commit(str(spec.config["dataset_path"]))

    def _commit(self, path: str, revision: str | None = None) -> str:
        key = f"datasets/{path}@{revision}" if revision else f"datasets/{path}"
        if commit := read_lock(self.lock_file).get(key):
            return commit
        if revision and _COMMIT.fullmatch(revision):
            return write_lock(self.lock_file, key, revision)
        if self.offline:
            named = key.removeprefix("datasets/")
            raise UsageError(f"dataset {named} is not in {self.lock_file}; fetch it once without --offline")
        from huggingface_hub import HfApi

        info = from_hub(f"dataset {path}", lambda: HfApi().dataset_info(path, revision=revision))
        return write_lock(self.lock_file, key, str(info.sha))


def hub_rows(named: str, *, offline: bool, lock_file: Path | None = None) -> tuple[Rows, str]:
    """Return the rows of ``OWNER/NAME[/CONFIG][@REVISION][:SPLIT]`` (by default ``train``), and their commit.

    A revision is resolved once and locked under its name. UsageError for a name of another form, and if the
    rows are not at hand and ``offline``; CmeError if the hub does not deliver them.
    """
    place, _, split = named.partition(":")
    place, at, revision = place.partition("@")
    path, _, config = place.rpartition("/") if place.count("/") == 2 else (place, "", "")
    if path.count("/") != 1 or not all(path.split("/")) or (at and not revision):
        raise UsageError(f"hub:{named}: write hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]")
    source = HubSource(lock_file=lock_file, offline=offline)
    return source.dataset_rows(path, config or None, split or "train", revision=revision or None)


def _cache() -> Path:
    """Return where ``datasets`` keeps what it fetched, images of a dataset among it."""
    import datasets

    return Path(datasets.config.HF_CACHE_HOME)


def _cached(path: str, name: str | None, split: str, commit: str) -> datasets.Dataset | None:
    """Return the split as ``datasets`` prepared it from exactly this commit; None if it did not.

    Its cache has one folder a dataset, configuration, version and commit, with the split in one Arrow file
    or in shards that say their number; it appears there whole or not at all.
    """
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *owner, dataset = path.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(dataset)]))
    folders = sorted(folder.glob(f"{name or '*'}/*/{commit}"))
    if len(folders) != 1:
        return None  # not there, or several configurations of which only the hub knows the default
    files = sorted(folders[0].glob(f"*-{split}.arrow")) or sorted(folders[0].glob(f"*-{split}-*-of-*.arrow"))
    if not files or (len(files) > 1 and not files[0].stem.endswith(f"-of-{len(files):05d}")):
        return None
    return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])


def _load(path: str, name: str | None, split: str, commit: str, kwargs: dict[str, Any]) -> datasets.Dataset:
    import datasets

    what = f"dataset {path}"
    table = from_hub(
        what,
        lambda: datasets.load_dataset(path, name, split=split, revision=commit, **kwargs),
        ValueError,
        RuntimeError,
        datasets.exceptions.DatasetsError,
    )
    if not all(commit in Path(file["filename"]).parts for file in table.cache_files):
        raise CmeError(f"{what}: the hub did not deliver commit {commit[:8]} (only another one is cached)")
    return table
