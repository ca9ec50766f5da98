"""cme-bench: evaluate multi-task adapters on CME, a comprehensive multi-task evaluation."""

__version__ = "0.1.0"
__all__ = ["__version__"]
