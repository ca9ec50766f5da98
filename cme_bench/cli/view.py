"""``cme-bench view``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cme_bench.cli import app
from cme_bench.cli.help import READ, command
from cme_bench.cli.runs import RunsFolder
from cme_bench.util.errors import UsageError
from cme_bench.util.options import Option
from cme_bench.util.terminal import say

_EXAMPLES = {
    "watch the runs of a folder in a browser": "cme-bench view",
    "watch them from another machine, whose ssh -L 8765:127.0.0.1:8765 forwards the port": (
        "cme-bench view results --port 8765 --no-browser"
    ),
}


@command(app, _EXAMPLES, panel=READ)
def view(
    folder: RunsFolder = Path("runs"),
    port: Annotated[int, Option("The port on this machine's own address; 0: a free one.", minimum=0)] = 0,
    browser: Annotated[bool, Option("Open the page, where there is a screen.")] = True,
) -> None:
    """Serve a page of the runs below a folder, live while they go on, with tables and every item behind it.

    Only this machine reaches it, and only who has the address that is printed. Ctrl-C ends it.
    """
    from cme_bench.view.serve import NEEDED, serve

    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UsageError(f"cme-bench view needs {' and '.join(missing)}: pip install {' '.join(missing)}")

    def tell(address: str) -> None:
        say(f"The runs of {folder} are at\n\n    {address}\n\nCtrl-C ends it.")

    serve(folder, port=port, browser=browser, tell=tell)
