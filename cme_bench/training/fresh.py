"""Putting an adapter that is to be trained on its base."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.shared.quantised import READS_8_BITS, restore_scales
from cme_bench.util.errors import CmeError, first_line


def put_fresh(model: Any, config: PeftConfig) -> PeftModel:
    """Return the base ``model`` with a fresh adapter. AdapterError if PEFT cannot start it there."""
    try:
        adapted = get_peft_model(model, config)
    except CmeError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise AdapterError(f"PEFT cannot start this adapter on the base ({first_line(error)})") from error
    if restore_scales(model):
        raise AdapterError(READS_8_BITS)
    return adapted
