"""The run folder: one writer, torn lines, atomic files, full disks."""

from __future__ import annotations

from pathlib import Path

import pytest

from cme_bench.runs.store import RunWriter, cut_torn_line, read_records, record_bytes, samples_file
from cme_bench.scoring.record import Record, Scored, StoredResponse, scored_item
from cme_bench.util.errors import CmeError, UsageError
from cme_bench.util.files import read_json, write_json


def record(number: int) -> Record:
    return scored_item(number, Scored(scores={}), StoredResponse(text=""))


def test_second_writer_is_refused_and_names_the_first(tmp_path: Path) -> None:
    with (
        RunWriter(tmp_path / "r"),
        pytest.raises(UsageError, match=r"being written by another run \(process \d+\)"),
    ):
        RunWriter(tmp_path / "r")
    with RunWriter(tmp_path / "r"):
        pass


@pytest.mark.parametrize("tail", [b"", b'{"id": 2', b'{"id": 2, "x": "' + b"y" * 200_000])
def test_torn_line_is_invisible_to_readers_and_cut_by_the_writer(tmp_path: Path, tail: bytes) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append("t", [record(0), record(1)])
    file = samples_file(tmp_path, "t")
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    assert [r.id for r in read_records(file)] == [0, 1]
    with RunWriter(tmp_path) as writer:
        writer.append("t", [record(3)])
    assert [r.id for r in read_records(file)] == [0, 1, 3]


def test_a_file_of_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b'{"id"')
    cut_torn_line(tmp_path / "t")
    assert (tmp_path / "t").read_bytes() == b""


def test_broken_line_in_the_middle_names_file_and_line(tmp_path: Path) -> None:
    line = record_bytes(record(0)) + b"\n"
    (tmp_path / "t.jsonl").write_bytes(line + b"not json\n" + line)
    with pytest.raises(UsageError, match=r"t\.jsonl:2: broken record"):
        list(read_records(tmp_path / "t.jsonl"))


def test_a_full_disk_says_what_to_do_and_keeps_what_was_there(tmp_path: Path) -> None:
    with RunWriter(tmp_path) as writer:
        writer.append("t", [record(0)])
        writer._streams[samples_file(tmp_path, "t")] = Path("/dev/full").open("wb", buffering=0)
        with pytest.raises(CmeError, match=r"t\.jsonl \(No space left.*run the same command again"):
            writer.append("t", [record(1)])
        writer._streams.clear()
    assert [r.id for r in read_records(samples_file(tmp_path, "t"))] == [0]


def test_all_files_are_synced_and_closed_whichever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter(tmp_path)
    for task in ("a", "b", "c"):
        writer.append(task, [record(0)])
    streams = {file.stem: stream for file, stream in writer._streams.items()}
    bad, synced = streams["b"].fileno(), []

    def sync(number: int) -> None:
        if number == bad:
            raise OSError(5, "Input/output error")
        synced.append(number)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("cme_bench.runs.store._SYNCED_AT_ONCE", 1)  # the last waits until one has failed
    with pytest.raises(CmeError, match=r"b\.jsonl \(Input/output error\)"):
        writer.close()
    assert len(synced) == 2
    assert all(stream.closed for stream in streams.values())
    RunWriter(tmp_path).close()  # the folder was given back


def test_write_json_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_json(file, {"a": 1})

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(CmeError, match="No space left"):
        write_json(file, {"a": 2})
    assert read_json(file) == {"a": 1}


@pytest.mark.parametrize(("text", "message"), [("{", "broken JSON"), ("[1]", "not a JSON object")])
def test_read_json_names_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=rf"run\.json: {message}"):
        read_json(tmp_path / "run.json")
