"""Our additions to vLLM's workers (``worker_extension_cls``), called by ``collective_rpc``.

After every swap of an adapter the caller must reset the prefix cache: cached keys and values are the old
adapter's.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cme_bench.vllm_plugin import scoring


class ExtendedWorker:
    """Mixed into vLLM's worker class. What adapters need is imported with the first."""

    if TYPE_CHECKING:
        model_runner: Any

        def get_model(self) -> Any: ...

    def score_together(self) -> bool:
        """Score prompts by ``scoring`` from now on; return False where this vLLM's runner has no place for
        it."""
        scoring.count_ranks_plainly()
        own = getattr(self.model_runner, scoring.METHOD, None)
        if own is None:
            return False
        ours = functools.partial(scoring.prompt_logprobs, self.model_runner, own)
        setattr(self.model_runner, scoring.METHOD, ours)
        return True

    @torch.inference_mode()
    def exact_logits(self) -> str:
        """Compute logits in float32 from now on, whatever the model's dtype. Return why they are rounded all
        the same, or "" if they are not. Every rank must be asked at once."""
        from vllm.distributed import get_pp_group

        from cme_bench.vllm_plugin.output_layer import exact_from_now

        config = self.model_runner.model_config
        if config.dtype == torch.float32 or not get_pp_group().is_last_rank:
            return ""  # the output layer is on the last
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(1, config.get_hidden_size(), generator=generator)
        return exact_from_now(self.get_model(), probe.to(self.model_runner.device, config.dtype))

    @torch.inference_mode()
    def load_gated_adapter(self, path: str) -> int:
        """Put an adapter file into the running model; the number of modules loaded.

        A model that is not compiled takes one of another shape, too. Raises AdapterFileError, and leaves the
        model as it was, if the file does not fit.
        """
        from cme_bench.vllm_plugin.loading import fit_layers, gated_layers, load_layers

        load = fit_layers if self.model_runner.model_config.enforce_eager else load_layers
        return load(gated_layers(self.get_model()), Path(path))

    @torch.inference_mode()
    def clear_gated_adapter(self) -> None:
        """Go back to the base model."""
        from cme_bench.vllm_plugin.loading import clear_layers, gated_layers

        clear_layers(gated_layers(self.get_model()))
