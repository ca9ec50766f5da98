"""A run and its adapter as the hub takes them: metrics block, evaluation results, model card, upload."""

from __future__ import annotations
