"""The table and the warnings that stand at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from cme_bench.runs.folder import read_results, read_run
from cme_bench.runs.records import EstimateRecord, MetricRecord
from cme_bench.scoring.scales import Measure
from cme_bench.util.terminal import markup

WARN_SHARE = 0.01
WARN_TIES = 0.005


def summary_table(folder: Path) -> Table:
    """Return every task, every domain and the average of a run folder."""
    results = read_results(folder)
    table = Table(title=markup(str(folder)), show_edge=False)
    for name, justify in (("domain", "left"), ("task", "left"), ("metric", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("score", "± SE", "n"):
        table.add_column(name, justify="right")
    table.add_column("task hash")
    for task, result in results.tasks.items():
        score = result.score
        names = (markup(name) for name in (result.domain, task, result.primary))
        table.add_row(*names, *_cells(score, score.measure), markup(result.hash[:8]))
    for form, summary in results.forms.items():
        if summary.average is None:
            continue  # its tasks have no mean
        measure = summary.measure.read()
        table.add_section()
        for domain, estimate in summary.domains.items():
            table.add_row(markup(domain), f"({markup(form)})", "macro", *_cells(estimate, measure))
        table.add_row("[bold]average[/bold]", f"({markup(form)})", "macro", *_cells(summary.average, measure))
    return table


def _cells(estimate: EstimateRecord | MetricRecord, measure: Measure) -> tuple[str, str, str]:
    value, stderr = estimate.value, estimate.stderr
    return (
        "-" if value is None else measure.shown(value),
        "-" if stderr is None else measure.shown(stderr),
        str(estimate.n),
    )


def warnings(folder: Path) -> Iterator[str]:
    """Yield what a user should know of a finished run.

    First logits that the model rounded, and what the run noted of its prompts. Then scores that are no
    numbers; shares above 1 % of empty extractions, answers cut by the length limit, and truncated prompts;
    above 0.5 % of exact ties.

    A choice task whose answer was found is not warned of for its length: what follows the answer is prose.
    """
    run = read_run(folder)
    told = run.engine.get("logits")
    if told in {"bfloat16", "float16"}:
        yield f"the model rounds its own logits to {told}: choices tie that do not tie; --dtype float32 helps"
    words = {
        "empty": "answers in which no rule found an answer",
        "hit_length": "generations that hit the length limit",
        "truncated": "prompts cut to fit the context",
        "thought_cut": "answers whose thought used up its budget (--thinking-budget)",
        "unclosed": "answers without one, because a thought never ended",
        "unanswered": "items without a response, which are not scored (run.json names them)",
        "ties": "questions whose best choices tie exactly (the first of them counts, as in lm-eval)",
    }
    yield from run.notes
    allowed = {"unanswered": 0.0, "ties": WARN_TIES, "near_ties": 1.0}
    for task, result in read_results(folder).tasks.items():
        if result.score.value is None:
            yield f"{task}: {result.primary} is no finite number, so its domain and the average have no score"
        for kind, share in result.quality.items():
            prose = kind == "hit_length" and result.primary == "acc"
            if share > allowed.get(kind, WARN_SHARE) and not prose:
                yield f"{task}: {100 * share:.1f} % {words.get(kind, kind)}"
