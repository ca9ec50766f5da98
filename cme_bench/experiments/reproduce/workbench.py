"""The work of each kind of job. The rows of the mixture and the base model are loaded once a process."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cme_bench.adapters.files import WEIGHTS_FILE
from cme_bench.experiments.efficiency.options import EfficiencyOptions
from cme_bench.experiments.options import RouterOptions
from cme_bench.experiments.reproduce.busiest import keep_busiest
from cme_bench.experiments.reproduce.jobs import TRAININGS, Folder, Job, all_jobs
from cme_bench.experiments.reproduce.kept import halve, is_kept
from cme_bench.experiments.reproduce.recipe import BASE, Recipe
from cme_bench.experiments.reproduce.state import made_of
from cme_bench.experiments.reproduce.training_files import training_files
from cme_bench.experiments.router import interaction_frame, load_frame, mean_by
from cme_bench.experiments.router_load import measure_router
from cme_bench.models.checkpoint import hash_checkpoint
from cme_bench.reports.engine_stats import phases_line
from cme_bench.reports.figures.router import write_router_figures
from cme_bench.reports.router_tables import write_router_tables
from cme_bench.runs.engine_factory import open_engines
from cme_bench.runs.engine_source import EngineSource
from cme_bench.runs.folder import read_run
from cme_bench.runs.options import AskOptions, ModelOptions
from cme_bench.runs.pack import pack_run
from cme_bench.runs.progress import Listener
from cme_bench.runs.questions import KeptQuestions
from cme_bench.runs.runner import ask
from cme_bench.tasks.open_source import open_source
from cme_bench.training.options import TrainOptions
from cme_bench.training.plan import ItemSet, load_sets
from cme_bench.training.shared import Shared
from cme_bench.training.sweep.sweep import sweep
from cme_bench.training.train import prepare, train
from cme_bench.training.validation import Validation, validations
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json, write_json
from cme_bench.util.phases import phase
from cme_bench.util.provenance import commit, hardware

GRID_SEED = 1_000
"""Seed of the trainings that try learning rates: no seed of a row."""
SUBJECT_TASK = "cme_mmlu_ll"


class Workbench:
    """Does the jobs of a recipe. Calling it with jobs gives what their markers record: with several, if they
    are trainings of one kind. ``note``: is told where the seconds of trainings together went."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Folder,
        *,
        offline: bool = False,
        training: Listener | None = None,
        running: Listener | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.recipe, self.folder, self.offline, self._note = recipe, folder, offline, note
        self._shared, self._ahead = Shared(), set[tuple[int, int]]()
        self._training, self._running = training or Listener(), running or Listener()
        self._asked_before = KeptQuestions()
        self._trains = False
        self._done: dict[str, Callable[[Job], dict[str, Any]]] = {
            "evaluate": self._evaluate,
            "router": self._router,
            "efficiency": self._efficiency,
        }

    def __call__(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        import torch

        self._drop_weights()
        if self._trains:
            gc.collect()  # trainers hold their models in cycles
        self._trains = jobs[0].kind in TRAININGS
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # other processes may share the card
        outcomes = self._train(jobs) if self._trains else [self._done[job.kind](job) for job in jobs]
        where = {"hardware": hardware(cuda=torch.cuda.is_available()), "commit": commit()}
        return [outcome | where for outcome in outcomes]

    # ---- trainings

    @functools.cached_property
    def sets(self) -> Sequence[ItemSet]:
        """The rows of the mixture; loading them takes longer than a short training."""
        options = self.training_options(next(iter(self.recipe.rows)), Path(), rate=1.0, steps=1, seed=0)
        source = None
        if self.recipe.training_tasks is None:
            source = open_source(self.recipe.data, offline=self.offline)
        return load_sets(options, source, note=lambda _: None)

    @functools.cached_property
    def training_data(self) -> str | tuple[str, ...]:
        """Return the trainings' ``--data``: the recipe's data, or the files of its training tasks."""
        if self.recipe.training_tasks is None:
            return self.recipe.data
        files = training_files(
            self.recipe.training_tasks,
            self.recipe.data,
            self.folder.path / "training_rows",
            limit=self.recipe.training_limit,
            offline=self.offline,
        )
        return tuple(f"rows={file}" for file in files)

    def training_options(self, row: str, out: Path, *, rate: float, steps: int, seed: int) -> TrainOptions:
        """Return the options of one training of a row."""
        fields = {**self.recipe.training, **self.recipe.rows[row].training}
        return TrainOptions(
            model=self.recipe.model,
            out=out,
            data=self.training_data,
            offline=self.offline,
            dtype=self.recipe.dtype,
            **{**fields, "learning_rate": rate, "max_steps": steps, "seed": seed},
        )

    def trained(self, *asked: TrainOptions) -> list[dict[str, Any]]:
        """Train, or go on, all at once; return the trainings' records."""
        before = phase.seconds()
        if len(asked) == 1:
            train(asked[0], self._training, sets=self.sets)
        else:
            states = self.folder.path / "jobs" / f".{asked[0].out.parent.name}-{asked[0].out.name}.sweep.pt"
            sweep(asked, self._training, sets=lambda: self.sets, states=states, shared=self._shared)
            self._note(f"{len(asked)} trainings, {phases_line(*phase.since(before))}")
        return [_outcome(options.out) for options in asked]

    def draw_ahead(self, waiting: Sequence[Job]) -> bool:
        """Draw and tokenise the rows of a seed that waits to be trained; return whether there was one left.

        Of so many seeds at most as are trained together.
        """
        for job in waiting if len(self._ahead) < self.recipe.together else ():
            steps = self.recipe.steps_of(job.row) if job.kind == "train" else 0
            if not steps or (steps, job.seed) in self._ahead:
                continue
            self._ahead.add((steps, job.seed))
            out, rate = self.folder.path / "jobs" / ".ahead", self.recipe.learning_rates[0]
            asked = self.training_options(job.row, out, rate=rate, steps=steps, seed=job.seed)
            prepare(asked, self._training, sets=self.sets, shared=self._shared)
            return True
        return False

    def _train(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        asked = [self._asked(job) for job in jobs]
        outcomes = self.trained(*asked)
        trials = [options for job, options in zip(jobs, asked, strict=True) if job.kind == "grid"]
        held = validations(((options.out, options) for options in trials), self.sets)
        return [
            outcome
            | {"learning_rate": options.learning_rate}
            | (_held_out(next(held)) if job.kind == "grid" else self._kept(job, options))
            for job, options, outcome in zip(jobs, asked, outcomes, strict=True)
        ]

    def _asked(self, job: Job) -> TrainOptions:
        """Return the options of a training."""
        if job.kind == "grid":
            assert job.rate is not None
            out, rate = self.folder.grid(job.row, job.rate), job.rate
            steps, seed = self.recipe.grid_steps, GRID_SEED
        else:
            out, rate = self.folder.adapter(job.row, job.seed), self.learning_rate(job.row)
            steps, seed = self.recipe.steps_of(job.row), job.seed
        return self.training_options(job.row, out, rate=rate, steps=steps, seed=seed)

    def _kept(self, job: Job, options: TrainOptions) -> dict[str, Any]:
        """Return what is recorded of a trained row's folder."""
        if is_kept(self.recipe, job.row, job.seed):
            halve(options.out)
        return {"sha256": hash_checkpoint(options.out)}

    def learning_rate(self, row: str) -> float:
        """Return the tried rate of lowest validation loss, for the row or the one that it is tuned as."""
        rates = self.recipe.learning_rates
        if len(rates) == 1:
            return rates[0]
        tuned = self.recipe.rows[row].tuned_as
        losses = {
            rate: self.folder.outcome(Job("grid", tuned, rate=rate).name)["validation_loss"] for rate in rates
        }
        return min(losses, key=lambda rate: (losses[rate], rate))

    # ---- evaluations

    @functools.cached_property
    def engines(self) -> EngineSource:
        """The engines of the base model, which all evaluations of this process share."""
        options = ModelOptions(
            model=self.recipe.model,
            engine=self.recipe.engine,
            dtype=self.recipe.evaluation_dtype or self.recipe.dtype,
            offline=self.offline,
        )
        return open_engines(options, self._running.note)

    def questions(self, row: str, seed: int) -> AskOptions:
        """Return what the run of one row and seed asks."""
        return AskOptions(
            tasks=self.recipe.tasks_of(row),
            adapters=() if row == BASE else (str(self.folder.adapter(row, seed)),),
            data=self.recipe.data,
            limit=self.recipe.limit,
            prompt_format=self.recipe.training.get("prompt_format", "teamlora"),
            out=self.folder.run(row, seed),
            offline=self.offline,
        )

    def _evaluate(self, job: Job) -> dict[str, Any]:
        if job.row != BASE and (whole := self.recipe.rows[job.row].busiest_of):
            self._keep_busiest(whole, job)
        (out,) = ask(self.engines, self.questions(job.row, job.seed), self._running, kept=self._asked_before)
        record = read_run(out)
        if self.recipe.carry_scores:
            pack_run(out, self.folder.packed(job.row, job.seed))
        return {"items": sum(task.n for task in record.tasks.values()), "run_seconds": record.seconds}

    def _keep_busiest(self, whole: str, job: Job) -> None:
        """Make the adapter of a row of busiest experts, by the router's load on the recipe's tasks."""
        asked = RouterOptions(
            self.folder.adapter(whole, job.seed),
            model=self.recipe.model,
            tasks=self.recipe.tasks,
            data=self.recipe.data,
            limit=self.recipe.router_limit,
            prompt_format=self.recipe.training.get("prompt_format", "teamlora"),
            dtype=self.recipe.evaluation_dtype or self.recipe.dtype,
            offline=self.offline,
        )
        keep_busiest(asked, self.folder.adapter(job.row, job.seed), self._running)

    def _router(self, job: Job) -> dict[str, Any]:
        """Measure the router on the prompts of the row's run: by domain, and by subject where MMLU was
        asked."""
        source = self.folder.run(job.row)
        by_domain = RouterOptions(source, limit=self.recipe.router_limit, offline=self.offline)
        titles = [self._measured(by_domain, self.folder.router(job.row, "domain"), "domain")]
        if SUBJECT_TASK in read_run(source).tasks:
            subjects = replace(by_domain, tasks=SUBJECT_TASK, by="subject", limit=self.recipe.subject_limit)
            titles.append(self._measured(subjects, self.folder.router(job.row, "subject"), "group"))
        return {"measured": titles}

    def _measured(self, options: RouterOptions, out: Path, label: str) -> str:
        router = measure_router(options, self._running)
        load, interaction = load_frame(router.slices), interaction_frame(router.interaction)
        out.mkdir(parents=True, exist_ok=True)
        means = mean_by(load, [label, "layer", "block", "module"])
        write_router_tables(load, means, interaction, label, out)
        write_router_figures(load, interaction, router.title, out)
        return router.title

    # ---- speed

    def _efficiency(self, job: Job) -> dict[str, Any]:
        from cme_bench.experiments.efficiency.measure import measure

        (shape,) = (shape for shape in self.recipe.efficiency if shape.name == job.row)
        settings = {"model": shape.name, **shape.settings, "parts": (job.part,), "offline": self.offline}
        try:
            options = EfficiencyOptions(**settings)
        except TypeError as error:
            raise UsageError(f"{self.recipe.source}: efficiency of {job.row}: {error}") from error
        file = self.folder.efficiency(job.row, job.part)
        file.parent.mkdir(exist_ok=True)
        write_json(file, measure(options, self._running.note))
        return {}

    # ---- room

    def _drop_weights(self) -> None:
        """Delete the weights of finished grids and, if the recipe says so, of adapters whose evaluation and
        router are done."""
        jobs = all_jobs(self.recipe)
        for job in (job for job in jobs if job.kind == "grid" and self.folder.is_done(job.name)):
            assert job.rate is not None
            (self.folder.grid(job.row, job.rate) / WEIGHTS_FILE).unlink(missing_ok=True)
        if self.recipe.keep_weights:
            return
        made = {row.name for row in self.recipe.rows.values() if row.busiest_of}
        for job in jobs:
            if job.kind != "train" and not (job.kind == "evaluate" and job.row in made):
                continue
            users = [
                other.name
                for other in jobs
                if job.row in (other.row, made_of(self.recipe, other.row))
                and (other.kind, other.seed) in (("evaluate", job.seed), ("router", job.seed))
            ]
            if all(map(self.folder.is_done, users)) and not is_kept(self.recipe, job.row, job.seed):
                (self.folder.adapter(job.row, job.seed) / WEIGHTS_FILE).unlink(missing_ok=True)

    def close(self) -> None:
        """Free what computes, and the room of weights that nothing needs any more."""
        self._drop_weights()
        if "engines" in self.__dict__:
            self.engines.close()


def _held_out(found: Validation) -> dict[str, Any]:
    """Return what is recorded of a learning rate's trial: what the choice rests on."""
    return {
        "validation_loss": found.loss,
        "validation_items": found.items,
        "validation_target_tokens": found.target_tokens,
    }


def _outcome(adapter: Path) -> dict[str, Any]:
    """Return what a marker keeps of a finished training's record."""
    content = read_json(adapter / "cme_training.json")
    kept = ("steps", "tokens_trained", "target_tokens_trained", "final_loss", "together")
    return {k: content[k] for k in kept if k in content} | {"training_seconds": content["seconds"]}
