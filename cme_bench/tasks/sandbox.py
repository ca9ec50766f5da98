"""Task templates are Jinja. lm-eval renders them with full access to Python, so ``{{ ''.__class__ }}`` and
what follows from it would run code of a task file; here they render in Jinja's sandbox.
"""

from __future__ import annotations

from jinja2.sandbox import SandboxedEnvironment
from lm_eval import utils


def sandbox_templates() -> None:
    """Make lm-eval render every template of this process in a sandbox; asked again, nothing changes.

    The environment object stays the same, for modules that hold it; its class and the few attributes that
    the sandbox adds are replaced.
    """
    environment = utils.env
    if not isinstance(environment, SandboxedEnvironment):
        sandboxed = SandboxedEnvironment()
        environment.__class__ = SandboxedEnvironment
        environment.globals["range"] = sandboxed.globals["range"]
        environment.binop_table = sandboxed.binop_table
        environment.unop_table = sandboxed.unop_table
