"""What people install: a whole wheel, its page, its release; and the wheel at work outside any checkout."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

import cme_bench

ROOT = Path(__file__).resolve().parents[1]
OF_A_FEATURE = {
    "openai",
    "ray",
    "vllm",
    "triton",
    "bitsandbytes",
    "trackio",
    "wandb",
    "mlflow",
    "liger_kernel",
}
"""Imported where the feature is asked for; the extras name their packages."""


def script(name: str) -> ModuleType:
    """A module of ``release/``, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "release" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}
    found: set[str] = set()
    for file in (ROOT / "cme_bench").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    packages = metadata.packages_distributions()
    own = {*sys.stdlib_module_names, "cme_bench", *OF_A_FEATURE}
    missing = {
        name for name in found - own if not declared & {p.lower().replace("_", "-") for p in packages[name]}
    }
    assert not missing


def test_the_page_of_the_package_has_no_broken_links() -> None:
    page = script("metadata_hook")
    readme = "![A picture](docs/a.png)\nSee [`tasks/`](tasks), [one](docs/b.md#c), [two](#d), [three](https://e.org)."
    with_address = page.page_text(readme, "https://host/us/it", "1.2.3")
    assert with_address == (
        "![A picture](https://host/us/it/raw/v1.2.3/docs/a.png)\n"
        "See [`tasks/`](https://host/us/it/blob/v1.2.3/tasks), "
        "[one](https://host/us/it/blob/v1.2.3/docs/b.md#c), [two](#d), [three](https://e.org)."
    )
    without = page.page_text(readme, None, "1.2.3")
    assert without == "\nSee `tasks/`, one, [two](#d), [three](https://e.org)."
    ours = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"\]\((?![a-z]+:|#)", page.page_text(ours, None, "1"))


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("git@host.org:us/it.git\n", "https://host.org/us/it"),
        ("https://user:secret@host.org/us/it.git", "https://host.org/us/it"),
        ("ssh://git@host.org:2222/us/it", "https://host.org/us/it"),
        ("/home/me/it", None),
        ("", None),
    ],
)
def test_the_address_of_the_repository(
    origin: str, address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CME_BENCH_REPOSITORY", origin)
    assert script("metadata_hook").repository(tmp_path) == address


def test_a_release_moves_what_waits(tmp_path: Path) -> None:
    release = script("release")
    (tmp_path / "cme_bench").mkdir()
    for name in ("CITATION.cff", "cme_bench/version.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    log = "# Changelog\n\n## Unreleased\n\n- New.\n\n## 0.2.0 (2026-11-29)\n\n- Old.\n"
    (tmp_path / "CHANGELOG.md").write_text(log)
    release.write_version(tmp_path, "0.3.0", "2027-01-02")
    assert (
        "## Unreleased\n\n## 0.3.0 (2027-01-02)\n\n- New.\n\n## 0.2.0"
        in (tmp_path / "CHANGELOG.md").read_text()
    )
    citation = (tmp_path / "CITATION.cff").read_text()
    assert "version: 0.3.0\n" in citation and 'date-released: "2027-01-02"' in citation
    assert '__version__ = "0.3.0"' in (tmp_path / "cme_bench" / "version.py").read_text()
    with pytest.raises(SystemExit, match="is there already"):
        release.write_version(tmp_path, "0.3.0", "2027-01-02")
    with pytest.raises(SystemExit, match="nothing stands under Unreleased"):
        release.write_version(tmp_path, "0.4.0", "2027-01-02")
    with pytest.raises(SystemExit, match=r"a version is such as 0\.3\.0"):
        release.write_version(tmp_path, "v1", "2027-01-02")


def uv(*words: str | Path, folder: Path, **more: str) -> str:
    """What uv prints, called in ``folder`` with none of this checkout's Python paths."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    program = Path(sys.executable).parent / "uv"
    command = [str(program), *map(str, words)]
    done = subprocess.run(command, cwd=folder, env=kept | more, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, with the checkout's own build tools where they are installed."""
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--quiet", "--wheel", "--out-dir", folder, folder=ROOT)
    [built] = folder.glob("*.whl")
    return built


def fresh(wheel: Path, folder: Path, words: Sequence[str | Path]) -> str:
    """What ``uvx --from WHEEL cme-bench`` prints, in an environment of its own and an empty folder."""
    pins = ("--constraints", ROOT / "constraints.txt", "--overrides", ROOT / "overrides-cpu.txt")
    places = [w for place in os.environ.get("PIP_FIND_LINKS", "").split() for w in ("--find-links", place)]
    return uv(
        *(
            "tool",
            "run",
            "--quiet",
            "--python",
            f"{sys.version_info[0]}.{sys.version_info[1]}",
            *places,
            *pins,
            "--from",
            wheel,
        ),
        *("cme-bench", *words),
        folder=folder,
        OMP_NUM_THREADS="1",
    )


@pytest.mark.slow
def test_the_wheel_is_whole_and_evaluates_outside_a_checkout(wheel: Path, tmp_path: Path) -> None:
    assert script("release").missing_parts(wheel) == []
    assert fresh(wheel, tmp_path, ["--version"]) == f"cme-bench {cme_bench.__version__}\n"
    listed = fresh(wheel, tmp_path, ["tasks", "ls"])
    assert len(re.findall(r"\bcme_\w+", listed)) >= 22
    out = tmp_path / "run"
    done = fresh(
        wheel,
        tmp_path,
        ["run", "smollm2", "--data", "mini", "--tasks", "cme_rte_ll", "--limit", "2", "--out", out],
    )
    assert "Results are in" in done
    run = cme_bench.open_run(out)
    assert run.finished and run.scores["cme_rte_ll"].n == 2
    told = (out / "run.json").read_text(encoding="utf-8")
    assert str(ROOT) not in told.replace(str(wheel), ""), "nothing came from this checkout"
