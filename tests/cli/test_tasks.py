"""``cme-bench tasks``: lists, texts, exported files, and that listing stays quick."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cme_bench.cli import app
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError

HEAVY = {"torch", "transformers", "lm_eval", "datasets", "pandas", "numpy", "jinja2", "pyarrow"}


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["tasks", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_ls_names_every_task_in_aligned_columns() -> None:
    header, *lines = invoke("ls").splitlines()
    assert header.split() == ["domain", "dataset", "task", "form", "metric", "items", "licence", "random"]
    assert [line.split()[2] for line in lines] == list(load_suite().tasks)
    start = header.index("form")
    assert {line[start:].split()[0] for line in lines} == {"generate", "likelihood"}
    [rte] = [line for line in lines if " cme_rte_ll " in line]
    assert rte.split() == "entailment rte cme_rte_ll likelihood acc 277 none stated (GLUE) 50.0".split()


def test_ls_takes_names_and_other_folders(tmp_path: Path) -> None:
    assert [line.split()[2] for line in invoke("ls", "entailment_ll").splitlines()[1:]] == ["cme_rte_ll"]
    own = "task: own\ntest_split: test\ndataset_path: x/y\ndoc_to_text: x\ndoc_to_target: y\n"
    (tmp_path / "own.yaml").write_text(own)
    assert invoke("ls", "--include", str(tmp_path)).splitlines()[-1].split()[:4] == [
        "other",
        "own",
        "own",
        "generate",
    ]
    with pytest.raises(UsageError, match="unknown task 'cme_rt'; did you mean"):
        invoke("ls", "cme_rt")


def test_show_is_the_merged_file_with_places() -> None:
    text = invoke("show", "cme_arc_easy_ll")
    assert yaml.safe_load(text) == load_suite().task("cme_arc_easy_ll").config
    [line] = [line for line in text.splitlines() if line.startswith("output_type")]
    assert line.startswith("output_type: multiple_choice  # ")
    file, _, number = line.rpartition("# ")[2].rpartition(":")
    assert Path(file).read_text().splitlines()[int(number) - 1] == "output_type: multiple_choice"
    assert "science/_arc_easy.yaml:" in text


def test_preview_shows_prompts_and_the_hash() -> None:
    text = invoke("preview", "cme_rte_ll", "-n", "2", "--shots", "1")
    assert text.count("== cme_rte_ll, item ") == 2
    assert "|| ' yes'" in text
    assert "tokens:" not in text
    *_, form, last = text.splitlines()
    assert form == "== format plain, policy joint, 1 shots"
    assert len(last.removeprefix("hash ")) == 64
    assert text.count("exemplars: rows 0 of train") == 2
    assert invoke("preview", "cme_rte_ll").splitlines()[-1] != last


def test_preview_with_a_model_shows_its_token_ids(
    tmp_path: Path, tiny_model: object, toy_tokenizer: object
) -> None:
    tiny_model.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    toy_tokenizer.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    text = invoke("preview", "cme_rte_ll", "--model", str(tmp_path))
    assert "tokens:" in text
    assert "truncated: " in text  # the toy model takes 64 tokens
    # what is tokenised is the prompt that is shown, not another item's
    context, *_ = [line for line in text.splitlines() if line.endswith(" of context)")]
    begin, *cut = [int(token) for token in context.split(" ||")[0].split()]
    assert begin == toy_tokenizer.bos_token_id  # type: ignore[attr-defined]  # a llama's prompts have one
    assert "note: the tokenizer of " in text
    tail = toy_tokenizer.decode(cut)  # type: ignore[attr-defined]
    shown = text.split("scored:")[0].replace("\n  | ", "\n").rstrip()
    assert shown.endswith(tail.rstrip())
    ids = [int(token) for token in toy_tokenizer.encode(" yes")]  # type: ignore[attr-defined]
    assert f"    || {' '.join(map(str, ids))}  " in text


def test_preview_of_a_chat_with_a_system_prompt(tiny_checkpoint: Path) -> None:
    arguments = ("preview", "cme_rte", "--model", str(tiny_checkpoint), "--system", "Be brief.")
    text = invoke(*arguments)
    assert "  | [system] Be brief.\n" in text
    assert "== format chat+system " in text
    assert invoke(*arguments[:-1], "Be kind.").splitlines()[-1] != text.splitlines()[-1]


def test_lock_compares_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("lock", "--check").startswith("0 of ")
    monkeypatch.setattr("cme_bench.authoring.lock.lock_file", lambda: tmp_path / "lock.json")
    result = CliRunner().invoke(app, ["tasks", "lock", "--check"])
    assert (result.exit_code, "cme_rte is new" in result.stdout) == (1, True)
    invoke("lock")
    assert invoke("lock", "--check").startswith("0 of ")


def test_export_writes_what_it_says(tmp_path: Path) -> None:
    text = invoke("export", "entailment,cme_rte_ll", "--data", "mini", "-o", str(tmp_path / "out"))
    expected = f"lm_eval --include_path {tmp_path}/out --tasks entailment,cme_rte_ll runs them\n"
    assert text == f"2 tasks in {tmp_path}/out; {expected}"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["cme_rte.yaml", "cme_rte_ll.yaml"]


@pytest.mark.parametrize("arguments", [["--help"], ["tasks", "--help"], ["tasks", "ls"], ["run", "--help"]])
def test_help_and_ls_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from cme_bench.cli import main; from cme_bench.util.deferred import waits\n"
        "try: main()\n"
        "finally:\n"
        "    others = [n for n in sys.modules if not (n.startswith('cme_bench') or waits(n))]\n"
        f"    print(len(others), *sorted(set(others) & {HEAVY!r}), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout
    count, *heavy = result.stderr.split()
    assert not heavy
    assert int(count) < 260, "benchmarks/start.py says what they cost"
