"""A run's scores as the metrics block of a Hugging Face model card."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from cme_bench.reports.runs import RunView, watermarks
from cme_bench.scoring.scales import Measure


def model_card(run: RunView) -> str:
    """Return YAML front matter with a ``model-index`` of the scores, see :func:`eval_results`."""
    return front_matter(run, ModelCardData(model_name=run.label, eval_results=eval_results(run)))


def front_matter(run: RunView, data: ModelCardData) -> str:
    """Return ``data`` as the block that begins a card, with a comment on scores that it cannot hold."""
    missing = "".join(f"\n# no finite score: {name}" for name in run.results.unscored)
    return f"---\n{data.to_yaml()}{missing}\n---\n"


def eval_results(run: RunView) -> list[EvalResult]:
    """Return every task's main metric in its unit (shares in %), then the macro averages.

    Dataset names carry what a reader must know: the form, the number of shots, and a limit. They say that
    CME is a reconstruction, by its source.
    """
    marks = "; ".join(mark.split(":")[0].lower() for mark in watermarks([run]))
    results = []
    for name, task in run.results.tasks.items():
        planned = run.run.tasks[name]
        part = f", {planned.n} of {planned.rows} items" if planned.n < planned.rows else ""
        score, measure = task.score, task.score.measure
        if score.value is None:
            continue  # a model-index holds numbers only
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name=task.domain,
                dataset_type=task.dataset,
                dataset_name=f"{name} ({task.form}, {planned.shots}-shot{part})",
                metric_type=task.primary,
                metric_name=_named(task.primary, score.stderr, measure),
                metric_value=rounded(score.value, measure),
            )
        )
    for form, summary in run.results.forms.items():
        average, measure = summary.average, run.measure(form)
        if average is None or average.value is None:
            continue  # its tasks have no mean
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="average",
                dataset_type="cme",
                dataset_name=f"CME, {form} (cme-bench's reconstruction{'; ' + marks if marks else ''})",
                metric_type="macro",
                metric_name=_named(
                    f"macro mean over {len(summary.domains)} domains", average.stderr, measure
                ),
                metric_value=rounded(average.value, measure),
            )
        )
    return results


def _named(metric: str, stderr: float | None, measure: Measure) -> str:
    parts = [measure.scale.unit] if measure.scale.unit else []
    parts += [] if measure.better == "higher" else [f"{measure.better} is better"]
    parts += [] if stderr is None else [f"SE {measure.shown(stderr)}"]
    return f"{metric} ({', '.join(parts)})" if parts else metric


def rounded(value: float, measure: Measure) -> float:
    """Return a score in the unit in which it is shown, a share in percent."""
    return round(measure.scale.factor * value, 2 if measure.scale.digits == 2 else 4)
