"""Files of training rows that the field shares: what they are, and whether a file is the published one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cme_bench.util.options import FormatName

COMMIT = "816657208af4db747803f87ba40a4c71383fed7a"
"""The commit of github.com/AGI-Edgerunners/LLM-Adapters that files are compared with."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published file. ``blob``: its git blob (sha1 over a header and the bytes); ``rows``: how many it has,
    where that is published; ``columns``: of every row."""

    file: str
    blob: str
    rows: int | None
    columns: tuple[str, ...] = ("instruction", "input", "output", "answer")
    prompt_format: FormatName = "llm-adapters"

    @property
    def source(self) -> str:
        """Where the file is published."""
        return f"LLM-Adapters, {self.file}"


PUBLISHED = {
    "commonsense-170k": Published(
        "ft-training_set/commonsense_170k.json", "529e426b33d4cdb1d0c4a275a1a7245ad081fd91", 170_420
    ),
    "math-14k": Published("ft-training_set/math_14k.json", "7dc3a2312d83bd5cd6388ecd5d530f2ff6ed1ad6", None),
}
"""Named mixtures of LLM-Adapters (Hu et al. 2023, arXiv 2304.01933); the second states no number of rows."""


def differences(name: str, files: tuple[Path, ...], rows: int, columns: list[str]) -> str | None:
    """Say how rows differ from the published file; None if the file is that very one."""
    published = PUBLISHED[name]
    if len(files) == 1 and (blob := git_blob(files[0].read_bytes())) == published.blob:
        return None
    facts = [f"{rows:,} rows" if published.rows is None else f"{rows:,} rows of {published.rows:,}"]
    if missing := [column for column in published.columns if column not in columns]:
        facts.append(f"no column {', '.join(missing)}")
    if len(files) == 1:
        facts.append(f"git blob {blob[:8]}, published {published.blob[:8]}")
    return f"not the published file ({published.source}): {'; '.join(facts)}"


def git_blob(content: bytes) -> str:
    """Return the sha1 by which git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
