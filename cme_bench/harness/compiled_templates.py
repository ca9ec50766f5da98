"""lm-eval's templates, compiled once.

lm-eval 0.4.13 parses and compiles a task's Jinja template again for every field of every row and exemplar,
which takes longer than a small model's answer on a GPU. Rendering stays lm-eval's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from jinja2 import Template
from lm_eval.utils import env

MOST_TEMPLATES = 4096


def keep_compiled() -> None:
    """Make lm-eval keep the templates that it compiles in this process; asked again, nothing changes."""
    if not hasattr(env.from_string, "cache_info"):
        compile_template = env.from_string

        @functools.lru_cache(maxsize=MOST_TEMPLATES)
        def compiled(source: str) -> Template:
            template: Template = compile_template(source)
            template.globals = dict(template.globals)  # a chain of mappings is copied slowly at every render
            return template

        env.from_string = compiled


@functools.lru_cache(maxsize=MOST_TEMPLATES)
def compiled_expression(source: str) -> Callable[..., Any]:
    """Return what gives the value of an expression, by the names that it is called with."""
    found: Callable[..., Any] = env.compile_expression(source)
    return found
