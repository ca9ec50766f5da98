"""The check that an adapter changes an answer of the run: on a prompt of it, with its images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cme_bench.engines.virtual import is_virtual
from cme_bench.runs.engine_source import EngineJob
from cme_bench.util.errors import UsageError

if TYPE_CHECKING:
    from cme_bench.models.loaded import LoadedModel
    from cme_bench.models.vision import Vision


def reader_of(model: LoadedModel) -> Vision | None:
    """Return what reads the images of requests; None where the model's processor is missing, too."""
    try:
        return model.vision
    except UsageError:
        return None


def check_probe(peft: Any, model: LoadedModel, job: EngineJob, name: str) -> None:
    """Raise AdapterError if the active adapter of ``peft`` changes no logit of the prompt of ``job``.

    Where an adapter puts tokens of its own before a prompt, the prompt's text is tried alone.
    """
    import torch

    from cme_bench.adapters.liveness import check_liveness, probing
    from cme_bench.engines.hf.alone import adapter_positions
    from cme_bench.engines.hf.images import Images

    vision, ids = reader_of(model), job.liveness
    if not job.images or vision is None or adapter_positions(peft):
        text = [token for token in ids if not is_virtual(token)]
        told = probing(peft.active_peft_config, text)
        check_liveness(peft, torch.tensor([told], device=model.device), name=name)
        return
    images = Images(peft, vision, model.device)
    images.know(job.images)
    row = torch.tensor([probing(peft.active_peft_config, ids)])
    arguments = images.arguments(row)
    check_liveness(peft, arguments.pop("input_ids"), name=name, more=arguments)
