"""Reading files of any common form: what the rows are, or one line that says what to add."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from cme_bench.authoring.guess import guess
from cme_bench.authoring.new_options import FileOptions
from cme_bench.authoring.table_files import read_table
from cme_bench.util.errors import UsageError

AB = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "a,b\n1,x\n2,y\n"),
        ("t.csv", "a;b\n1;x\n2;y\n"),
        ("t.csv", "a|b\n1|x\n2|y\n"),
        ("t.csv", "a\tb\n1\tx\n2\ty\n"),
        ("t.csv", "sep=;\na;b\n1;x\n2;y\n"),
        ("t.csv", "a, b\n1, x\n2, y\n"),
        ("t.csv", "\ufeffa,b\r\n1,x\r\n\r\n2,y\r\n,\r\n"),
        ("t.csv", ",a,b\n0,1,x\n1,2,y\n"),
        ("t.csv", "a,b,\n1,x,\n2,y,\n"),
        ("t.csv", "a,b\n1,x,\n2,y,\n"),
        ("t.csv", "a,b\n1,x\na,b\n2,y\n\x1a"),
        ("t.csv", "# made by hand\r\n# twice\r\na,b\r\n1,x\r\n2,y\r\n"),
        ("t.csv", "a, b\r1, x\r2, y\r"),
        ("t.TSV", "a\tb\n1\tx\n2\ty\n"),
        ("t.tsv", "a,b\n1,x\n2,y\n"),
        ("t.tsv.gz", "a\tb\n1\tx\n2\ty\n"),
        ("t.jsonl", '{"a": "1", "b": "x"}\n\n{"a": "2", "b": "y"}\n'),
        ("t.jsonl", '{"a": "1", "b": "x"}\r{"a": "2", "b": "y"}\r'),
        ("t.jsonl", '{"a": "1", "b": "x"}\n\ufeff{"a": "2", "b": "y"}\n'),
        ("t.jsonl", '[{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]'),
        ("t.json", '{"version": 1, "data": [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]}'),
        ("t.ndjson", '{"a": "1", "b": "x"}\n{"a": "2", "b": "y"}'),
    ],
)
def test_forms_that_say_the_same(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    packed = content.encode()
    file.write_bytes(gzip.compress(packed) if name.endswith(".gz") else packed)
    assert list(read_table(file).rows) == AB


def zipped(content: bytes, *names: str) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("__MACOSX/._t.csv", b"junk")
        for name in names:
            made.writestr(name, content)
    return archive.getvalue()


def zstandard(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("t.csv.gz", gzip.compress),
        ("t.CSV.GZ", gzip.compress),
        ("t.csv.bz2", bz2.compress),
        ("t.csv.xz", lzma.compress),
        ("t.csv.zst", zstandard),
        ("t.csv.zip", lambda content: zipped(content, "any.name")),
        ("t.zip", lambda content: zipped(content, "rows/t.csv")),
        ("t.csv", gzip.compress),
    ],
)
def test_packed_files_are_read_as_what_they_hold(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    file = tmp_path / name
    file.write_bytes(pack(b"a,b\n1,x\n2,y\n"))
    assert list(read_table(file).rows) == AB


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv.gz", b"a,b", ": broken gzip file ("),
        ("t.csv.gz", gzip.compress(b"a" * 99)[:-9], ": broken gzip file ("),
        ("t.csv.zst", zstandard(b"a" * 99)[:-3], ": broken Zstandard file ("),
        ("t.csv.xz", b"a,b", ": broken xz file ("),
        (
            "t.zip",
            zipped(b"a", "a.csv", "b.csv"),
            ": an archive of rows holds one file, but this one has a.csv, b",
        ),
        ("t.zip", zipped(b"a"), ": an archive of rows holds one file, but this one has no file"),
        ("t.zip", b"PK\x03\x04", ": broken zip file ("),
        (
            "t.xlsx",
            zipped(b"a", "xl/workbook.xml"),
            ": save the sheet as CSV (UTF-8); rows are read from .jsonl",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "",  # bytes hold the time
)
def test_what_cannot_be_unpacked_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_table(file)
    assert str(caught.value).startswith(f"{file}{message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    text = "a,b\n1,x\n2,ü\n" if name == "t.csv" else '{"a": "1", "b": "x"}\n{"a": "2", "b": "ü"}\n'
    file = tmp_path / name
    file.write_text(text, encoding=encoding)
    with pytest.raises(UsageError, match=f"UTF-16 without a byte order mark; say --encoding {encoding}$"):
        read_table(file)
    assert read_table(file, FileOptions(encoding=encoding)).rows[1]["b"] == "ü"


def test_a_backslash_may_keep_a_quotation_mark(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('a,b\n"Say \\"hi\\", \\frac",x\n"2",y\n')
    read = read_table(file)
    assert [row["a"] for row in read.rows] == ['Say "hi", \\frac', "2"]
    assert any("read as a quotation mark" in note for note in read.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": ["1", "2"], "b": ["x", "y"]}', "holds one object of columns; write one object a row"),
        ('{"a": {"0": "1", "1": "2"}, "b": {"0": "x", "1": "y"}}', "holds one object of columns"),
        ('{"columns": ["a"], "index": [0], "data": [["1"]]}', "holds one object of columns"),
        ('{"train": [{"a": 1}], "test": [{"a": 2}]}', "holds several lists of rows, train, test"),
        ("[]", "holds no rows"),
    ],
)
def test_json_that_is_no_list_of_rows_says_how_to_write_one(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "t.json"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_table(file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_one_line_of_json_lines_is_one_row(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "hi"}], "answer": "x"}')
    assert read_table(file).columns == ["messages", "answer"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_decides_the_encoding(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text("frage,b\nCafé?,x\n", encoding=encoding)
    assert list(read_table(file).rows) == [{"frage": "Café?", "b": "x"}]


def test_another_encoding_is_asked_for_and_taken(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("q,b\nx,y\nCafé à la crème?,x\n", encoding="cp1252")
    with pytest.raises(UsageError, match=rf"{file}:3: not UTF-8 text \(byte \d+\); say --encoding cp125\d"):
        read_table(file)
    assert read_table(file, FileOptions(encoding="cp1252")).rows[1]["q"] == "Café à la crème?"
    with pytest.raises(UsageError, match="--encoding latin9x: no such encoding"):
        read_table(file, FileOptions(encoding="latin9x"))


def test_quotation_marks_that_are_characters(tmp_path: Path) -> None:
    file = tmp_path / "glue.tsv"
    file.write_text('sentence\tlabel\n"quoted start\t0\nfine\t1\n')
    table = read_table(file)
    assert [row["sentence"] for row in table.rows] == ['"quoted start', "fine"]
    assert "quotation marks" in table.notes[0]
    file = tmp_path / "quote.csv"
    file.write_text('text,label\n"Yes" he said,a\nplain,b\n')
    assert read_table(file).rows[0]["text"] == '"Yes" he said'


def test_rows_that_quotation_marks_may_swallow_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "glue.tsv"
    file.write_text('sentence\tlabel\n"one\t0\ntwo\t1\nthree"\t1\n')
    with pytest.raises(
        UsageError, match="1 rows if quotation marks enclose fields, 3 if they are characters"
    ):
        read_table(file)
    assert len(read_table(file, FileOptions(quotes="")).rows) == 3
    assert len(read_table(file, FileOptions(quotes='"')).rows) == 1


def test_long_fields_and_line_breaks_in_them(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    long = "word " * 40_000
    file.write_text(f'q,a\n"{long}\nmore",x\n"say ""hi""",y\n')
    table = read_table(file)
    assert [row["q"] for row in table.rows] == [f"{long}\nmore", 'say "hi"']
    assert table.place(1) == f"{file}:4"


def test_words_that_mean_missing_elsewhere_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("q,a\nNA,None\nnull,nan\n007,1e3\n12345678901234567890,0.50\n")
    rows = read_table(file).rows
    assert [tuple(row.values()) for row in rows] == [
        ("NA", "None"),
        ("null", "nan"),
        ("007", "1e3"),
        ("12345678901234567890", "0.50"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n", ":3: 1 fields, but the header has 2"),
        ("a,b\n1,2,3\n", ":2: 3 fields, but the header has 2"),
        ("a,a\n1,2\n", ":1: two columns are called 'a'"),
        ('a,b\n"1","x\n"2","y"\n', ":2: broken CSV ("),
        ("a,b\n1,x,\n2,y\n", ":2: 3 fields, but the header has 2"),
        ("a,b\n1,x\0\n", ":2: a NUL character"),
        ("# made by hand\na,b\n1,2,3\n", ":3: 3 fields, but the header has 2"),
        ("a,b\n", ": holds no rows"),
        ("", ": holds no rows"),
        ("a;b,c\n1;2,3\n", ": can be read as parted by"),
    ],
)
def test_broken_csv_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "t.csv"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_table(file)
    assert str(caught.value).startswith(f"{file}{message}")


def test_json_values_that_readers_lose(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"a": 123456789012345678901234567890, "b": NaN}\n{"a": 1, "c": "only here"}\n')
    table = read_table(file)
    assert list(table.rows) == [
        {"a": "123456789012345678901234567890", "b": None, "c": None},
        {"a": 1, "b": None, "c": "only here"},
    ]
    assert any("not in every row" in note for note in table.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n[1]\n', ":2: not a JSON object but a list"),
        ('{"a": 1}\n{"a": 1, "a": 2}\n', ":2: not a JSON object (key 'a' stands twice)"),
        ('{"a": 1\n', ":1: not a JSON object ("),
        ("[1, 2]", ": holds neither a list of JSON objects nor one a line"),
    ],
)
def test_broken_json_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(content)
    with pytest.raises(UsageError) as caught:
        read_table(file)
    assert str(caught.value).startswith(f"{file}{message}")


def test_parquet_of_datasets_names_its_labels(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"text": "a b c", "label": 1}, {"text": "d e f", "label": 0}])
    names = datasets.ClassLabel(names=["bad", "good"])
    rows.cast_column("label", names).to_parquet(str(tmp_path / "t.parquet"))
    read = read_table(tmp_path / "t.parquet")
    assert read.label_names == {"label": ["bad", "good"]}
    assert guess(read).labels == ("bad", "good")


def test_parquet_with_what_json_cannot_hold(tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    columns: dict[str, Any] = {
        "q": ["a", "b"],
        "price": pyarrow.array([Decimal("1.50"), None]),
        "image": pyarrow.array([{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": b"x", "path": "b.png"}]),
        "day": pyarrow.array([0, 1], pyarrow.date32()),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    table = read_table(file)
    assert list(table.rows) == [
        {"q": "a", "price": "1.50", "day": "1970-01-01"},
        {"q": "b", "price": None, "day": "1970-01-02"},
    ]
    assert table.notes == ("column image holds bytes: left out",)
    json.dumps(list(table.rows))
    file.write_text("none")
    with pytest.raises(UsageError, match="not a Parquet file"):
        read_table(file)
    gz = tmp_path / "t.csv.gz"
    gz.write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="broken gzip file"):
        read_table(gz)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.csv", b"PK\x03\x04" + bytes(range(256)), "holds an archive, as an Excel workbook is"),
        ("q.csv", b"\xd0\xcf\x11\xe0" + bytes(range(256)), "holds an Excel workbook"),
        ("q.csv", b"PAR1" + bytes(range(256)), "holds a Parquet file (name it .parquet)"),
        (
            "q.parquet",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "holds a pointer of Git LFS",
        ),
        ("q.jsonl", b"<!DOCTYPE html>\n<html>Not found</html>\n", "holds a web page"),
        ("q.csv", b'[{"question": "a", "answer": "b"}]', "holds JSON; name it .json"),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_table(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: {message}")


def test_single_quotation_marks_around_fields_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("text,label\n'It''s good, really','a'\n'bad','b'\n")
    told = read_table(file, FileOptions(quotes="'"))
    assert [row["text"] for row in told.rows] == ["It's good, really", "bad"]
    file.write_text("text,label\n'good','a'\n'bad','b'\n")
    with pytest.raises(UsageError, match="say --quote single if they enclose fields, --quote no if they are"):
        read_table(file)
    assert read_table(file, FileOptions(quotes="")).rows[0] == {"text": "'good'", "label": "'a'"}


@pytest.mark.parametrize(
    ("content", "is_row"),
    [
        ("positive,I like this film very much\n" + "positive,good one\nnegative,bad one\n" * 5, True),
        ("1,A title\n1,Another\n1,A third\n2,More\n", True),
        ("label,How do you like this film?\n" + "positive,good one\nnegative,bad one\n" * 5, False),
        ("A,text\nA,good\nA,bad\n", False),
    ],
)
def test_a_first_line_that_is_a_row_is_named(tmp_path: Path, content: str, is_row: bool) -> None:
    file = tmp_path / "q.csv"
    file.write_text(content)
    if not is_row:
        assert read_table(file).rows
        return
    with pytest.raises(UsageError, match=r"q.csv:1: seems to be a row, not the names of columns"):
        read_table(file)


def test_bytes_that_are_texts_are_read(tmp_path: Path) -> None:
    """Some writers of Parquet do not say that their bytes are UTF-8."""
    values = {"passage": ["Ä text".encode(), None], "image": [b"\x89PNG\r\n", b"x"], "name": ["a", "b"]}
    pyarrow.parquet.write_table(pyarrow.table(values), tmp_path / "q.parquet")
    table = read_table(tmp_path / "q.parquet")
    assert table.rows == [{"passage": "Ä text", "name": "a"}, {"passage": None, "name": "b"}]
    assert table.notes[:2] == ("read as UTF-8 texts: passage", "column image holds bytes: left out")


def test_bytes_as_python_prints_them_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "q.csv"
    file.write_text("text,label\nb'good',a\nb'bad',b\n")
    with pytest.raises(UsageError, match=r"text holds bytes as Python prints them \(b'good'\)"):
        read_table(file)
    file.write_text("text,label\nb'good',a\nbad,b\n")
    assert read_table(file).rows[0]["text"] == "b'good'"
