"""Files of rows: what is read, what is refused and where, and that no path leads out of its folder."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import datasets
import pandas
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cme_bench.tasks.row_files import read_csv, read_file, read_jsonl, read_parquet
from cme_bench.tasks.sources import BesideSource
from cme_bench.tasks.suite import load_suite
from cme_bench.util.errors import UsageError
from tests.support.workshop import Workshop

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_csv_rows_are_pandas_rows_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('a,b,c\n1,"x\ny",\n\n2,"say ""hi""",NA\n', encoding="utf-8-sig")
    rows = read_csv(file, {"keep_default_na": False})
    assert list(rows.table) == [{"a": 1, "b": "x\ny", "c": ""}, {"a": 2, "b": 'say "hi"', "c": "NA"}]
    assert [rows.place(i) for i in range(2)] == [f"{file}:2", f"{file}:5"]
    stock = datasets.load_dataset(
        "csv", data_files=str(file), split="train", keep_default_na=False, cache_dir=str(tmp_path / "cache")
    )
    assert list(stock) == list(rows.table)
    tabs = tmp_path / "rows.tsv"
    tabs.write_text("a\tb\n1\tx,y\n")
    assert list(read_file(tabs).table) == [{"a": 1, "b": "x,y"}]


def test_a_field_of_csv_may_hold_an_image(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"a,b\n1,{'x' * 200_000}\n")
    assert len(read_csv(tmp_path / "rows.csv").table[0]["b"]) == 200_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a,b\n1,2\n3\n", ":3: 1 fields, but the header has 2"),
        (b"a,b\n1,2,3\n", ":2: 3 fields, but the header has 2"),
        (b"a,a\n1,2\n", ":1: the header has empty or repeated names"),
        (b"a,\n1,2\n", ":1: the header has empty or repeated names"),
        (b"a,b\n", ": holds no rows"),
        (b"", ": holds no rows"),
        (b'a,b\n1,"2\n', ":1: broken CSV (unexpected end of data)"),
        (b"a,b\n1,\xff\n", ": not UTF-8 text ("),
    ],
)
def test_broken_csv_is_named_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        read_csv(file)
    assert str(caught.value).startswith(f"{file}{message}")


def test_csv_settings_are_pandas_and_few(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a;b\n1;2\n")
    assert list(read_csv(tmp_path / "rows.csv", {"sep": ";"}).table) == [{"a": 1, "b": 2}]
    with pytest.raises(UsageError, match="unknown csv setting 'separator'"):
        read_csv(tmp_path / "rows.csv", {"separator": ";"})


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pandas.DataFrame({"q": ["a"], "answers": [["x", "y"]]}).to_parquet(file)
    assert list(read_parquet(file).table) == [{"q": "a", "answers": ["x", "y"]}]
    assert read_parquet(file).place(0) == f"{file} row 0"
    file.write_text("no parquet")
    with pytest.raises(UsageError, match=r"rows\.parquet: not a Parquet file"):
        read_parquet(file)
    pandas.DataFrame({"q": []}).to_parquet(file)
    with pytest.raises(UsageError, match="holds no rows"):
        read_parquet(file)
    with pytest.raises(UsageError, match=r"rows are read from \.jsonl"):
        read_file(tmp_path / "rows.xlsx")


ROW = st.dictionaries(
    st.text(min_size=1, max_size=4),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text(), max_size=3)
    ),
    max_size=3,
)
LINES = st.lists(st.one_of(st.binary(max_size=40), ROW.map(lambda row: json.dumps(row).encode())), max_size=6)


@FUZZ
@given(LINES)
@example([b"{}", b'{"\\n":null}'])  # a key with a line break
def test_any_bytes_are_rows_or_one_line(tmp_path: Path, lines: list[bytes]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(lines))
    try:
        rows = read_jsonl(file)
    except UsageError as err:
        assert str(err).startswith(f"{file}")
        assert "\n" not in str(err)
    else:
        assert rows.lines is not None
        assert len(rows.table) == len(rows.lines) > 0
        assert len(rows.fingerprint()) == 64


@FUZZ
@given(st.one_of(st.binary(max_size=60), st.text(alphabet='ab1",\n\r', max_size=40).map(str.encode)))
def test_any_bytes_are_csv_or_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    try:
        rows = read_csv(file)
    except UsageError as err:
        assert str(err).startswith(f"{file}")
        assert "\n" not in str(err)
    else:
        assert rows.lines is not None
        assert len(rows.table) == len(rows.lines) > 0


@pytest.mark.parametrize(
    ("kind", "named", "files"),
    [
        ("json", "part-*.jsonl", ("part-2.jsonl", "part-1.jsonl", "other.jsonl")),
        ("json", "**/*.jsonl.gz", ("x/part-1.jsonl.gz", "y/part-2.jsonl.gz")),
        ("csv", "part-?.csv.bz2", ("part-1.csv.bz2", "part-2.csv.bz2")),
        ("json", "[a].jsonl", ("[a].jsonl",)),
    ],
)
def test_data_files_may_be_patterns_and_packed(
    workshop: Workshop, kind: str, named: str, files: tuple[str, ...]
) -> None:
    folder = workshop.yaml.parent
    for file in files:
        number = next(filter(str.isdigit, file), "0")
        text = f'{{"n": {number}}}\n' if kind == "json" else f"n\n{number}\n"
        place = folder / file
        place.parent.mkdir(exist_ok=True)
        packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(place.suffix, bytes)
        place.write_bytes(packed(text.encode()))
    rows = f"dataset_path: {kind}\ndataset_kwargs: {{data_files: {{test: '{named}'}}}}"
    workshop.yaml.write_text(workshop.yaml.read_text().replace("dataset_path: own/data", rows))
    [spec] = [spec for spec in load_suite((workshop.yaml,)).tasks.values() if spec.path == workshop.yaml]
    found = [row["n"] for row in BesideSource().rows(spec, "test").each()]
    assert found == ([1, 2] if len(files) > 1 else [0])


@pytest.mark.parametrize("key", ["folder", "splits"])
@pytest.mark.parametrize("name", ["../secret", "/etc", "..", ".hidden", "a/b", ""])
def test_names_in_a_task_file_cannot_lead_out_of_the_data_folder(
    workshop: Workshop, key: str, name: str
) -> None:
    value = json.dumps(name if key == "folder" else {"test": name})
    file = workshop.write_yaml(more=f"  {key}: {value}\n")
    with pytest.raises(UsageError) as caught:
        workshop.build()
    expected = f"{file}:11: 'metadata.{key}': {name!r} is no plain name and could lead elsewhere"
    assert str(caught.value) == expected


def test_a_link_out_of_the_data_folder_is_not_followed(workshop: Workshop, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    workshop.file("test").rename(secret)
    workshop.file("test").symlink_to(secret)
    with pytest.raises(UsageError, match=r"test\.jsonl: leads out of .*, so it is not read"):
        workshop.build()
    workshop.file("test").unlink()
    secret.rename(workshop.file("inside"))
    workshop.file("test").symlink_to(workshop.file("inside"))
    assert len(workshop.build().docs) == 4  # a link within the folder is fine


def test_a_link_out_of_the_folder_of_a_task_file_is_not_followed(tmp_path: Path, workshop: Workshop) -> None:
    rows = "dataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}"
    folder = workshop.yaml.parent
    workshop.yaml.write_text(workshop.yaml.read_text().replace("dataset_path: own/data", rows))
    (folder / "rows.jsonl").symlink_to(workshop.file("test"))
    with pytest.raises(UsageError, match=rf"own\.yaml:3: rows\.jsonl leads out of {folder}"):
        workshop.build()
    (folder / "rows.jsonl").unlink()
    workshop.file("test").rename(folder / "rows.jsonl")
    assert len(workshop.build().docs) == 4


def test_a_linked_task_file_and_a_linked_include_are_not_followed(tmp_path: Path, workshop: Workshop) -> None:
    outside = tmp_path / "outside.yaml"
    outside.write_text("test_split: test\n")
    (workshop.yaml.parent / "_link.yaml").symlink_to(outside)
    workshop.write_yaml(more="include: _link.yaml\n")
    with pytest.raises(UsageError, match="lies outside"):
        workshop.build()


def test_mappings_keep_their_own_keys(tmp_path: Path) -> None:
    rows = [
        {"options": {"A": "x"}, "parts": [{"t": "a"}, {"t": "b", "n": 1}]},
        {"options": {"A": "x", "B": "y"}, "parts": []},
    ]
    lines, array = tmp_path / "rows.jsonl", tmp_path / "rows.json"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    array.write_text(json.dumps(rows))
    for file in (lines, array):
        assert list(read_jsonl(file).table) == rows
        assert list(read_jsonl(file).each()) == rows
