"""The former name of :mod:`cme_bench.harness.lm_eval_model`: importing it gives that module."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("cme_bench.harness.lm_eval_model")
