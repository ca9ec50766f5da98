"""Tasks without their images: the same questions as text alone, to see what guessing from texts scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cme_bench.images.image import MARK
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import UsageError

ENDING = "_blind"
"""After the name of a task, suite or domain."""
_TEXTS = ("doc_to_text", "description")


def blind(spec: TaskSpec) -> TaskSpec:
    """Return the task without its images, called ``NAME_blind`` in a domain of its own.

    UsageError if it shows none, or if code writes its text, which may hold their marks.
    """
    if spec.config.get("doc_to_image") is None:
        raise UsageError(f"{spec.name}{ENDING}: task {spec.name} shows no images")
    config: dict[str, Any] = {key: value for key, value in spec.config.items() if key != "doc_to_image"}
    for key in _TEXTS:
        value = config.get(key)
        if value is not None and not isinstance(value, str):
            raise UsageError(
                f"{spec.line(key)}: code writes {key}, so {spec.name}{ENDING} cannot be made of it"
            )
        if value is not None:
            config[key] = value.replace(f"{MARK}\n", "").replace(f"{MARK} ", "").replace(MARK, "")
    config["task"] = f"{spec.name}{ENDING}"
    config["tag"] = [f"{tag}{ENDING}" for tag in spec.tags]
    config["metadata"] = {
        **spec.metadata,
        "domain": f"{spec.domain}{ENDING}",
        "dataset": spec.dataset,
        "folder": spec.folder,
        "blind": True,
    }
    return replace(spec, name=config["task"], config=config)
