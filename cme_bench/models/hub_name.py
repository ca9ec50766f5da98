"""Names of the hub: ``owner/name``, ``owner/name@REVISION``, ``owner/name/SUBFOLDER@REVISION``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from cme_bench.util.errors import UsageError

_PART = r"[A-Za-z0-9][\w.-]*"
_FOLDER = r"(?!\.{1,2}(?:/|@|$))[^/@\s]+"
_NAME = re.compile(rf"(?P<repo>{_PART}/{_PART})(?:/(?P<sub>{_FOLDER}(?:/{_FOLDER})*))?(?:@(?P<revision>.*))?")
_REVISION = re.compile(r"(?!.*(?:\.\.|//|@\{))[\w][\w./@+-]*(?<![./])")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESS = re.compile(
    rf"(?:hf://|https?://[^/]+/)(?:models/)?(?P<repo>{_PART}/{_PART})"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[^/]+)(?:/(?P<sub>.+?))?)?/?"
)
SHORT = 8
"""So many digits of a commit stand in names."""


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository of the hub, or a folder in it, at a revision: a branch, a tag or a commit.

    Without ``revision`` it is the head of the repository when it was first used.
    """

    repo: str
    subfolder: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        folder = "" if self.subfolder is None else f"/{self.subfolder}"
        return f"{self.repo}{folder}{'' if self.revision is None else f'@{self.revision}'}"

    @property
    def label(self) -> str:
        """Return a name for runs and tables, which is a file's name too: ``name-sub@revision``."""
        parts = [self.repo.partition("/")[2], *(self.subfolder or "").split("/")]
        revision = self.revision or ""
        if self.commit is not None:
            revision = revision[:SHORT]
        end = f"@{revision}".replace("/", "-") if revision else ""
        return "-".join(part for part in parts if part) + end

    @property
    def commit(self) -> str | None:
        """Return the commit that the name itself gives; None for a branch, a tag, or no revision."""
        return self.revision if self.revision and _COMMIT.fullmatch(self.revision) else None

    @property
    def lock_key(self) -> str:
        """Return the key of its commit in the lock file."""
        return f"models/{self.repo}" + ("" if self.revision is None else f"@{self.revision}")

    def at(self, commit: str) -> HubName:
        """Return the same at a commit."""
        return replace(self, revision=commit)


def parse_hub_name(text: str) -> HubName | None:
    """Return the hub name that ``text`` is; None if it can be a path only.

    A subfolder needs a revision, ``@main`` for the usual one: without it ``a/b/c`` is a path. UsageError for
    an empty or impossible revision, and for an address of the hub, with the name to write instead.
    """
    if address := _ADDRESS.fullmatch(text):
        revision = address["revision"] or ("main" if address["sub"] else None)
        name = HubName(address["repo"], address["sub"], revision)
        raise UsageError(f"{text}: write the hub's name in place of its address: {name}")
    found = _NAME.fullmatch(text)
    if found is None or Path(text).is_absolute():
        return None
    revision = found["revision"]
    if revision is None:
        return None if found["sub"] else HubName(found["repo"])
    if not _REVISION.fullmatch(revision):
        raise UsageError(f"{text}: {revision!r} is no revision (a branch, a tag or a commit)")
    return HubName(found["repo"], found["sub"], revision)


def path_hint(text: str) -> str:
    """Return what to add to "no such folder": how a hub's subfolder is written, where ``text`` looks so."""
    found = _NAME.fullmatch(text)
    if found is None or found["sub"] is None or found["revision"] is not None:
        return ""
    return f" (a subfolder of a hub repository is written {text}@main)"
