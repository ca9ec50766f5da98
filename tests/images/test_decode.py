"""Values of rows to images: every form that is read, and what is refused with which words."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import pickle
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from cme_bench.images import image as images
from cme_bench.images.decode import decode_image
from cme_bench.images.image import Image, ImageError
from tests.support.pictures import ORIENTATION, encoded, picture, rotated_jpeg


def test_every_form_of_a_value_gives_the_same_image(tmp_path: Path) -> None:
    made, png = picture(), encoded(picture())
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(png)
    text = base64.b64encode(png).decode()
    forms: list[Any] = [
        png,
        "images/a.png",
        str(tmp_path / "images" / "a.png"),
        "images\\a.png",
        Path("images/a.png"),
        {"bytes": png, "path": None},
        {"bytes": None, "path": "images/a.png"},
        {"path": "images/a.png"},
        text,
        f"data:image/png;base64,{text}",
        made,
        PIL.Image.open(io.BytesIO(png)),
        encoded(made, "WEBP", lossless=True),
        encoded(made, compress_level=0),
    ]
    found = [decode_image(form, folder=tmp_path) for form in forms]
    assert set(found) == {found[0]}
    assert (found[0].width, found[0].height) == made.size
    for image in found:
        assert image.pixels().tobytes() == made.tobytes()
        assert pickle.loads(pickle.dumps(image)) == image
        assert decode_image(image, folder=None) is image
    assert "PNG" not in repr(found[0])


def test_a_digest_is_that_of_the_size_and_the_rgb_bytes() -> None:
    made = picture()
    assert decode_image(made, folder=None).digest == hashlib.sha256(b"5x3" + made.tobytes()).hexdigest()
    other = PIL.Image.frombytes("RGB", (3, 5), made.tobytes())
    assert decode_image(other, folder=None).digest != decode_image(made, folder=None).digest


def test_a_picture_is_rotated_as_its_file_says() -> None:
    flat, turned = decode_image(rotated_jpeg(1), folder=None), decode_image(rotated_jpeg(6), folder=None)
    assert (turned.width, turned.height) == (flat.height, flat.width)
    by_hand = flat.pixels().transpose(PIL.Image.Transpose.ROTATE_270)
    assert decode_image(by_hand, folder=None) == turned
    assert turned.pixels().getexif().get(ORIENTATION) is None
    opened = PIL.Image.open(io.BytesIO(rotated_jpeg(6)))
    assert decode_image(opened, folder=None) == decode_image(opened.convert("RGB"), folder=None) == turned


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb_as_pillow_makes_them(mode: str) -> None:
    made = picture().convert(mode)
    data = encoded(made, "JPEG" if mode == "CMYK" else "PNG")
    expected = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    assert decode_image(data, folder=None).pixels().tobytes() == expected.tobytes()


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    picture = PIL.Image.new("P", (4, 3))
    picture.putpalette(bytes(range(48)))
    stream = io.BytesIO()
    picture.save(stream, "PNG", transparency=bytes([0, 128]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = decode_image(stream.getvalue(), folder=None).pixels()
    assert pixels.getpixel((0, 0)) == (0, 1, 2)


def test_grey_values_of_16_bits_keep_their_upper_byte() -> None:
    values = np.array([[0, 255, 256], [4096, 32768, 65535]], dtype=np.uint16)
    found = decode_image(encoded(PIL.Image.fromarray(values)), folder=None)
    assert np.asarray(found.pixels())[..., 0].tolist() == [[0, 0, 1], [16, 128, 255]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "an empty file; images are PNG, JPEG or WebP"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page; images are PNG, JPEG or WebP"),
        (b"\n<svg xmlns='x'/>", "an SVG; images are"),
        (encoded(picture(), "GIF"), "a GIF; images are"),
        (encoded(picture(), "BMP"), "a BMP; images are"),
        (encoded(picture(), "TIFF"), "a TIFF; images are"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS, not the file itself"),
        (b"hello, world", "no image; images are"),
        (encoded(picture(64, 64), "PNG")[:-40], "the image is damaged ("),
        (encoded(picture(64, 64), "JPEG")[:-40], "the image is damaged ("),
        (encoded(picture(64, 64), "WEBP")[:-40], "the image is damaged ("),
        (encoded(picture())[:20], "the image is damaged ("),
        ("https://example.org/a.png", "'https://example.org/a.png' is a URL: images are not fetched"),
        ("file:///a.png", "'file:///a.png' is a URL"),
        ("", "the path is empty"),
        ("a\0b.png", "is no path"),
        ("x" * 5000, "is no path"),
        ("data:image/png,abc", "a data URI without ';base64,' is not read"),
        ("data:image/png;base64,%%%", "broken base64 ("),
        (encoded(PIL.Image.new("RGB", (64, 1)))[:8], "the image is damaged (its beginning is)"),
        ("nosuch.png", "nosuch.png: no such file"),
        ("nosuch.png\n", "nosuch.png\\n': no such file"),
        ("x" * 300, ": File name too long"),
        ("pipe.png", "pipe.png: not a regular file"),
        ("loop.png", "loop.png: Too many levels of symbolic links"),
        ("folder", "folder is a folder, not an image"),
        ("../out.png", "'../out.png' leads out of "),
        ("C:\\pictures\\a.png", "'C:\\\\pictures\\\\a.png' leads out of "),
        ("/etc/hostname", "'/etc/hostname' leads out of "),
        ("link.png", "'link.png' leads out of "),
        (None, "not nothing (None)"),
        (7, "not a value of type int"),
        (np.zeros((2, 2, 3), np.uint8), "not a value of type ndarray"),
        ({"bytes": None, "path": None}, "not nothing (None)"),
        (PIL.Image.new("RGB", (0, 0)), "an image without pixels"),
        (PIL.Image.new("F", (2, 2)), "mode F have no fixed range"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path: Path, value: Any, message: str) -> None:
    folder = tmp_path / "rows"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "out.png").write_bytes(encoded(picture()))
    (folder / "link.png").symlink_to(tmp_path / "out.png")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(ImageError) as caught:
        decode_image(value, folder=folder, place="rows.jsonl:7")
    assert str(caught.value).startswith("rows.jsonl:7: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "b.png").symlink_to("a.png")
    assert decode_image("b.png", folder=tmp_path) == decode_image("a.png", folder=tmp_path)


def test_names_in_the_other_form_of_unicode_are_found(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFC", "\u00fc.png")).write_bytes(encoded(picture()))
    found = decode_image(unicodedata.normalize("NFD", "\u00fc.png"), folder=tmp_path)
    assert found == decode_image("\u00fc.png", folder=tmp_path)


def test_paths_need_a_folder() -> None:
    with pytest.raises(
        ImageError, match=r"'a\.png' is a path, but these rows lie in no folder, or in several"
    ):
        decode_image("a.png", folder=None)


def test_animations_are_refused_and_photographs_of_several_frames_are_not() -> None:
    frames = [picture(), picture(seed=1)]
    for kind in ("WEBP", "PNG"):
        with pytest.raises(ImageError, match="an animation of 2 frames"):
            decode_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), folder=None)
    several = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])  # as telephones write JPEG
    assert decode_image(several, folder=None).width == 5


def test_a_large_image_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(PIL.Image.new("1", (20_000, 20_000)))
    with pytest.raises(ImageError, match=r"more than 50 megapixels"):
        decode_image(bomb, folder=None)
    monkeypatch.setattr(images, "MOST_PIXELS", 14)
    with pytest.raises(ImageError, match=r"5 x 3 pixels are more than"):
        decode_image(encoded(picture(5, 3, seed=99)), folder=None)


def test_a_file_that_changes_after_it_was_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(picture()))
    image = decode_image("a.png", folder=tmp_path)
    file.write_bytes(encoded(picture(seed=3)))
    with pytest.raises(ImageError, match=r"a\.png: the image has changed"):
        image.pixels()
    assert decode_image("a.png", folder=tmp_path) != image


def test_a_file_is_decoded_once_for_all_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(data := encoded(picture(seed=4)))
    first = decode_image("a.png", folder=tmp_path), decode_image(data, folder=tmp_path)
    monkeypatch.setattr(images, "decoded", lambda data: pytest.fail("decoded again"))
    assert (decode_image("a.png", folder=tmp_path), decode_image(bytes(data), folder=tmp_path)) == first
    assert isinstance(first[0], Image)
