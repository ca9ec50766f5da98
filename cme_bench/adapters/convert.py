"""Checkpoints in the layout of the authors' layer (published 2024-08-19, withdrawn a day later), read into
ours."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.files import CONFIG_FILE, PICKLES, WEIGHTS_FILE, read_json, tensor_shapes
from cme_bench.adapters.methods.teamlora import TeamLoraConfig
from cme_bench.adapters.shared.config import rank_per_expert

_PREFIX = "base_model.model."
# An adapter name may stand before or after the last component, depending on how the checkpoint was written.
_KEY = re.compile(
    r"(?P<module>.+)\.(?:(?P<a>lora_A)|lora_B(?P<b>\d+)|(?P<route>lora_route(?:\.\w+)?\.fc)"
    r"|(?P<matrix>lora_interaction_matrix))(?:\.\w+)??\.weight"
)


def import_authors(
    source: str | Path,
    out: str | Path,
    base_model: str,
    *,
    alpha: float | None = None,
    scaling: str | float = "alpha/(k*r)",
) -> TeamLoraConfig:
    """Write an adapter folder of ours that computes exactly what a checkpoint of the authors' layer does.

    Their layer: ``omega = phi + phi M0``, renormalised, times k; ``(alpha / r) sum_i omega_i z_i B_i``, r the
    rank of all experts together. Hence our ``M = I + M0^T``, rank r / k for each expert, and the preset
    "authors-2024-08". No tensor is changed but M, whose zero diagonal becomes one; all are written as
    float32.

    Args:
        source: A folder with adapter_model.safetensors (and adapter_config.json, whose ``lora_alpha``,
            ``lora_dropout`` and ``task_type`` are taken), or one safetensors file. Pickle files are refused.
        out: Folder to write; must not hold an adapter yet.
        base_model: Hub id or folder of the base model, recorded in the result.
        alpha: Their ``lora_alpha``; needed if the source has no config.
        scaling: How their ``alpha / r`` reads with our r; change it only if their r is known to be of one
            expert.

    Returns:
        The config that was written.

    Raises AdapterError, naming file and tensor, if tensors are missing, unknown, of shapes that do not fit
    together, if the rank does not divide by the number of experts, or if there are fewer than two.
    """
    file, settings = _find(Path(source))
    out = Path(out)
    if (out / CONFIG_FILE).exists():
        raise AdapterError(f"{out} already holds an adapter; choose another folder")
    alpha = settings.get("lora_alpha") if alpha is None else alpha
    if alpha is None:
        raise AdapterError(f"{file}: no {CONFIG_FILE} gives lora_alpha; pass alpha")
    tensor_shapes(file)  # a damaged file gets a clear message
    modules = _by_module(file, load_file(file))
    converted: dict[str, Tensor] = {}
    sizes: set[tuple[int, int]] = set()
    for module, parts in modules.items():
        tensors, size = _convert(f"{file}: {module}", parts)
        sizes.add(size)
        path = module if module.startswith(_PREFIX) else _PREFIX + module
        converted |= {f"{path}.{name}": tensor.float().contiguous() for name, tensor in tensors.items()}
    if len(sizes) != 1:
        raise AdapterError(f"{file}: layers differ in rank or number of experts: {sorted(sizes)}")
    rank, experts = sizes.pop()
    config = TeamLoraConfig.preset(
        "authors-2024-08",
        r=rank,
        num_experts=experts,
        alpha=alpha,
        scaling=scaling,
        dropout=settings.get("lora_dropout", 0.0),
        target_modules=sorted({module.rpartition(".")[2] for module in modules}),
        base_model_name_or_path=base_model,
        task_type=settings.get("task_type", "CAUSAL_LM"),
        inference_mode=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file(converted, out / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(out))
    return config


def _find(source: Path) -> tuple[Path, dict[str, Any]]:
    """Return the weights file, and the authors' settings, {} if there are none."""
    folder = source if source.is_dir() else source.parent
    file = source / WEIGHTS_FILE if source.is_dir() else source
    if not file.is_file() and source.is_dir():
        pickles = sorted(other for other in source.iterdir() if other.suffix in PICKLES)
        file = pickles[0] if pickles else file
    if file.suffix in PICKLES:
        raise AdapterError(
            f"{file} is a pickle file, which can run code when read; save it as safetensors first"
        )
    if not file.is_file():
        raise AdapterError(f"{file} not found")
    config = folder / CONFIG_FILE
    return file, read_json(config) if config.is_file() else {}


def _by_module(file: Path, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterError(f"{file}: tensor {key} is not in the authors' layout")
        part = "A" if match["a"] else f"B{int(match['b'])}" if match["b"] else "S" if match["route"] else "M"
        if part in modules[match["module"]]:
            raise AdapterError(f"{file}: tensor {key} is there twice, under two adapter names")
        modules[match["module"]][part] = tensor
    if not modules:
        raise AdapterError(f"{file} holds no tensor")
    return modules


def _convert(where: str, parts: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[int, int]]:
    """Return one layer's tensors under our names, with (rank of one expert, number of experts)."""
    experts = sum(part.startswith("B") for part in parts)
    if experts < 2:
        raise AdapterError(f"{where} has {experts} lora_B; TeamLoRA has at least 2 experts")
    ups = [f"B{i}" for i in range(experts)]
    names = {
        "A": "lora_A",
        "S": "lora_route.fc",
        "M": "lora_interaction_matrix",
        **{b: f"lora_{b}" for b in ups},
    }
    for part, name in names.items():
        if part not in parts:
            raise AdapterError(f"{where}.{name} is missing")
        if parts[part].ndim != 2:
            raise AdapterError(f"{where}.{name} has shape {list(parts[part].shape)}, not two dimensions")
    total, d_in = parts["A"].shape
    try:
        rank = rank_per_expert(total, experts)
    except AdapterError as error:
        raise AdapterError(f"{where}.lora_A: {error}") from None
    d_out = parts["B0"].shape[0]
    wanted = {"S": (experts, d_in), "M": (experts, experts), **dict.fromkeys(ups, (d_out, rank))}
    for part, shape in wanted.items():
        if tuple(parts[part].shape) != shape:
            raise AdapterError(
                f"{where}.{names[part]} has shape {list(parts[part].shape)}, "
                f"the other tensors ask for {list(shape)}"
            )
    return {
        "teamlora_down": parts["A"],
        "teamlora_up": torch.cat([parts[b] for b in ups], dim=1),
        "teamlora_router": parts["S"],
        "teamlora_interaction": torch.eye(experts) + parts["M"].float().T,
    }, (rank, experts)
