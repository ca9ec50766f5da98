"""Trackers of experiments: trackio, wandb, mlflow and tensorboard, each below the same three calls."""

from __future__ import annotations

from cme_bench.trackers.entry import Entry, Tracker
from cme_bench.trackers.names import ReportProject, ReportTo, check_trackers
from cme_bench.trackers.together import Trackers, open_trackers

__all__ = ["Entry", "ReportProject", "ReportTo", "Tracker", "Trackers", "check_trackers", "open_trackers"]
