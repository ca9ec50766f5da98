"""Reading task files: places, includes, broken input."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cme_bench.harness.yaml_loader import FunctionRef, load_yaml
from cme_bench.tasks.yaml_dump import dump_with_places, dump_yaml
from cme_bench.util.errors import UsageError


def write(folder: Path, **files: str) -> Path:
    """Files by stem; the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_local_keys_win_over_included_ones_and_every_key_has_a_place(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        a="task: t\ninclude: b.yaml\nmetadata:\n  version: 2\n",
        b="output_type: multiple_choice\ntask: other\n",
    )
    loaded = load_yaml(file, root=tmp_path)
    assert loaded.values == {"output_type": "multiple_choice", "task": "t", "metadata": {"version": 2}}
    assert loaded.where["task"] == f"{tmp_path}/a.yaml:1"
    assert loaded.where["metadata.version"] == f"{tmp_path}/a.yaml:4"
    assert loaded.where["output_type"] == f"{tmp_path}/b.yaml:1"


def test_of_several_includes_the_last_wins(tmp_path: Path) -> None:
    file = write(tmp_path, a="include: [b.yaml, c.yaml]", b="x: 1\ny: 1", c="y: 2")
    assert load_yaml(file, root=tmp_path).values == {"x": 1, "y": 2}


def test_functions_are_named_and_not_imported(tmp_path: Path) -> None:
    file = write(tmp_path, a="task: t\nprocess_docs: !function nosuch.module.f\n")
    ref = load_yaml(file, root=tmp_path).values["process_docs"]
    assert ref == FunctionRef("nosuch.module.f", file, 2)
    assert not ref.is_local
    (tmp_path / "nosuch").mkdir()
    (tmp_path / "nosuch" / "module.py").touch()
    assert ref.is_local


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("task: [1\n", 2, "did not find expected"),
        ("task: t\n\tx: 1\n", 2, "found a tab character|cannot start any token"),
        ("task: t\nx: !python/object:os.system y\n", 2, "could not determine a constructor"),
        ("- a list\n", 1, "mapping of keys"),
        ("", 1, "mapping of keys"),
        ("task: t\nx: 1\ntask: u\n", 3, "'task' stands twice, first in line 1"),
        ("metadata:\n  a: 1\n  a: 2\n", 3, "'metadata.a' stands twice, first in line 2"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    file = write(tmp_path, broken=text)
    with pytest.raises(UsageError, match=message) as caught:
        load_yaml(file, root=tmp_path)
    assert str(caught.value).startswith(f"{file}:{line}: ")


@pytest.mark.parametrize("include", ["../outside.yaml", "/etc/hostname"])
def test_an_include_stays_below_its_folder(tmp_path: Path, include: str) -> None:
    (tmp_path / "outside.yaml").write_text("x: 1")
    (tmp_path / "in").mkdir()
    file = write(tmp_path / "in", a=f"include: {include}")
    with pytest.raises(UsageError, match=r"a\.yaml: include .* lies outside"):
        load_yaml(file, root=tmp_path / "in")


def test_include_cycles_and_missing_includes_are_errors(tmp_path: Path) -> None:
    file = write(tmp_path, a="include: b.yaml", b="include: a.yaml")
    with pytest.raises(UsageError, match="include cycle"):
        load_yaml(file, root=tmp_path)
    file = write(tmp_path, c="include: nosuch.yaml")
    with pytest.raises(UsageError, match=r"c\.yaml:1: include nosuch\.yaml: no such file"):
        load_yaml(file, root=tmp_path)


VALUES = {
    "task": "t",
    "doc_to_text": "one\n\n  two: # no comment\nlast",
    "until": ["\n\n", "a\nb\n"],
    "process_docs": FunctionRef("package.f", Path("x.yaml"), 1),
    "metadata": {"version": 1, "answer": {"type": "label"}, "none": None, "empty": {}},
}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    where = {"task": "t.yaml:1", "doc_to_text": "t.yaml:2", "metadata": "t.yaml:9", "metadata.version": "u:1"}
    for text in (dump_yaml(VALUES), dump_with_places(VALUES, where)):
        read = load_yaml(write(tmp_path, t=text), root=tmp_path).values
        assert read.pop("process_docs").name == "package.f"
        assert read == {key: value for key, value in VALUES.items() if key != "process_docs"}
        assert list(yaml.compose(text).value[1][1].value.splitlines()) == VALUES["doc_to_text"].splitlines()


def test_places_stand_behind_their_keys() -> None:
    text = dump_with_places({"a": 1, "m": {"b": 2, "c": "x\ny"}}, {"a": "f:1", "m": "f:2", "m.c": "g:7"})
    assert text == "a: 1  # f:1\nm:  # f:2\n  b: 2\n  c: |-  # g:7\n    x\n    y\n"
