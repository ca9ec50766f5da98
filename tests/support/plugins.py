"""Users' adapter methods in tests."""

from __future__ import annotations

from cme_bench.adapters import plugins, registry


def forget_plugins() -> None:
    """Take off every method that is not this package's, as if no plugin had been named."""
    for method in registry.methods():
        if method.code is not None:
            registry.unregister(method.name)
    plugins._LOADED.clear()
