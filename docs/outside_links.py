"""Links of these pages to files of the repository: on the site, where those files are not, only their text.

A link to a file that does not exist is a warning, which ``mkdocs build --strict`` makes an error.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

_LOG = logging.getLogger("mkdocs.hooks.outside_links")
_LINK = re.compile(r"\[([^\[\]]*)\]\((\.\./[^)#\s]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """The page's text without its links out of ``docs``."""
    docs = Path(config["docs_dir"]).resolve()
    folder = (docs / page.file.src_uri).parent

    def text_only(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if target.is_relative_to(docs):
            return link[0]
        if not target.exists():
            _LOG.warning("%s links to %s, which does not exist", page.file.src_uri, link[2])
        return link[1]

    return _LINK.sub(text_only, markdown)
