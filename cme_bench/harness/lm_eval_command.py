"""lm-eval's own command line, in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lm_eval.__main__ import cli_evaluate


def run_lm_eval(arguments: Sequence[str]) -> None:
    """Run ``lm-eval`` with ``arguments``, with the model cme-hf known to it.

    Raises what lm-eval raises: ValueError for a command that it cannot run.
    """
    import cme_bench.harness.lm_eval_model  # noqa: F401 - it registers the model

    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()
