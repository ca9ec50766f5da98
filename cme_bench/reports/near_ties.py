"""A table's notes on questions that another engine may answer otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cme_bench.reports.runs import RunView

TOLD_NEAR = 0.01
"""Below this share of near ties a table says nothing of them: no score of two decimals moves by much."""
TOLD_TIES = 0.005


def tie_notes(runs: Sequence[RunView], form: str) -> Iterator[str]:
    """Yield how many questions of ``form`` are nearly or exactly tied, where that is worth a line.

    Runs of versions that counted no ties say nothing.
    """
    members = [member for run in runs for member in (run.members or (run,))]
    near = max((_share(run, form, "near_ties") for run in members), default=0.0)
    if near >= TOLD_NEAR:
        nats = max(run.results.near_tie_nats or 0.0 for run in members)
        yield (
            f"Near ties: in {100 * near:.1f} % of the questions the two best choices differ by less than "
            f"{nats:g} nats, about what the model's type is exact to; another engine may choose the other."
        )
    tied = {
        task: max(_quality(run, task).get("ties", 0.0) for run in members)
        for task in dict.fromkeys(task for run in members for task in run.tasks(form))
    }
    if most := {task: share for task, share in tied.items() if share > TOLD_TIES}:
        worst = max(most, key=lambda task: most[task])
        yield (
            f"TIES: in {len(most)} tasks more than {100 * TOLD_TIES:g} % of the questions are tied exactly, "
            f"and the first choice counts (most in {worst}: {100 * most[worst]:.1f} %)."
        )


def _quality(run: RunView, task: str) -> dict[str, float]:
    result = run.results.tasks.get(task)
    return result.quality if result else {}


def _share(run: RunView, form: str, kind: str) -> float:
    """Return the share of all questions of a form, each counted once."""
    found = [run.results.tasks[task] for task in run.tasks(form)]
    counted = [(r.score.n, r.quality[kind]) for r in found if kind in r.quality]
    total = sum(n for n, _ in counted)
    return sum(n * share for n, share in counted) / total if total else 0.0
