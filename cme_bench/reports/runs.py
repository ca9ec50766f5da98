"""Run folders as the reports see them, and whether they may stand side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cme_bench.runs.folder import read_both, run_file
from cme_bench.runs.packed import scores_file
from cme_bench.runs.records import Results, RunRecord
from cme_bench.runs.store import samples_file
from cme_bench.scoring.scales import Measure
from cme_bench.util.errors import UsageError
from cme_bench.util.files import read_json

ALLOW = "--allow-mixed compares anyway, with a note for each difference"
_NAMED = 3
"""So many task names stand in a message."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One run folder as reports read it: ``run`` is run.json, ``results`` our part of results.json.

    ``members``: the runs of several seeds that were pooled into it, if it is no single run; ``notes``: what a
    reader of a table must know of the pooling.
    """

    folder: Path
    run: RunRecord
    results: Results
    members: tuple[RunView, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The model's name, with its quantisation and the adapter's name where there are such."""
        base, adapter = self.run.model.label, self.run.adapter
        return f"{base} + {adapter.name}" if adapter else base

    @property
    def method(self) -> str:
        """How the model was adapted; "base" if it was not."""
        return self.run.adapter.method if self.run.adapter else "base"

    @property
    def finished(self) -> bool:
        return self.run.finished

    @property
    def has_records(self) -> bool:
        """Whether the scores of the items of every finished task were kept."""
        if self.members:
            return all(member.has_records for member in self.members)
        if scores_file(self.folder).is_file():
            return True
        return all(samples_file(self.folder, task).is_file() for task in self.results.tasks)

    @property
    def logits(self) -> str:
        """The type to which its logits are exact: float32, or where they were rounded the model's."""
        return self.run.logits

    def limits(self) -> set[int]:
        """Return the --limit values of its tasks that left rows out."""
        return {t.n for t in self.run.tasks.values() if t.n < t.rows}

    def measure(self, form: str) -> Measure:
        """Return how the scores of one form are read: their scale and direction."""
        return self.results.forms[form].measure.read()

    def tasks(self, form: str) -> list[str]:
        """Return its finished tasks of one form."""
        return [name for name, result in self.results.tasks.items() if result.form == form]

    @property
    def shots(self) -> list[int]:
        """The numbers of exemplars that occur in its tasks, ascending."""
        return sorted({t.shots for t in self.run.tasks.values()})


def open_run(folder: Path) -> RunView:
    """Read a run folder. UsageError if it is none, or has no finished task yet."""
    if not (folder / "results.json").exists():
        read_json(run_file(folder))
        raise UsageError(f"{folder}: no task of this run is finished yet")
    return RunView(folder, *read_both(folder))


def labels(runs: Sequence[RunView]) -> list[str]:
    """Return a name for each run: its model's, with the number of shots and the folder where names would
    repeat."""
    names = [run.label for run in runs]
    shots = [",".join(str(s) for s in run.shots) + "-shot" for run in runs]
    if len(set(shots)) > 1:
        names = [
            f"{name}, {shot}" if names.count(name) > 1 else name
            for name, shot in zip(names, shots, strict=True)
        ]
    return [
        f"{name} ({run.folder.name})" if names.count(name) > 1 else name
        for name, run in zip(names, runs, strict=True)
    ]


def differences(runs: Sequence[RunView]) -> list[str]:
    """Return why the runs are not alike, one sentence each: engines, dtypes, quantisations, logits, hidden
    states, data, tasks, item sets, formats."""
    return list(_differences(runs))


def check_alike(runs: Sequence[RunView], *, allow_mixed: bool) -> list[str]:
    """Return :func:`differences`; UsageError if there are any and they are not allowed."""
    mixed = differences(runs) if len(runs) > 1 else []
    if mixed and not allow_mixed:
        raise UsageError(f"the runs cannot be compared: {'; '.join(mixed)} ({ALLOW})")
    return mixed


def _differences(runs: Sequence[RunView]) -> Iterator[str]:
    for part, name in (("engine", "engines"), ("dtype", "dtypes"), ("data", "data sources")):
        values = sorted({str(getattr(r.run.identity, part)) for r in runs})
        if len(values) > 1:
            yield f"{name} differ: {', '.join(values)}"
    kinds = sorted({kind or "none" for kind in _quantisations(runs)})
    if len(kinds) > 1:
        yield f"quantisations of the base differ: {', '.join(kinds)}"
    yield from _roundings(runs)
    shared = set.intersection(*(set(r.results.tasks) for r in runs))
    every = set.union(*(set(r.results.tasks) for r in runs))
    if shared != every:
        yield f"tasks differ: {some(sorted(every - shared))} not in all runs"
    planned = [{task: run.run.tasks[task] for task in sorted(shared)} for run in runs]
    for parts, name in (
        (("n", "rows", "limit"), "item sets"),
        (("prompt_format",), "prompt formats"),
        (("shots",), "shots"),
        (("repeats",), "repeats"),
        (("thinking_budget",), "thoughts"),
        (("hash",), "task versions"),
    ):
        tasks = [
            t for t in sorted(shared) if len({tuple(getattr(p[t], k) for k in parts) for p in planned}) > 1
        ]
        if tasks:
            yield f"{name} differ in {some(tasks)}"
    if len({run.run.identity.model for run in runs}) == 1:
        begin = sorted({_beginning(run) for run in runs})
        if len(begin) > 1:
            yield f"the special tokens before a prompt differ: {', '.join(begin)}"
    if len({(run.run.identity.model, run.run.identity.adapter) for run in runs}) == 1:
        modes = sorted({_thinking(run, shared) for run in runs})
        if len(modes) > 1:
            yield f"thinking differs: {', '.join(modes)}"
    seeds = sorted({str(run.run.seed) for run in runs})
    if len(seeds) > 1 and any(run.shots != [0] for run in runs):
        yield f"seeds of few-shot sampling differ: {', '.join(seeds)}"


def _roundings(runs: Sequence[RunView]) -> Iterator[str]:
    types = sorted({run.logits for run in runs})
    if len(types) > 1:
        yield f"types of the logits differ: {', '.join(types)}"
    types = sorted({run.run.states for run in runs})
    if len(types) > 1 and len({run.run.identity.dtype for run in runs}) == 1:
        yield f"types of the hidden states differ: {', '.join(types)}"


def _quantisations(runs: Sequence[RunView]) -> Iterator[str | None]:
    """Yield how the base of each run is quantised. An older run does not say so, one of the same model
    does."""
    models = [(run.run.identity.model, run.run.identity.quantised) for run in runs]
    known = {
        model: run.run.model.quantisation
        for model, run in zip(models, runs, strict=True)
        if run.run.model.quantisation
    }
    for model, dequantised in zip(models, (_dequantised(run) for run in runs), strict=True):
        yield f"{known.get(model)}, dequantised" if dequantised else known.get(model)


def _dequantised(run: RunView) -> bool:
    return run.run.identity.quantised not in {None, run.run.model.quantisation}


def _beginning(run: RunView) -> str:
    """Return the beginning of a run's prompts. Runs of before ``--bos`` took what the tokenizer adds."""
    bos = run.run.bos
    if bos is None or bos.prefix == bos.own:
        return "the tokenizer's own"
    return f"ids {bos.prefix}" if bos.prefix else "none"


def _thinking(run: RunView, tasks: Iterable[str]) -> str:
    """Return whether a run's model thought before generated answers. Earlier versions did not say."""
    modes = {run.run.tasks[t].thinking or "not told" for t in tasks if run.results.tasks[t].form in _TEXTS}
    return " or ".join(sorted(modes)) or "none"


_TEXTS = ("generated", "other generated")


def some(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def provenance_notes(runs: Sequence[RunView], names: Sequence[str]) -> Iterator[str]:
    """Yield one line a run: model and adapter hashes, engine, dtype, tasks, versions, commit."""
    for run, name in zip(runs, names, strict=True):
        identity, versions = run.run.identity, run.run.versions
        members = run.members or (run,)
        adapters = [member.run.identity.adapter[:8] for member in members]
        commits = dict.fromkeys(member.run.commit for member in members if member.run.commit)
        parts = [
            f"model {identity.model[:8]}",
            *([] if adapters == ["none"] else [f"adapter {' '.join(adapters)}"]),
            f"{identity.engine} {described_dtype(run.run)}"
            + ("" if identity.dtype == "float32" else f" (logits {run.logits}, states {run.run.states})"),
            *_answering(run),
            f"tasks {tasks_hash(run)}",
            *(f"{p} {versions[p]}" for p in _PRINTED_VERSIONS if p in versions),
            *([f"commit {' '.join(commits)}"] if commits else []),
        ]
        yield f"{name}: {', '.join(parts)}"


def _answering(run: RunView) -> Iterator[str]:
    """Yield how a run's answers came about where that is not as ever: thoughts, samples, repeats, lengths."""
    tasks = [run.run.tasks[name] for name in run.results.tasks]
    thinking = [
        f"{t.thinking}, at most {t.thinking_budget} tokens" if t.thinking_budget is not None else t.thinking
        for t in tasks
        if t.thinking is not None
    ]
    sampling = [
        "".join(f" {key} {value:g}" for key, value in t.sampling.items() if (key, value) not in _IDLE)
        for t in tasks
        if t.sampling is not None
    ]
    repeats = [str(t.repeats) for t in tasks if t.repeats > 1]
    lengths = [str(t.overrides["max_new_tokens"]) for t in tasks if "max_new_tokens" in t.overrides]
    for name, values in (
        ("thinking ", thinking),
        ("sampled at", sampling),
        ("repeats ", repeats),
        ("max new tokens ", lengths),
    ):
        if values:
            yield name + " or ".join(dict.fromkeys(values))


def described_dtype(run: RunRecord) -> str:
    """Return the type that a run computed in, and how its base is quantised if it is."""
    kind = run.model.quantisation or None
    how = f", {run.identity.quantised}" if run.identity.quantised not in (None, kind) else ""
    return run.identity.dtype if kind is None else f"{run.identity.dtype} on {kind}{how}"


_IDLE = (("top_p", 1.0), ("top_k", 0))
_PRINTED_VERSIONS = ("cme-bench", "lm-eval", "transformers", "torch", "bitsandbytes")


def tasks_hash(run: RunView) -> str:
    """Return one hash for all finished tasks: the first 8 digits of sha256 over their hashes in name
    order."""
    import hashlib

    tasks = sorted((name, t.hash) for name, t in run.results.tasks.items())
    return hashlib.sha256(repr(tasks).encode()).hexdigest()[:8]


def watermarks(runs: Sequence[RunView]) -> Iterator[str]:
    """Yield the reasons to doubt a number: mini items, limits, unfinished runs, scores that are no
    numbers."""
    if any(run.run.identity.data == "mini" for run in runs):
        yield "LIMITED: 'mini' items are a smoke test written for this project, not a measurement."
    if limits := sorted(set().union(*(run.limits() for run in runs))):
        yield f"LIMITED: only {', '.join(str(n) for n in limits)} items of some tasks (a fixed shuffle)."
    for run in runs:
        if not run.finished:
            yield f"UNFINISHED: {run.folder}"
    for run in runs:
        if unscored := run.results.unscored:
            yield (
                f"NO SCORE: in {run.folder} the score of {some(unscored)} is no finite number; a mean that "
                "would hold it is left empty."
            )
