"""One model is built at a time: transformers does it under settings of the whole process."""

from __future__ import annotations

import threading

BUILDING = threading.RLock()
"""Held while transformers makes a model. It sets torch's default dtype for as long, for every thread: of two
models that are made at once, parts of one get the dtype of the other."""
