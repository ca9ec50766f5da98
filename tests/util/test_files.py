"""Whole files appear in one step, and what cannot be read or written is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.files import read_json, replacing, write_json, write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_text(file, "old")
    with pytest.raises(RuntimeError), replacing(file) as stream:
        stream.write(b"half of")
        raise RuntimeError
    assert file.read_text() == "old"
    write_json(file, {"b": 1})
    assert read_json(file) == {"b": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")
    with replacing(file) as stream:
        stream.write(b"new")
        stream.flush()
        assert file.read_text() == "old"
    assert file.read_text() == "new"


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CmeError, match=r"cannot write .*file/a\.txt \(Not a directory\); what was stored"):
        write_text(tmp_path / "file" / "a.txt", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file; is .* a cake"), (b"{", "broken JSON"), (b"[1]", "not a JSON object")],
)
def test_what_is_no_json_object_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"a.json: {message}"):
        read_json(file, kind="a cake")
