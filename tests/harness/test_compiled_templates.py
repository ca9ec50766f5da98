"""Templates are compiled once, and render as lm-eval renders them."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import Environment
from lm_eval import utils

from cme_bench.harness.compiled_templates import keep_compiled
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import render_item
from cme_bench.tasks.build import build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.suite import load_suite


def test_a_task_compiles_each_template_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    compile_ = Environment.compile

    def counted(self: Environment, source: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(source)
        return compile_(self, source, *args, **kwargs)

    monkeypatch.setattr(Environment, "compile", counted)
    monkeypatch.delitem(vars(utils.env), "from_string", raising=False)
    suite = load_suite()
    task = build_task(suite.tasks["cme_hellaswag_ll"], suite, mini_source(), shots=3)
    plain = resolve_format("plain", None, generated=False)
    for index in range(5):
        render_item(task, index, plain)
    assert compiled
    assert len(compiled) == len(set(compiled))


def test_what_is_rendered_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(utils.env), "from_string", raising=False)
    template, docs = (
        "{{ a | regex_replace('x', 'y') }}\n{% for b in c %}{{ b }}{% endfor %}\n",
        (
            {"a": "axa", "c": [1, 2]},
            {"a": "", "c": []},
        ),
    )
    before = [utils.apply_template(template, doc) for doc in docs]
    keep_compiled()
    kept = utils.env.from_string
    keep_compiled()
    assert utils.env.from_string is kept
    assert [utils.apply_template(template, doc) for doc in docs] == before == ["aya\n12\n", "\n\n"]
