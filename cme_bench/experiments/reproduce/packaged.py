"""The recipes that come with this package: in a checkout those of ``experiments/``, found by their name."""

from __future__ import annotations

from pathlib import Path

from cme_bench.util.errors import UsageError, did_you_mean


def recipes_folder() -> Path:
    """Return the folder of our recipes: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "data" / "recipes"
    return installed if installed.is_dir() else package.parent / "experiments"


def recipe_file(name: Path) -> Path:
    """Return the file of a recipe: a file, or the name of one of ours, such as ``smollm2``.

    Raises UsageError if there is neither.
    """
    if name.exists():
        return name
    ours = {file.stem: file for file in sorted(recipes_folder().glob("*.yaml"))}
    if found := ours.get(str(name)):
        return found
    known = ", ".join(ours)
    raise UsageError(f"recipe {name}: no such file{did_you_mean(str(name), ours)} (ours: {known})")
