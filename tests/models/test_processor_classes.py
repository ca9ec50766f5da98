"""Processors whose modules ask for torchvision by an import alone."""

from __future__ import annotations

import sys

import pytest
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from cme_bench.models.vision import _class_by_pillow


def test_the_twin_for_pillow_serves_the_import_and_is_in_no_other_place_afterwards() -> None:
    name = "transformers.models.pixtral.image_processing_pixtral"
    before = sys.modules.get(name)
    found = _class_by_pillow("PixtralProcessor", PROCESSOR_MAPPING_NAMES)
    assert found.__name__ == "PixtralProcessor"
    assert "image_processor" in found.get_attributes()
    assert sys.modules.get(name) is before


def test_a_class_without_a_twin_says_what_is_missing() -> None:
    with pytest.raises(ImportError, match="needs torchvision for Emu3Processor"):
        _class_by_pillow("Emu3Processor", PROCESSOR_MAPPING_NAMES)
