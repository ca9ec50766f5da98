"""What the plugin adds to vLLM's workers (``worker_extension_cls``): adapters swapped by ``collective_rpc``.

After every swap the caller must reset the prefix cache: cached keys and values are the old adapter's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cme_bench.vllm_plugin.loading import clear_layers, gated_layers, load_layers


class GatedWorker:
    """Mixed into vLLM's worker class."""

    if TYPE_CHECKING:

        def get_model(self) -> Any: ...

    @torch.inference_mode()
    def load_gated_adapter(self, path: str) -> int:
        """Put an adapter file into the running model; the number of modules loaded.

        Raises AdapterFileError, and leaves the model as it was, if the file does not fit.
        """
        return load_layers(gated_layers(self.get_model()), Path(path))

    @torch.inference_mode()
    def clear_gated_adapter(self) -> None:
        """Back to the base model."""
        clear_layers(gated_layers(self.get_model()))
