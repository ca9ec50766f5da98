"""The transformers engine."""

from cme_bench.engines.hf.engine import HFEngine

__all__ = ["HFEngine"]
