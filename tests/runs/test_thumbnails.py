"""Small copies of images in a run folder: kept once, bounded, and read with care."""

from __future__ import annotations

import io
from pathlib import Path

import PIL.Image
import pytest

from cme_bench.images.decode import decode_image
from cme_bench.runs import thumbnails
from cme_bench.runs.thumbnails import Thumbnails, read_thumbnail, thumbnail_file
from tests.support.pictures import encoded, picture, rotated_jpeg


def opened(data: bytes | None) -> PIL.Image.Image:
    assert data is not None
    return PIL.Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encoded(picture(400, 200)), (160, 80)),
        (encoded(picture(1600, 900), "JPEG"), (160, 90)),
        (encoded(picture(9, 7)), (9, 7)),
        (rotated_jpeg(6), (8, 16)),
        (encoded(picture(400, 200).convert("CMYK"), "JPEG"), (160, 80)),
    ],
)
def test_a_small_copy_is_kept(tmp_path: Path, data: bytes, size: tuple[int, int]) -> None:
    image = decode_image(data, folder=None)
    Thumbnails(tmp_path).keep([image, image])
    assert opened(read_thumbnail(tmp_path, image.digest)).size == size


def test_a_run_keeps_so_many_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thumbnails, "MOST", 3)
    images = [decode_image(picture(seed=seed), folder=None) for seed in range(5)]
    Thumbnails(tmp_path).keep(images[:2])
    Thumbnails(tmp_path).keep(images)
    assert {file.stem for file in (tmp_path / "images").iterdir()} == {image.digest for image in images[:3]}


def test_an_image_that_has_gone_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    image = decode_image("a.png", folder=tmp_path)
    (tmp_path / "a.png").unlink()
    Thumbnails(tmp_path).keep([image])
    assert read_thumbnail(tmp_path, image.digest) is None


@pytest.mark.parametrize(
    "data",
    [
        b"<svg onload='window.hacked = 1'/>",
        encoded(picture()),
        encoded(picture(161, 2), "WEBP"),
        encoded(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]),
        encoded(picture(), "WEBP")[:30],
        encoded(picture(160, 160), "WEBP", lossless=True) + bytes(2**15),
    ],
)
def test_what_is_no_small_copy_is_not_shown(tmp_path: Path, data: bytes) -> None:
    file = thumbnail_file(tmp_path, "0" * 64)
    file.parent.mkdir()
    file.write_bytes(data)
    assert read_thumbnail(tmp_path, "0" * 64) is None


def test_names_that_lead_elsewhere_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "out.webp").write_bytes(encoded(picture(), "WEBP"))
    (tmp_path / "run" / "images").mkdir(parents=True)
    thumbnail_file(tmp_path / "run", "1" * 64).symlink_to(tmp_path / "out.webp")
    for digest in ("../../out", "1" * 64, "", "x" * 64):
        assert read_thumbnail(tmp_path / "run", digest) is None
