"""The import of a checkpoint: which layout it is in, its adapter, and whether that fits the base model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig

from cme_bench.adapters.errors import AdapterError
from cme_bench.adapters.examine import examine
from cme_bench.adapters.files import CONFIG_FILE, WEIGHTS_FILE, read_config
from cme_bench.adapters.imports import dense_routing, llava, moe_peft, moslora, plain, teamlora
from cme_bench.adapters.imports.layers import PREFIX
from cme_bench.adapters.imports.layout import Converted, Given, Layout
from cme_bench.adapters.imports.source import Source, read_source
from cme_bench.adapters.imports.targets import targets_of
from cme_bench.adapters.meta_model import bare_model
from cme_bench.util.errors import did_you_mean

AUTO = "auto"
LAYOUTS: tuple[Layout, ...] = (
    teamlora.LAYOUT,
    dense_routing.HYDRALORA,
    dense_routing.LORAMOE,
    moe_peft.LORAMOE,
    moe_peft.MIXLORA,
    moslora.LAYOUT,
)
"""Every layout; two repositories write a LoRAMoE."""
NAMES = tuple(dict.fromkeys([*(layout.name for layout in LAYOUTS), llava.NAME, plain.NAME]))
"""What ``--layout`` takes beside "auto"."""


@dataclass(frozen=True, slots=True)
class Imported:
    """An import that is done.

    Attributes:
        layout: As ``--layout`` takes it. origin: Where the layer is written that is computed.
        config: Of the adapter. scale: The factor on its update, in words and numbers.
        notes: Sentences that a user should see.
    """

    layout: str
    origin: str
    config: PeftConfig
    scale: str
    notes: tuple[str, ...]


def import_adapter(
    source: str | Path,
    out: str | Path,
    base_model: str,
    *,
    layout: str = AUTO,
    alpha: float | None = None,
    scaling: str | float | None = None,
) -> Imported:
    """Write an adapter folder of this package that computes exactly what a checkpoint of another does.

    Tensors become float32; none is changed but by stacking, except TeamLoRA's interaction matrix.

    Args:
        source: A folder with adapter_model.safetensors or adapter_model.bin and adapter_config.json, or one
            file of weights. A pickle is read by ``torch.load(weights_only=True)``, here alone.
        out: Folder to write; must not hold an adapter yet.
        base_model: Hub id or folder of the base model, recorded in the result. If it is a folder here, the
            result is checked against it.
        layout: One of ``NAMES``; "auto", the default, goes by the tensors' names.
        alpha: Their ``lora_alpha``, which wins over the settings; needed if the source has none.
        scaling: How TeamLoRA's ``alpha / r`` reads with our r; change it only if their r is known to be of
            one expert.

    Raises AdapterError, naming file and tensor or setting, if the layout is unknown, ambiguous or does not
    fit, if tensors are missing, unknown or of shapes that do not fit together, or if a setting would change
    what is computed.
    """
    target = Path(out)
    if (target / CONFIG_FILE).exists():
        raise AdapterError(f"{target} already holds an adapter; choose another folder")
    found = read_source(Path(source))
    chosen = choose_layout(found, layout)
    base = _base(base_model)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as made:
        folder = Path(made)
        if chosen is None and layout in (AUTO, llava.NAME) and llava.is_llava(found, base):
            assert base is not None
            notes = llava.convert(found, base, folder, base_model)
            done = Imported(llava.NAME, "LLaVA", read_config(folder), "as PEFT computes it", notes)
        elif chosen is None:
            plain.copy_plain(found, folder)
            done = Imported(plain.NAME, "PEFT", read_config(folder), "as PEFT computes it", ())
        else:
            converted = chosen.convert(found, Given(alpha, scaling))
            said = found.settings.get("target_modules")
            config = converted.config_class(
                **converted.fields,
                target_modules=targets_of(converted.modules, base, said),
                base_model_name_or_path=base_model,
                task_type="CAUSAL_LM",
                inference_mode=True,
            )
            _write(folder, config, converted)
            done = Imported(chosen.name, chosen.origin, config, converted.scale, converted.notes)
        if base is not None:
            _check(base, folder, found)
        target.mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            shutil.move(file, target / file.name)
    return done


def choose_layout(source: Source, name: str) -> Layout | None:
    """Return the layout of a checkpoint; None for an adapter as PEFT saves it.

    Raises AdapterError if no layout, or more than one, has names as those of its tensors.
    """
    keys = list(source.tensors)
    signed = [layout for layout in LAYOUTS if layout.signs(keys, source.settings)]
    if name != AUTO:
        return _forced(name, signed)
    if len(signed) == 1:
        return signed[0]
    known = ", ".join(NAMES)
    if signed:
        told = " and ".join(layout.name for layout in signed)
        raise AdapterError(f"{source.file} has tensors of {told}; name one with --layout ({known})")
    if plain.is_plain(source):
        return None
    raise AdapterError(
        f"{source.file}: tensor {keys[0]} is in no known layout; if it should be, name one with --layout "
        f"({known})"
    )


def _forced(name: str, signed: Sequence[Layout]) -> Layout | None:
    if name in (plain.NAME, llava.NAME):
        return None
    named = [layout for layout in LAYOUTS if layout.name == name]
    if not named:
        known = (AUTO, *NAMES)
        raise AdapterError(f"unknown layout {name!r}{did_you_mean(name, known)} (known: {', '.join(known)})")
    return next((layout for layout in named if layout in signed), named[0])


def _base(base_model: str) -> nn.Module | None:
    """Return the base model without memory, if its folder is here."""
    folder = Path(base_model)
    return bare_model(AutoConfig.from_pretrained(folder)) if (folder / "config.json").is_file() else None


def _write(folder: Path, config: PeftConfig, converted: Converted) -> None:
    tensors = {f"{PREFIX}{name}": tensor.float().contiguous() for name, tensor in converted.tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _check(base: nn.Module, folder: Path, source: Source) -> None:
    try:
        examine(base, folder, allow_other_base=True)
    except AdapterError as error:
        told = str(error).replace(str(folder), str(source.file.parent))
        raise AdapterError(f"{source.file} does not fit the base model: {told}") from None
