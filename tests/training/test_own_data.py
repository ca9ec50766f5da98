"""Rows of one's own: found by their columns, checked field by field, learnt where an answer stands."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from transformers import PreTrainedTokenizerFast

from cme_bench.prompts.bos import Bos
from cme_bench.training.options import TrainOptions
from cme_bench.training.own_rows import Completion, Conversation, Instruction
from cme_bench.training.own_set import OwnSet
from cme_bench.training.parts import data_parts
from cme_bench.training.plan import load_own_sets, load_sets, make_plan, usual_format
from cme_bench.training.published import PUBLISHED, git_blob
from cme_bench.training.tokens import Example, TrainingEncoder
from cme_bench.util.errors import UsageError

Make = Callable[..., TrainOptions]
ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "blue"},
    {"instruction": "Add.", "input": "2 + 2", "output": "4"},
]
PAIRS = [{"prompt": "1 + 1 =", "completion": " 2"}, {"prompt": "a b", "completion": " NA"}]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "see you"},
]


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows in the form that the suffix names."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    match file.suffix:
        case ".json":
            file.write_text(json.dumps(rows))
        case ".gz":
            file.write_bytes(gzip.compress(text.encode()))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        case ".csv":
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
            file.write_text("\n".join(lines) + "\n")
        case _:
            file.write_text(text)
    return str(file)


def own(options: TrainOptions, notes: list[str] | None = None) -> OwnSet:
    (found,) = load_own_sets(options, note=(notes if notes is not None else []).append)
    return found


@pytest.fixture
def made(options: Make, tmp_path: Path) -> Callable[..., TrainOptions]:
    """Options over a file of these rows."""

    def make(rows: list[dict[str, Any]], name: str = "mine.jsonl", **changes: Any) -> TrainOptions:
        settings: dict[str, Any] = {"data": write(tmp_path / name, rows), "datasets": "all"}
        return options(**(settings | changes))

    return make


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet", "a.csv"])
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ALPACA, Instruction("Add.", "2 + 2", "4")),
        ([{k: row[k] for k in ("instruction", "output")} for row in ALPACA], Instruction("Add.", "", "4")),
        ([row | {"answer": "x"} for row in ALPACA], Instruction("Add.", "2 + 2", "4")),
        (PAIRS, Completion("a b", " NA")),
    ],
    ids=["alpaca", "without input", "with answer", "pairs"],
)
def test_every_kind_of_file_gives_the_same_rows(
    made: Make, name: str, rows: list[dict[str, Any]], expected: object
) -> None:
    found = own(made(rows, name))
    assert found.rows[1] == expected
    assert found.fingerprint == own(made(rows, "again.jsonl")).fingerprint
    changed = [*rows[:1], {key: f"{value}." for key, value in rows[1].items()}]
    assert found.fingerprint != own(made(changed, "other.jsonl")).fingerprint


def test_conversations_of_every_writing_are_the_same(made: Make) -> None:
    sharegpt = [
        {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
        for m in CHAT
    ]
    plain = own(made([{"messages": CHAT}])).rows[0]
    assert isinstance(plain, Conversation)
    assert [turn.learnt for turn in plain.turns] == [False, False, True, False, True]
    shared = own(made([{"conversations": sharegpt}])).rows[0]
    late = own(made([{"messages": [*CHAT, {"role": "user", "content": "?"}]}])).rows[0]
    assert isinstance(shared, Conversation) and isinstance(late, Conversation)
    assert plain.turns == shared.turns == late.turns
    trl = own(made([{"prompt": CHAT[:4], "completion": CHAT[4:]}])).rows[0]
    weighed = own(made([{"messages": [m | {"weight": int(m is CHAT[4])} for m in CHAT]}])).rows[0]
    assert isinstance(trl, Conversation) and isinstance(weighed, Conversation)
    assert [turn.learnt for turn in trl.turns] == [False] * 4 + [True]
    assert trl.turns == weighed.turns


NOT_READ = [
    ([{"instruction": "a", "output": None}], ":1: output is missing (null), not a text"),
    ([ALPACA[0], {"instruction": "a"}], ":2: output is missing (null), not a text"),
    ([ALPACA[0], {"instruction": "a", "input": "", "output": 4}], ":2: output is the number 4, not a text"),
    ([{"instruction": "a", "input": 3, "output": "4"}], ":1: input is the number 3"),
    ([{"instruction": "a", "output": ["4"]}], ":1: output is a list"),
    ([{"instruction": "a", "output": True}], ":1: output is true without quotation marks"),
    ([{"prompt": "a", "completion": {"b": "c"}}], ":1: completion is a mapping"),
    ([{"prompt": "a", "completion": CHAT[4:]}], ":1: prompt is a text and completion a list"),
    ([{"messages": "hi"}], ":1: messages is a text, not a list of messages"),
    ([{"messages": ["hi"]}], ":1: messages[0] is a text, not a message"),
    ([{"messages": [CHAT[1], {"role": "bot", "content": "x"}]}], ":1: messages[1]: role 'bot' is none of"),
    ([{"messages": [CHAT[1], {"role": "assistant", "content": None}]}], ":1: messages[1].content is missing"),
    ([{"messages": [CHAT[1] | {"tool_calls": [1]}, CHAT[2]]}], ":1: messages[0] has 'tool_calls'"),
    ([{"messages": [CHAT[1], CHAT[2] | {"weight": 2}]}], ":1: messages[1].weight is 2, not 0 or 1"),
    ([{"question": "a", "answer": "b"}], "columns question, answer are no training rows"),
    ([{"prompt": "a", "completions": "b"}], "did you mean 'completion'?"),
    ([ALPACA[0] | PAIRS[0]], "fit several forms: instruction (instruction, output), completion"),
    ([PAIRS[0] | {"label": False}], "are preferences"),
    ([ALPACA[0], ALPACA[0] | {"input": "\ud800"}], ":2: input holds a text with half a character"),
    ([{"messages": CHAT, "conversations": CHAT}], "has the columns messages and conversations"),
]


@pytest.mark.parametrize(("rows", "message"), NOT_READ, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_no_row_is_named(made: Make, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        own(made(rows))
    assert message in str(caught.value)
    assert "mine.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_a_value_of_many_brackets_is_one_line(made: Make) -> None:
    chosen = made([])
    depth = 100_000
    Path(str(chosen.data)).write_text(f'{{"prompt": {"[" * depth}{"]" * depth}, "completion": "x"}}\n')
    with pytest.raises(UsageError, match=r"mine.jsonl:1: not a JSON object"):
        own(chosen)


def test_an_ambiguous_file_is_read_as_it_is_told(made: Make) -> None:
    both = [a | b for a, b in zip(ALPACA, PAIRS, strict=True)]
    assert own(made(both, row_form="completion")).rows[0] == Completion("1 + 1 =", " 2")
    assert own(made(both, row_form="instruction")).rows[1] == Instruction("Add.", "2 + 2", "4")
    with pytest.raises(UsageError, match=r"no column messages \(--row-form messages\)"):
        own(made(both, row_form="messages"))


def test_rows_that_cannot_be_learnt_are_counted_and_named(made: Make, toy_tokenizer: Any) -> None:
    empty = [{"instruction": "a", "output": f"{' ' * n}"} for n in range(4)]
    long = {"instruction": "a", "output": "z" * 40}
    rows = [*ALPACA, *empty, {"instruction": " ", "output": "b"}, long, *ALPACA]
    chosen = made(rows, max_length=32, max_steps=None, epochs=1, batch_size=1)
    notes: list[str] = []
    sets = load_sets(chosen, note=notes.append)
    encoder = TrainingEncoder(toy_tokenizer, "teamlora", 32)
    plan = make_plan(chosen, None, encoder, processes=1, note=notes.append, sets=sets)
    file = chosen.data
    assert f"note: {file}: 2 rows repeat an earlier one; all stay in" in notes
    assert f"note: {file}: 4 rows left out, with an empty answer: {file}:3, {file}:4, {file}:5, ..." in notes
    assert f"note: {file}: 1 row left out, without a prompt: {file}:7" in notes
    assert (
        f"note: {file}: 1 row left out, with an answer that does not fit --max-length 32: {file}:8" in notes
    )
    assert len(plan.examples) == 4 and plan.examples.cut_targets == 0
    (part,) = plan.mixture["datasets"][0]["parts"]
    assert (part["rows"], part["kept"], part["repeated"]) == (10, 4, 2)
    assert sum(part["left_out"].values()) == 6


def test_a_file_of_which_nothing_is_left_is_an_error(made: Make, toy_tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=r"mine.jsonl:1; no row is left to train on"):
        own(made([{"prompt": "a", "completion": ""}]))
    chosen = made([{"prompt": "a", "completion": "z" * 40}], max_length=32)
    encoder = TrainingEncoder(toy_tokenizer, "plain", 32)
    with pytest.raises(UsageError, match=r"does not fit --max-length 32: .*:1; no row is left"):
        make_plan(chosen, None, encoder, processes=1, note=lambda _: None)


def test_held_out_rows_are_learnt_in_no_copy(made: Make) -> None:
    rows = [{"prompt": f"p{i % 6}", "completion": "c"} for i in range(12)]
    found = own(made(rows, holdout=2))
    held = {found.rows[i] for i in found.held}
    assert len(found.held) == len(held) == 2 and len(found) == 8
    assert not held & {found.rows[i] for i in found.kept}
    assert [*own(made(rows, holdout=2, seed=5)).held] == [*found.held]
    assert len(own(made(rows, cap=3))) == 3


# ---- what is learnt


def texts(example: Example, tokenizer: Any) -> tuple[str, list[str]]:
    """The whole example, and its learnt pieces."""
    edges = [example.source_length, *(edge for gap in example.gaps for edge in gap), len(example.ids)]
    pieces = [tokenizer.decode(example.ids[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return tokenizer.decode(example.ids), pieces


def encoded(tokenizer: Any, form: str, row: Any, max_length: int = 512, bos: Bos | None = None) -> Example:
    (example,) = TrainingEncoder(tokenizer, form, max_length, bos).encode([row])
    return example


def test_a_pair_is_learnt_as_it_stands(toy_tokenizer: Any) -> None:
    row = Completion("1 + 1 =", " 2")
    assert texts(encoded(toy_tokenizer, "plain", row), toy_tokenizer) == ("1 + 1 = 2</s>", [" 2</s>"])
    written_out = texts(encoded(toy_tokenizer, "plain", Completion("a", "b</s>")), toy_tokenizer)
    assert written_out == ("ab</s>", ["b</s>"])


def test_an_instruction_is_asked_in_the_format_that_is_saved(toy_tokenizer: Any) -> None:
    row = Instruction("Add.", "2 + 2", "4")
    whole, learnt = texts(encoded(toy_tokenizer, "teamlora", row), toy_tokenizer)
    assert (whole, learnt) == ("Add.\n2 + 2</s>4</s>", ["4</s>"])
    whole, _ = texts(encoded(toy_tokenizer, "alpaca", row), toy_tokenizer)
    assert whole == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 + 2\n\n### Response:\n4</s>"
    )
    whole, _ = texts(encoded(toy_tokenizer, "alpaca", replace(row, input="")), toy_tokenizer)
    assert (
        whole.startswith("Below is an instruction that describes a task. Write") and "### Input" not in whole
    )
    assert texts(encoded(toy_tokenizer, "plain", row), toy_tokenizer)[1] == [" 4</s>"]


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% else %}{{ m['content'] }}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (  # Qwen3's way: thoughts of earlier turns are left out, the last answer gets an empty one
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% set said = m['content'] %}"
    "{% if m['role'] == 'assistant' %}{% set thought = '' %}{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1].strip() %}{% endif %}"
    "{% if loop.index0 > ns.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{% endif %}"
    "{{ said }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chat_tokenizer(toy_tokenizer: PreTrainedTokenizerFast) -> Callable[[str], PreTrainedTokenizerFast]:
    def with_template(template: str) -> PreTrainedTokenizerFast:
        made = PreTrainedTokenizerFast(
            tokenizer_object=toy_tokenizer.backend_tokenizer,
            bos_token="<s>",
            eos_token="</s>",
            pad_token="<pad>",
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        )
        made.chat_template = template
        return made

    return with_template


def conversation(*messages: dict[str, Any]) -> Conversation:
    from cme_bench.authoring.table_files import Table
    from cme_bench.training.own_rows import read_rows

    (row,) = read_rows(Table([{"messages": list(messages)}], "rows.jsonl", [1]), "messages")
    assert isinstance(row, Conversation)
    return row


def test_every_answer_is_learnt_as_the_template_says(chat_tokenizer: Any) -> None:
    """The mask equals, token by token, that of transformers from the template's own generation marks."""
    tokenizer = chat_tokenizer(CHATML)
    example = encoded(tokenizer, "chat", conversation(*CHAT))
    theirs = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    mask = [0] * example.source_length + [1] * (len(example.ids) - example.source_length)
    for start, stop in example.gaps:
        mask[start:stop] = [0] * (stop - start)
    assert list(example.ids) == theirs["input_ids"][: len(example.ids)]
    assert mask == theirs["assistant_masks"][: len(mask)]
    assert not any(theirs["assistant_masks"][len(mask) :])
    assert texts(example, tokenizer)[1] == ["hello<|im_end|>", "see you<|im_end|>"]


def test_a_template_without_an_end_gets_eos(toy_tokenizer: Any) -> None:
    whole, learnt = texts(encoded(toy_tokenizer, "chat", conversation(*CHAT[1:3])), toy_tokenizer)
    assert (whole, learnt) == ("[user] hi\n[assistant] hello</s>", ["hello</s>"])


def test_thoughts_are_learnt_where_the_template_shows_them(chat_tokenizer: Any) -> None:
    tokenizer = chat_tokenizer(THINKING)
    thought = {"role": "assistant", "content": "<think>Hm.</think>hello"}
    _, learnt = texts(encoded(tokenizer, "chat", conversation(CHAT[1], thought)), tokenizer)
    assert learnt == ["<think>\nHm.\n</think>\n\nhello<|im_end|>"]
    _, learnt = texts(encoded(tokenizer, "chat", conversation(*CHAT)), tokenizer)
    assert learnt == ["hello<|im_end|>", "<think>\n\n</think>\n\nsee you<|im_end|>"]
    with pytest.raises(UsageError, match=r"^rows.jsonl:1: the chat template of .* shows answer 1 otherwise"):
        encoded(tokenizer, "chat", conversation(CHAT[1], thought, *CHAT[3:]))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[-1]['content'] }}", "leaves out message 1 (user)"),
        (
            CHATML.replace(
                "{% for",
                "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{% for",
                1,
            ).replace("hi", "hi"),
            "",
        ),
        (
            CHATML.replace(
                "{{ m['content'] }}<|im_end|>{% endg", "{{ m['content'] | upper }}<|im_end|>{% endg"
            ),
            "shows answer 1 otherwise",
        ),
    ],
    ids=["only the last turn", "no system turn", "upper case"],
)
def test_a_template_that_hides_something(chat_tokenizer: Any, template: str, message: str) -> None:
    tokenizer = chat_tokenizer(template)
    if not message:  # a system turn stands at the head of the first question then
        whole, _ = texts(encoded(tokenizer, "chat", conversation(*CHAT)), tokenizer)
        assert whole.startswith("<|im_start|>user\nBe brief.\n\nhi<|im_end|>")
        return
    with pytest.raises(UsageError) as caught:
        encoded(tokenizer, "chat", conversation(*CHAT[1:]))
    assert message in str(caught.value) and str(caught.value).startswith("rows.jsonl:1: ")


def test_an_answer_may_stand_first_and_words_may_come_twice(chat_tokenizer: Any) -> None:
    tokenizer = chat_tokenizer(CHATML)
    greeting = {"role": "assistant", "content": "hi"}
    _, learnt = texts(encoded(tokenizer, "chat", conversation(greeting, CHAT[1], greeting)), tokenizer)
    assert learnt == ["hi<|im_end|>", "hi<|im_end|>"]


def test_a_long_conversation_loses_its_beginning(chat_tokenizer: Any) -> None:
    tokenizer = chat_tokenizer(CHATML)
    whole = encoded(tokenizer, "chat", conversation(*CHAT))
    short = encoded(tokenizer, "chat", conversation(*CHAT), 40)
    assert short.ids == whole.ids[-40:]
    assert texts(short, tokenizer)[1][-1] == "see you<|im_end|>"
    assert short.cut_source + short.cut_target == len(whole.ids) - 40


# ---- what --data names, and what it becomes


def test_the_format_is_that_of_the_rows(made: Make, options: Make, tmp_path: Path) -> None:
    def usual(chosen: TrainOptions) -> str:
        return usual_format(chosen, load_own_sets(chosen, note=lambda _: None))

    pairs, chats = write(tmp_path / "p.jsonl", PAIRS), write(tmp_path / "c.jsonl", [{"messages": CHAT}])
    assert usual(options()) == usual(made(ALPACA)) == "teamlora"
    assert usual(made(PAIRS)) == "plain"
    assert usual(options(data=chats)) == usual(options(data=("mini", pairs, chats))) == "chat"
    assert usual(options(data=("mini", pairs))) == "teamlora"
    named = "commonsense-170k=" + write(tmp_path / "n.json", ALPACA)
    assert usual(options(data=named)) == "llm-adapters"
    assert usual(made(ALPACA, prompt_format="alpaca")) == "alpaca"
    with pytest.raises(UsageError, match="holds messages, which only chat can show"):
        usual(options(data=chats, prompt_format="plain"))


def test_parts_have_the_shares_that_they_are_given(made: Make, tmp_path: Path, toy_tokenizer: Any) -> None:
    file = write(tmp_path / "a.jsonl", ALPACA)
    chosen = made(ALPACA, data=("mini=3", f"{file}=1"), datasets="sst2,rte", max_steps=8, batch_size=10)
    encoder = TrainingEncoder(toy_tokenizer, "teamlora", 256)
    plan = make_plan(chosen, None, encoder, processes=1, note=lambda _: None)
    shares = {each["dataset"]: each["weight"] for each in plan.mixture["datasets"]}
    assert shares["rows"] == pytest.approx(0.25) and sum(shares.values()) == pytest.approx(1.0)
    drawn = {each["dataset"]: each["examples"] for each in plan.mixture["datasets"]}
    assert sum(drawn.values()) == 80 and abs(drawn["rows"] - 20) <= 4


def test_a_published_file_is_known_by_its_content(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    chosen = made([row | {"answer": "x"} for row in ALPACA], "mine.json")
    named = replace(chosen, data=f"commonsense-170k={chosen.data}")
    own(named, notes)
    assert any(
        "not the published file (LLM-Adapters, ft-training_set/commonsense_170k.json): 2 rows of 170,420" in n
        for n in notes
    )
    blob = git_blob(Path(str(chosen.data)).read_bytes())
    monkeypatch.setitem(PUBLISHED, "commonsense-170k", replace(PUBLISHED["commonsense-170k"], blob=blob))
    own(named, notes := [])
    assert "commonsense-170k: the published file" in notes
    assert git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # as `git hash-object` says


def test_folders_are_rows_or_datasets(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    train = write(tmp_path / "mine" / "train.jsonl", PAIRS)
    write(tmp_path / "mine" / "test.jsonl", PAIRS)
    (part,) = data_parts(str(tmp_path / "mine"))
    assert (part.kind, part.files, [f.name for f in part.left_out]) == (
        "rows",
        (Path(train),),
        ["test.jsonl"],
    )
    (tmp_path / "sets" / "rte").mkdir(parents=True)
    write(tmp_path / "sets" / "rte" / "train.jsonl", PAIRS)
    assert data_parts(str(tmp_path / "sets"))[0].kind == "cme"
    write(tmp_path / "sets" / "more.jsonl", PAIRS)
    with pytest.raises(UsageError, match=r"say cme=.*sets or rows=.*sets"):
        data_parts(str(tmp_path / "sets"))
    assert data_parts(f"cme={tmp_path}/sets")[0].kind == "cme"
    assert data_parts(f"rows={tmp_path}/sets=2")[0].weight == 2
    assert [p.kind for p in data_parts([f"{train}=2", "cme=mini=1"])] == ["cme", "rows"]
    assert (data_parts("cme=2")[0].place, data_parts("cme=2")[0].weight) == ("hub", 2)
    odd = tmp_path / "part=3"
    odd.mkdir()
    write(odd / "a.jsonl", PAIRS)
    assert (data_parts(str(odd))[0].weight, data_parts(f"{odd}=2")[0].weight) == (None, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("commonsense-170k", "say where its rows are, as commonsense-170k=FILE (LLM-Adapters, ft-"),
        ("math-14k=/nowhere.json", "--data math-14k=/nowhere.json: no such file or folder"),
        ("commonsense170k=x.json", "did you mean 'commonsense-170k'?"),
        ("cme=mini=0", "--data cme=mini=0: a weight is a number above 0"),
        ("cme=mini=nan", "a weight is a number above 0"),
        (("cme=mini=1", "mini"), "--data mini: give every --data a weight (mini=1), or none"),
        (("hub", "mini"), "names CME's rows twice"),
        ("hub:nobody", "write hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"),
        ("nowhere.jsonl", "--data nowhere.jsonl: no such folder or file"),
    ],
)
def test_what_data_cannot_be(options: Make, data: Any, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_own_sets(options(data=data), note=lambda _: None)
    assert message in str(caught.value)


def test_datasets_need_cme(made: Make) -> None:
    with pytest.raises(UsageError, match="--datasets names datasets of CME, and --data has none"):
        load_sets(made(ALPACA, datasets="rte"), note=lambda _: None)
