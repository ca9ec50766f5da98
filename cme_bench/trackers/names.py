"""The trackers of ``--report-to``, and the packages that they need; light to import."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

from cme_bench.util.errors import UsageError
from cme_bench.util.options import Option

TrackerName = Literal["trackio", "wandb", "mlflow", "tensorboard"]
PACKAGES = {"trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow-skinny", "tensorboard": "tensorboard"}
"""The package of each tracker in the extra ``trackers``; ``mlflow`` itself will do as well."""
PROJECT = "cme-bench"
REPORTING = "Reporting"
"""The heading of the options."""

ReportTo = Annotated[
    tuple[TrackerName, ...],
    Option(
        "Also keep it in a tracker; trackio needs no account. Several with commas.",
        separated=True,
        noun="tracker",
        panel=REPORTING,
    ),
]
ReportProject = Annotated[str, Option("Its project there.", panel=REPORTING)]


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise UsageError for the first tracker whose package is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise UsageError(f"--report-to {name} needs {PACKAGES[name]}: pip install 'cme-bench[trackers]'")
