"""TeamLoRA, MoELoRA, HydraLoRA and LoRA inside vLLM, by its own plugin interface.

``register`` is the entry point (group ``vllm.general_plugins``) that vLLM calls in every process. A model is
then served with an adapter if its config holds ``GatedSpec.to_block()`` as ``quantization_config``: in the
config.json of an exported folder, or through ``hf_overrides``. Of the rest of cme_bench only the float32
product of logits is imported.
"""

from __future__ import annotations

import contextlib
import logging


def register() -> None:
    """Make the plugin known to this process's vLLM; where that lacks what it needs, say so and go on."""
    from cme_bench.vllm_plugin import borrowed, converted, seeing

    with contextlib.suppress(ImportError, AttributeError):  # vLLM itself says what it lacks for images
        seeing.install()
    with contextlib.suppress(ImportError, AttributeError):  # such a vLLM loads as slowly as it does
        converted.install()
    with contextlib.suppress(ImportError, AttributeError):  # such a vLLM is asked once in a process
        borrowed.install()
    try:
        from cme_bench.vllm_plugin import guard, slot_manager  # importing guard registers the config

        guard.install()
        slot_manager.install()
    except (ImportError, AttributeError) as error:
        logging.getLogger("vllm.cme_bench").warning(
            "cme_bench: this vLLM does not offer what the TeamLoRA plugin needs (%s); it is off", error
        )
