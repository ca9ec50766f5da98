"""Rows from the Hugging Face hub, at a commit that is resolved once, written down and used from then on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cme_bench.errors import CmeError, UsageError
from cme_bench.hub_lock import default_lock_file, read_lock, write_lock
from cme_bench.tasks.sources import DataSource, Rows
from cme_bench.tasks.spec import TaskSpec


class HubSource(DataSource):
    """Datasets of the hub (``HF_ENDPOINT`` is honoured).

    With ``offline`` nothing is asked of the network: the dataset must be in the lock file and in the local
    cache.
    """

    name = "hub"

    def __init__(self, *, lock_file: Path | None = None, offline: bool = False) -> None:
        self.lock_file = lock_file or default_lock_file()
        self.offline = offline

    def rows(self, spec: TaskSpec, split: str) -> Rows:
        import datasets

        path, name = str(spec.config["dataset_path"]), spec.config.get("dataset_name")
        commit = self._commit(path)
        kwargs = dict(spec.config.get("dataset_kwargs") or {})
        table = _from_hub(
            f"dataset {path}",
            lambda: datasets.load_dataset(
                path,
                name,
                split=split,
                revision=commit,
                download_config=datasets.DownloadConfig(local_files_only=self.offline),
                **kwargs,
            ),
        )
        return Rows(table, f"{path}@{commit[:8]}/{split}")

    def dataset_keys(self, spec: TaskSpec, splits: Sequence[str]) -> dict[str, Any]:
        kept = {key: spec.config[key] for key in ("dataset_path", "dataset_name") if key in spec.config}
        kwargs = dict(spec.config.get("dataset_kwargs") or {}) | {"revision": self.revision(spec)}
        return kept | {"dataset_kwargs": kwargs}

    def revision(self, spec: TaskSpec) -> str | None:
        return self._commit(str(spec.config["dataset_path"]))

    def _commit(self, path: str) -> str:
        if commit := read_lock(self.lock_file).get(f"datasets/{path}"):
            return commit
        if self.offline:
            raise UsageError(f"dataset {path} is not in {self.lock_file}; fetch it once without --offline")
        from huggingface_hub import HfApi

        info = _from_hub(f"dataset {path}", lambda: HfApi().dataset_info(path))
        return write_lock(self.lock_file, f"datasets/{path}", str(info.sha))


def _from_hub(what: str, ask: Callable[[], Any]) -> Any:
    """``ask()``, with the hub's and the network's errors as one line."""
    import datasets
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return ask()
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise CmeError(f"{what}: the hub did not deliver it ({reason})") from err
