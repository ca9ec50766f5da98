"""The former name of :mod:`cme_bench.harness.lm_eval_model`, kept for scripts that import it."""

from cme_bench.harness.lm_eval_model import CmeHF, EngineLM

__all__ = ["CmeHF", "EngineLM"]
