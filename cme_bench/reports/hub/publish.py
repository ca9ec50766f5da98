"""An adapter, its card and its results as one folder, and that folder as a commit on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from cme_bench.models.adapter import hash_adapter
from cme_bench.models.hub_client import hub_errors
from cme_bench.models.records import CodeRecord
from cme_bench.reports.hub.adapter_card import MARK, AdapterFacts, adapter_card
from cme_bench.reports.hub.eval_results import FILE as EVAL_RESULTS
from cme_bench.reports.hub.eval_results import eval_results_yaml
from cme_bench.reports.runs import RunView
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.files import read_json, storing
from cme_bench.util.provenance import without_secrets

_WEIGHTS = ("adapter_model.safetensors",)
_JSON = ("adapter_config.json", "cme_training.json")
_OTHER = (
    "loss.csv",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_RESULTS = ("results.json", "summary.csv")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEMPLATE = "More Information Needed"
"""In the README that PEFT itself writes."""


def hub_files(run: RunView, repository: str, adapter: Path | None) -> dict[str, bytes | Path]:
    """Return what a repository ``owner/name`` gets, by path there: content, or a file of this machine.

    Without an adapter these are the results alone. Paths of this machine are cut to their last part.
    Raises UsageError if ``repository`` is no such name or the adapter's folder is none.
    """
    if not _REPOSITORY.fullmatch(repository) or "--" in repository or ".." in repository:
        raise UsageError(f"{repository}: a repository of the hub is named OWNER/NAME")
    files: dict[str, bytes | Path] = {EVAL_RESULTS: eval_results_yaml(run).encode()}
    for name in _RESULTS:
        content = run.folder / name
        files[f"results/{name}"] = _without_paths(content) if name.endswith(".json") else content
    if adapter is None:
        return files
    facts = AdapterFacts.read(adapter)
    check_same(run, adapter)
    files["README.md"] = adapter_card(run, facts, repository).encode()
    for name in _WEIGHTS:
        if not (adapter / name).is_file():
            raise UsageError(f"{adapter / name}: no such file; only safetensors are published")
        files[name] = adapter / name
    for name in _JSON:
        if (adapter / name).is_file():
            files[name] = _without_paths(adapter / name, facts.base if name == _JSON[0] else None)
    for name in _OTHER:
        if (adapter / name).is_file():
            files[name] = adapter / name
    return files


def check_same(run: RunView, adapter: Path) -> None:
    """Raise UsageError if the weights in ``adapter`` are not those that the run was made with."""
    record = run.run.adapter
    if record is None:
        raise UsageError(f"{run.folder}: its model had no adapter: leave --adapter out")
    code = record.code if isinstance(record.code, CodeRecord) else None
    task = record.task if isinstance(record.task, int) else None
    if record.hash != hash_adapter(adapter, code, task):
        raise UsageError(
            f"{adapter}: not the weights and config that {run.folder} was made with; run it again"
        )


def write_folder(files: Mapping[str, bytes | Path], folder: Path) -> None:
    """Write the files below ``folder``. UsageError if that would replace a README of somebody's own."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--folder {folder}: it is a file")
    readme = folder / "README.md"
    if "README.md" in files and readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        if MARK not in text and _TEMPLATE not in text:
            raise UsageError(f"{readme}: it is not ours, and would be replaced; name another folder")
    for name, content in files.items():
        place = folder / name
        with storing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes) or not place.exists() or not place.samefile(content):
                place.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def push(files: Mapping[str, bytes | Path], repository: str, *, private: bool, message: str) -> str:
    """Commit the files to a repository of models, made if need be; return the address of the commit.

    The token is the hub client's own (``HF_TOKEN`` or ``hf auth login``). Raises CmeError, one line without
    it, if the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in sorted(files.items())
    ]
    refusals: tuple[type[Exception], ...] = (*hub_errors(), ValueError)
    try:
        api.create_repo(repository, repo_type="model", private=private or None, exist_ok=True)
        done = api.create_commit(repository, operations, commit_message=message)
    except refusals as error:
        reason = without_secrets(" ".join(str(error).split())[:300] or type(error).__name__)
        raise CmeError(f"--push {repository}: the hub did not take it ({reason}); nothing is lost") from error
    return str(done.commit_url)


def _without_paths(file: Path, base: str | None = None) -> bytes:
    """Return a JSON file with the last part of every absolute path in it; ``base``: the base's name there."""
    content = _cut(read_json(file, kind="an adapter"))
    if base is not None:
        content["base_model_name_or_path"] = base
    return orjson.dumps(content, option=orjson.OPT_INDENT_2)


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_cut(each) for each in value]
    if isinstance(value, str) and value.startswith(("/", "~/")) and "\n" not in value:
        return Path(value).name
    return without_secrets(value) if isinstance(value, str) else value
