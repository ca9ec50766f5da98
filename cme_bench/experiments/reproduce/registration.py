"""Pre-registration: the part of a recipe that is fixed before the first score, its hash, and who may be
called pre-registered.

``register`` writes a file beside the recipe, which is then committed. A run is pre-registered if the recipe
still says what the file says, the file is committed unchanged, and the folder had no finished evaluation when
that was first found so.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from cme_bench.experiments.reproduce.jobs import Folder
from cme_bench.experiments.reproduce.recipe import Recipe
from cme_bench.experiments.reproduce.registered_rows import row_files, suite
from cme_bench.tasks.identity import config_hash
from cme_bench.tasks.spec import TaskSpec
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json
from cme_bench.util.paths import make_out

FOLDER, RECORD = "registrations", "registration.json"
_FREE = frozenset({"save_every", "log_every", "checkpointing", "report_to", "report_project"})
"""Arguments of trainings that no weight depends on."""


@dataclass(frozen=True, slots=True)
class Registration:
    """Whether a run counts as pre-registered. ``sha256``: of the recipe's registered part as it is now;
    ``commit``: of the file; ``problem``: why the run does not count, empty if it does."""

    sha256: str
    commit: str = ""
    problem: str = ""

    @property
    def holds(self) -> bool:
        return not self.problem

    def sentence(self) -> str:
        """Return what every table says of it."""
        if self.holds:
            return f"Pre-registered: sha256 {self.sha256[:16]}, registered in commit {self.commit}."
        return f"NOT pre-registered: {self.problem} (sha256 of the recipe now: {self.sha256[:16]})."

    def plain(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        known = {"pre_registered": self.holds, "sha256": self.sha256, "commit": self.commit}
        return known | {"problem": self.problem}


def registered_part(recipe: Recipe) -> dict[str, Any]:
    """Return everything that scores, verdicts and the number of seeds depend on, as JSON values: the recipe
    and its protocol, hashes of the tasks' files and of the files of rows.

    How the work is spread over processes, machines and calls does not count, nor do titles and notes; nor
    does the engine, since in one type all give the same answers but for its noise.
    """
    assert recipe.protocol is not None
    tasks = suite().select(recipe.tasks)
    form, asked = recipe.protocol.others_form, recipe.side_tasks or recipe.tasks
    if form not in {_form(spec) for spec in suite().select(asked) if spec.in_cme}:
        raise UsageError(f"{recipe.source}: protocol: others_form {form}: the tasks {asked} have none")
    if extra := sorted({s.name for s in suite().select(asked)} - {s.name for s in tasks}):
        raise UsageError(f"{recipe.source}: side_tasks: the headline is not asked {', '.join(extra)}")
    fixed = {key: value for key, value in recipe.identity().items() if key != "engine"}
    return fixed | {
        "training": {key: v for key, v in recipe.training.items() if key not in _FREE},
        "evaluation_dtype": recipe.evaluation_dtype or recipe.dtype,
        "main": list(recipe.main),
        "ablation": dict(recipe.ablation),
        "experts": {str(k): name for k, name in recipe.experts.items()},
        "data_scale": {str(k): name for k, name in recipe.data_scale.items()},
        "protocol": recipe.protocol.plain(),
        "task_hashes": {spec.name: config_hash(spec.config) for spec in tasks},
        "rows_of": row_files(recipe, tasks),
    }


def _form(spec: TaskSpec) -> str:
    return "generated" if spec.generated else "likelihood"


def hash_of(part: Mapping[str, Any]) -> str:
    """Return the sha256 of a registered part: of its JSON with sorted keys and no spaces."""
    return hashlib.sha256(orjson.dumps(part, option=orjson.OPT_SORT_KEYS)).hexdigest()


def registration_file(recipe: Recipe) -> Path:
    """Return where a recipe's scale is registered: beside the recipe's file."""
    return recipe.source.parent / FOLDER / f"{recipe.source.stem}-{recipe.scale}.json"


def register(recipe: Recipe) -> Path:
    """Write the registration of a recipe; return its file, which is to be committed.

    UsageError if the scale has no protocol, or is registered already as something else.
    """
    if recipe.protocol is None:
        raise UsageError(f"{recipe.source}: scale {recipe.scale} has no protocol, so nothing to register")
    part, file = registered_part(recipe), registration_file(recipe)
    if file.is_file():
        held = read_json(file)
        if held.get("sha256") == hash_of(part):
            return file
        raise UsageError(
            f"{file}: registered already, and {_difference(held, part)}; a changed plan is another scale, "
            "with a name of its own"
        )
    make_out(file.parent)
    content = {"recipe": recipe.source.name, "scale": recipe.scale, "sha256": hash_of(part)}
    write_json(file, content | {"registered": part})
    return file


def check_registration(recipe: Recipe, folder: Folder, *, scored: bool) -> Registration | None:
    """Return whether a run in ``folder`` counts as pre-registered; None for a scale without a protocol.

    What is found first is kept in the folder, and a folder that did not count never does. ``scored``: whether
    an evaluation is finished there.
    """
    if recipe.protocol is None:
        return None
    part = registered_part(recipe)
    sha256, record = hash_of(part), folder.path / RECORD
    if not record.is_file():
        found = _found(recipe, part, sha256)
        if scored and found.holds:
            found = Registration(sha256, problem="scores were there before the registration was checked")
        write_json(record, found.plain())
        return found
    held = read_json(record)
    if missing := {"pre_registered", "sha256", "commit", "problem"} - held.keys():
        raise UsageError(f"{record}: {', '.join(sorted(missing))} missing: it was edited or cut")
    if held["pre_registered"] and held["sha256"] != sha256:
        found = Registration(sha256, problem="the recipe changed after the run began")
        write_json(record, found.plain())
        return found
    return Registration(sha256, str(held["commit"]), str(held["problem"]))


def _found(recipe: Recipe, part: Mapping[str, Any], sha256: str) -> Registration:
    file = registration_file(recipe)
    if not file.is_file():
        return Registration(sha256, problem=f"{FOLDER}/{file.name} is not there: register the scale first")
    held = read_json(file)
    if not isinstance(held.get("registered"), Mapping) or held.get("sha256") != hash_of(held["registered"]):
        return Registration(sha256, problem=f"{file.name} was edited: its hash is not that of what it says")
    if held["sha256"] != sha256:
        return Registration(sha256, problem=f"since the registration {_difference(held, part)}")
    commit, problem = _commit_of(file)
    return Registration(sha256, commit, problem)


def _difference(held: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """Say what differs between a registration and the recipe as it is."""
    given = held.get("registered")
    before: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    now: Mapping[str, Any] = orjson.loads(orjson.dumps(part))
    names = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f"{', '.join(names) or 'nothing'} changed"


def _commit_of(file: Path) -> tuple[str, str]:
    """Return the commit that last changed the file, and why it does not count, if it does not.

    For source that travels without its history the variable CME_BENCH_COMMIT names the commit.
    """
    try:
        inside = _git(file, "rev-parse", "--is-inside-work-tree") == "true"
    except (OSError, subprocess.CalledProcessError):
        inside = False
    if not inside:
        told = os.environ.get("CME_BENCH_COMMIT", "")
        return told, "" if told else f"there is no history that {file.name} is committed in"
    if not _git(file, "ls-files", "--", file.name) or _git(file, "status", "--porcelain", "--", file.name):
        return "", f"{FOLDER}/{file.name} is not committed as it is"
    return _git(file, "log", "-1", "--format=%h", "--abbrev=12", "--", file.name), ""


def _git(file: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=file.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()
