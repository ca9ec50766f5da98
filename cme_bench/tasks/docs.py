"""Names of row filters in task files (``process_docs: !function cme_bench.tasks.docs.drop_unlabelled``)."""

from cme_bench.harness.process_docs import drop_unlabelled

__all__ = ["drop_unlabelled"]
