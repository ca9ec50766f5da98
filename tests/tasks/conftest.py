"""A task of one's own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.workshop import Workshop


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """A task with four rows to score and six exemplars."""
    shop = Workshop(tmp_path)
    shop.write_yaml()
    shop.write_rows("test", [{"question": f"test {i}?", "label": i % 2} for i in range(4)])
    shop.write_rows("train", [{"question": f"shot {i}?", "label": i % 2} for i in range(6)])
    return shop
