"""Fields of adapters' configs that a training finds, by method: two seeds of one training differ there."""

from __future__ import annotations

FOUND = {"adalora": frozenset({"rank_pattern"})}
"""AdaLoRA writes which of its ranks it kept, one by one."""
