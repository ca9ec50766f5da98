"""The trackers of ``--report-to``, and the packages that they need; light to import."""

from __future__ import annotations

from typing import Literal

Tracker = Literal["trackio", "wandb", "mlflow", "tensorboard"]
PACKAGES = {"trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow-skinny", "tensorboard": "tensorboard"}
"""The package of each tracker's extra; ``mlflow`` itself will do as well."""
