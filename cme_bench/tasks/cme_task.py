"""The name of CME's task class in task files: ``class: !function cme_bench.tasks.cme_task.CmeTask``."""

from cme_bench.harness.cme_task import CmeTask

__all__ = ["CmeTask"]
