"""Items: requests as an engine gets them, truncation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.engines.base import GenerateRequest, LoglikelihoodRequest
from cme_bench.prompts.encode import Encoder
from cme_bench.prompts.formats import resolve_format
from cme_bench.prompts.items import Item, build_items, limited_ids, render_item, truncate
from cme_bench.prompts.preview import preview_text, preview_tokens
from cme_bench.tasks.build import Task, build_task
from cme_bench.tasks.sources import mini_source
from cme_bench.tasks.spec import TaskSpec
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError

SUITE = load_suite()
LONG = 4096


def task(name: str, *, shots: int = 0, **changes: Any) -> Task:
    """A built-in task on the mini items, with some keys of its file changed."""
    spec = SUITE.tasks[name]
    changed = TaskSpec(spec.name, spec.path, {**spec.config, **changes}, spec.where)
    return build_task(changed, SUITE, mini_source(), shots=shots)


@pytest.fixture
def ask(toy_tokenizer: PreTrainedTokenizerFast) -> Any:
    """Items of a task for the toy tokenizer."""

    def items(built: Task, form: str = "plain", max_length: int = LONG, **kwargs: Any) -> list[Item]:
        chosen = resolve_format(form, toy_tokenizer, generated=built.spec.output_type == "generate_until")
        return build_items(built, Encoder(toy_tokenizer), chosen, max_length=max_length, **kwargs)

    return items


def test_choices_of_a_question_share_one_context(ask: Any, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    [item] = ask(task("cme_arc_easy_ll"), limit=1)
    assert isinstance(item.request, LoglikelihoodRequest)
    assert len(item.request.rows) == len(item.choices) == 4
    first = item.request.rows[0][0]
    for (context, continuation), choice in zip(item.request.rows, item.choices, strict=True):
        assert context is first
        assert toy_tokenizer.decode(context) == item.prompt
        assert toy_tokenizer.decode(continuation) == choice
    assert item.truncated == 0


def test_generation_settings_reach_the_request(ask: Any, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    changes = {"generation_kwargs": {"until": "\n", "max_gen_toks": 5, "do_sample": False}}
    [item] = ask(task("cme_rte", **changes), form="chat", limit=1)
    assert isinstance(item.request, GenerateRequest)
    assert (item.request.max_new_tokens, item.request.stop, item.choices) == (5, ("\n",), ())
    assert toy_tokenizer.decode(item.request.prompt) == item.prompt
    assert item.prompt.startswith("[user] Can the statement")
    assert item.prompt.endswith("Answer:\n[assistant] ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": True}, "do_sample: true without a temperature above 0"),
        ({"temperature": 0.7, "min_p": 0.1}, "min_p is not supported"),
        ({"num_beams": 4, "until": []}, "unsupported generation_kwargs: num_beams"),
        ({"max_gen_toks": LONG}, f"max_gen_toks {LONG} leaves no room for a prompt within {LONG}"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    ask: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        ask(task("cme_rte", generation_kwargs=settings), limit=1)


def test_a_temperature_without_sampling_is_greedy(ask: Any) -> None:
    [item] = ask(task("cme_rte", generation_kwargs={"do_sample": False, "temperature": 0.7}), limit=1)
    assert item.request.max_new_tokens == 256


def test_a_choice_that_fills_the_model_is_refused_with_its_row(ask: Any) -> None:
    with pytest.raises(UsageError, match=r"rte/validation\.jsonl:1: .* leaves no room for its prompt"):
        ask(task("cme_rte_ll", doc_to_choice=["yes " * 40, "no"]), max_length=100)


def test_a_limit_keeps_a_fixed_shuffle_of_the_items_unchanged(ask: Any) -> None:
    whole = {item.id: item for item in ask(task("cme_imdb_ll", shots=2))}
    kept: set[int] = set()
    for limit in (1, 5, 99):
        part = ask(task("cme_imdb_ll", shots=2), limit=limit)
        assert len(part) == min(limit, len(whole))
        assert all(item.request == whole[item.id].request for item in part)
        assert kept <= {item.id for item in part}, "a smaller limit is a subset of a larger one"
        kept = {item.id for item in part}


def test_limited_ids_spread_over_a_sorted_split() -> None:
    ids = limited_ids(range(3000), 300)
    assert ids == sorted(set(ids))
    assert len(ids) == 300
    assert 120 < sum(i < 1500 for i in ids) < 180, "half of a split sorted by label is in the sample"
    assert limited_ids(range(3), 5) == limited_ids(range(3), None) == [0, 1, 2]


def test_a_prompt_that_is_too_long_loses_its_beginning_but_not_its_bos(
    toy_tokenizer: PreTrainedTokenizerFast,
) -> None:
    class WithBos(Encoder):
        """As for a tokenizer that adds <s> by default."""

        def __init__(self, tokenizer: Any) -> None:
            super().__init__(tokenizer)
            self._bos, self._bos_text = (tokenizer.bos_token_id,), tokenizer.bos_token

    form = resolve_format("plain", toy_tokenizer, generated=False)
    for name, answer in (("cme_rte_ll", None), ("cme_rte", 16)):
        whole = build_items(task(name), WithBos(toy_tokenizer), form, max_length=LONG, limit=3)
        cut = build_items(task(name), WithBos(toy_tokenizer), form, max_length=60, limit=3)
        for long, short in zip(whole, cut, strict=True):
            before, after = contexts(long)[0], contexts(short)[0]
            room = 60 - (answer or max(len(rest) for _, rest in short.request.rows) - 1)  # type: ignore[union-attr]
            assert after[0] == toy_tokenizer.bos_token_id
            assert after[1:] == before[-(len(after) - 1) :]
            assert short.truncated == len(before) - min(map(len, contexts(short)))
            assert min(map(len, contexts(short))) == room
            assert long.truncated == 0


def contexts(item: Item) -> list[tuple[int, ...]]:
    if isinstance(item.request, GenerateRequest):
        return [item.request.prompt]
    return [context for context, _ in item.request.rows]


@pytest.mark.parametrize(
    ("room", "prefix", "expected"),
    [(9, 1, (0, 1, 2, 3, 4)), (5, 1, (0, 1, 2, 3, 4)), (4, 1, (0, 2, 3, 4)), (2, 1, (0, 4)), (2, 0, (3, 4))],
)
def test_truncation_keeps_the_prefix_and_the_end(room: int, prefix: int, expected: tuple[int, ...]) -> None:
    assert truncate((0, 1, 2, 3, 4), room, prefix) == expected


def test_preview_marks_the_boundary(ask: Any, toy_tokenizer: PreTrainedTokenizerFast) -> None:
    built = task("cme_rte_ll")
    shown = render_item(built, 0, resolve_format("plain", None, generated=False))
    text = "\n".join(preview_text(shown))
    assert text.startswith("prompt:\n  | Can the statement be concluded")
    assert text.endswith("  | Answer:\nscored:\n  || ' yes'\n  || ' no'\ngold: 'yes'")
    [item] = ask(built, limit=1)
    lines = list(preview_tokens(item, toy_tokenizer))
    (context, yes), (_, no) = item.request.rows
    assert lines[1] == f"  {' '.join(map(str, context))} ||  ({len(context)} of context)"
    assert [line.split("||")[1].split("  ")[0].split() for line in lines[2:]] == [
        [str(token) for token in choice] for choice in (yes, no)
    ]
    cut = ask(built, limit=1, max_length=50)[0]
    assert list(preview_tokens(cut, toy_tokenizer))[-1] == (
        f"truncated: {cut.truncated} tokens are cut from the left"
    )


def test_preview_shows_every_context_of_a_cloze() -> None:
    shown = render_item(task("cme_winogrande_ll"), 0, resolve_format("plain", None, generated=False))
    text = "\n".join(preview_text(shown))
    assert text.count("prompt:") == 2
    assert "ice because the ice' || ' was too hot.'" in text


def test_every_row_of_an_item_names_a_file_and_a_line() -> None:
    place = Path(task("cme_rte").place(3).rpartition(":")[0])
    assert place.is_file()
