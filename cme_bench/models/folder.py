"""A model folder: what it must hold, and what of it is the model's own where an adapter lies beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from cme_bench.models.weights import ADAPTER_CONFIG, adapter_files, weight_files
from cme_bench.util.errors import UsageError


def check_model_folder(path: Path) -> None:
    """Raise UsageError unless ``path`` has a readable config.json and all of its safetensors weights."""
    config = path / "config.json"
    if not config.is_file():
        raise UsageError(_no_config(path))
    try:
        orjson.loads(config.read_bytes())
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{config}: broken JSON ({error})") from error
    if _only_adapter(path):
        raise UsageError(_is_adapter(path))
    weight_files(path)


def adapter_note(path: Path) -> str | None:
    """Return what to tell a user of a model folder in which an adapter lies too; None if there is none."""
    if not (path / ADAPTER_CONFIG).is_file():
        return None
    return (
        f"{path}: an adapter lies beside the model's weights and is not applied; if it is not merged into "
        f"them, add --adapter {path}"
    )


def own_entries(path: Path) -> list[Path]:
    """Return what a model folder holds, without an adapter's files and safetensors files that are not its
    weights."""
    weights = weight_files(path)
    foreign = set(adapter_files(path)) | (set(path.glob("*.safetensors")) - set(weights))
    return sorted(entry for entry in path.iterdir() if entry not in foreign)


@contextmanager
def only_the_model(path: Path) -> Iterator[Path]:
    """Give a folder with the model alone: ``path``, or links to its own files if there are others.

    transformers applies an adapter that it finds in a model's folder, and vLLM reads all safetensors files.
    """
    links = _links(path)
    try:
        yield path if links is None else Path(links.name)
    finally:
        if links is not None:
            links.cleanup()


def only_the_model_kept(path: Path) -> Path:
    """Return what ``only_the_model`` gives. It stays until the process ends, for weights left on disk."""
    links = _links(path)
    if links is None:
        return path
    _KEPT.append(links)
    return Path(links.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _links(path: Path) -> tempfile.TemporaryDirectory[str] | None:
    """Return a folder of links to a model's own files; None if there are no others beside them."""
    own = own_entries(path)
    if len(own) == sum(1 for _ in path.iterdir()):
        return None
    links = tempfile.TemporaryDirectory(prefix="cme-bench-model-")
    for entry in own:
        (Path(links.name) / entry.name).symlink_to(entry.resolve())
    return links


def _only_adapter(path: Path) -> bool:
    """Return whether the only weights here are an adapter's. Trainers save the base's config.json beside
    it."""
    ours = set(adapter_files(path))
    return bool(ours) and not set(path.glob("*.safetensors")) - ours and not any(path.glob("*.index.json"))


def _no_config(path: Path) -> str:
    if (path / ADAPTER_CONFIG).is_file():
        return _is_adapter(path)
    inner = sorted(entry.parent.name for entry in path.glob("*/config.json"))
    hint = f"; did you mean {path / inner[-1]}?" if inner else ""
    return f"{path}: no config.json, so this is not a model folder{hint}"


def _is_adapter(path: Path) -> str:
    try:
        config = orjson.loads((path / ADAPTER_CONFIG).read_bytes())
        base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    except orjson.JSONDecodeError:
        base = None
    return f"{path}: an adapter, not a model; give its base as the model: {base or 'MODEL'} --adapter {path}"
