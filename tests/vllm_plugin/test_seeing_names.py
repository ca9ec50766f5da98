"""Names that transformers no longer has, which vLLM 0.26 imports before it loads any LLaVA."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from cme_bench.vllm_plugin import seeing


def test_absent_names_can_be_imported_and_say_so_when_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling: Any = ModuleType(seeing._PIXTRAL_MODEL)
    modeling.position_ids_in_meshgrid = kept = object()
    monkeypatch.setitem(sys.modules, seeing._PIXTRAL_MODEL, modeling)
    seeing._stand_in_for_renamed()
    with pytest.raises(RuntimeError, match="no PixtralRotaryEmbedding any more"):
        modeling.PixtralRotaryEmbedding({}, "cpu")
    assert modeling.position_ids_in_meshgrid is kept
