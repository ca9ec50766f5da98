"""Files of others are opened only if they are files, and lie where they should."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cme_bench.util.errors import UsageError
from cme_bench.util.files import leads_inside, open_regular, read_json


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError, match="not a regular file"):
            open_regular(file)


def test_a_link_is_followed_within_the_folder_only(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "in" / "near").symlink_to("a")
    (tmp_path / "in" / "far").symlink_to("../secret")
    (tmp_path / "same").symlink_to("in")
    assert read_json(tmp_path / "in" / "near", inside=tmp_path / "in") == {}
    assert read_json(tmp_path / "same" / "a", inside=tmp_path / "same") == {}, (
        "the folder may be a link itself"
    )
    with pytest.raises(UsageError, match="leads out of"):
        read_json(tmp_path / "in" / "far", inside=tmp_path / "in")
    assert not leads_inside(tmp_path / "in" / ".." / "secret", tmp_path / "in")


def test_a_file_may_have_so_many_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("{}" + " " * 2**20)
    assert read_json(tmp_path / "a") == {}
    with pytest.raises(UsageError, match="larger than 1 MiB"):
        read_json(tmp_path / "a", most=2**20)
