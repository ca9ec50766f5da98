"""The primary outcome of a recipe with a protocol, written as soon as its rows are done: the rest follows.

Its rows have the seeds that their spread asked for, and nothing that comes later changes them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cme_bench.experiments.reproduce.claims import check_claims, claims_json, claims_markdown
from cme_bench.experiments.reproduce.forest import write_forest
from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.registration import RECORD, Registration
from cme_bench.experiments.reproduce.results import write_tables
from cme_bench.experiments.reproduce.stages import STAGE
from cme_bench.util.collection import rarely_collected
from cme_bench.util.files import write_json, write_text

HEADLINE_FOLDER = "headline"


def write_headline(
    recipe: Recipe,
    folder: Folder,
    registration: Registration | None,
    published: Path | None,
    note: Callable[[str], None],
) -> None:
    """Write tables and claims of the headline's rows into ``headline``, unless they are there; copy them and
    what they rest on to ``published``."""
    out = folder.path / HEADLINE_FOLDER
    if not (out / "claims.json").is_file():
        said = "" if registration is None else registration.sentence()
        pair = recipe.of_rows(recipe.headline)
        with rarely_collected():  # a record for every item of every run
            for line in write_tables(pair, folder, out / "tables", said=said):
                note(f"{HEADLINE_FOLDER}/tables/{line}")
            claims = check_claims(pair, folder)
        for line in write_forest(pair, claims, out / "figures", said=said):
            note(f"{HEADLINE_FOLDER}/{line}")
        write_text(out / "claims.md", claims_markdown(pair, claims, said=said))
        write_json(out / "claims.json", claims_json(pair, claims, registration))
    if published is not None:
        shutil.copytree(out, published / HEADLINE_FOLDER, dirs_exist_ok=True)
        for name in (STAGE, RECORD):
            if (folder.path / name).is_file():
                shutil.copy2(folder.path / name, published / HEADLINE_FOLDER / name)
