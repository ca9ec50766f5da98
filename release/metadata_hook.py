"""What a package page shows: the README with links that work there, and the project's addresses.

The address of the repository is not kept in a file: it is that of the clone, or ``CME_BENCH_REPOSITORY``.
Without one, a link to a file becomes its text, and a picture is left out: nothing on the page is broken.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|#")
_ADDRESS = re.compile(
    r"(?:https?://|ssh://|git@)(?:[^@/\s]+@)?(?P<host>[\w.-]+)(?::\d+(?=/))?[:/](?P<path>[\w./~-]+?)(?:\.git)?/?"
)


def repository(folder: Path) -> str | None:
    """Return the address of the repository, as https; None where no clone or variable tells it."""
    told = os.environ.get("CME_BENCH_REPOSITORY") or _origin(folder)
    found = _ADDRESS.fullmatch(told.strip()) if told else None
    return f"https://{found['host']}/{found['path']}" if found else None


def _origin(folder: Path) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        command = ["git", "remote", "get-url", "origin"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def page_text(readme: str, address: str | None, version: str) -> str:
    """Return the README with links that are right elsewhere: those of the tag ``v...``."""

    def rewritten(link: re.Match[str]) -> str:
        if _ELSEWHERE.match(link["target"]):
            return link[0]
        if address is None:
            return "" if link["picture"] else link["text"]
        kind = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({address}/{kind}/v{version}/{link['target']})"

    return _LINK.sub(rewritten, readme)


def addresses(address: str | None) -> dict[str, str]:
    """Return the project's addresses, by the names that package pages give them."""
    paper = {"Paper": "https://arxiv.org/abs/2408.09856"}
    if address is None:
        return paper
    places = {"Documentation": "tree/main/docs", "Changelog": "blob/main/CHANGELOG.md", "Issues": "issues"}
    return {"Repository": address} | {name: f"{address}/{place}" for name, place in places.items()} | paper


class PageHook(MetadataHookInterface):
    """Gives the build what pyproject.toml calls dynamic: readme and urls."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add both to ``metadata``."""
        root = Path(self.root)
        address = repository(root)
        text = (root / "README.md").read_text(encoding="utf-8")
        version = re.search(r'__version__ = "(.+)"', (root / "cme_bench" / "version.py").read_text())
        assert version is not None
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": page_text(text, address, version[1]),
        }
        metadata["urls"] = addresses(address)
