"""Pictures: the same numbers as torchvision's transforms make, and no byte string that does harm."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.steps import BadRow
from clover.steps.images import Crop, DecodeImage, Normalise, Resize
from clover.steps.step import At, DataStep, bytes_row

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
AT = At("x", "x", None)


def photo(width: int = 61, height: int = 43, mode: str = "RGB") -> Any:
    """Return a picture with smooth and rough parts."""
    generator = np.random.default_rng(width * 1000 + height)
    rough = generator.integers(0, 256, (9, 7, 3), np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def file_of(image: Any, form: str = "PNG", **how: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, form, **how)
    return made.getvalue()


def row(step: DataStep, value: Any) -> Any:
    """Return what a step makes of one row."""
    values = {"x": value}
    step.row(values, AT)
    return values["x"]


def decoded(data: bytes, **how: Any) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = row(DecodeImage(**how), bytes_row(data))
    return found


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
def test_pictures_of_every_mode_are_rgb(form: str, mode: str) -> None:
    if (form, mode) in (("PNG", "CMYK"), ("JPEG", "P"), ("JPEG", "RGBA"), ("JPEG", "1")):
        return
    data = file_of(photo(mode=mode), form)
    found = decoded(data)
    assert (found.shape, found.dtype) == ((43, 61, 3), np.uint8)
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert decoded(data, mode="L").shape == (43, 61, 1)


def test_sixteen_bits_become_eight() -> None:
    deep = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    found = decoded(file_of(Image.fromarray(deep)))
    np.testing.assert_array_equal(found[:, :, 0], deep >> 8)


def test_pictures_stand_upright() -> None:
    image = photo()
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    data = file_of(image, "PNG", exif=exif)
    assert decoded(data).shape == (61, 43, 3)
    assert decoded(data, upright=False).shape == (43, 61, 3)
    np.testing.assert_array_equal(decoded(data), np.rot90(np.asarray(image), -1))


def test_what_is_no_picture_is_refused_with_a_reason() -> None:
    whole = file_of(photo(), "JPEG")
    for data in (b"", b"no picture", whole[: len(whole) // 2], file_of(photo(), "BMP"), file_of(photo(), "GIF")):
        with pytest.raises(BadRow, match="not a whole JPEG or PNG image"):
            decoded(data)
    with pytest.raises(BadRow, match="61 x 43 pixels, more than the 2000 allowed"):
        decoded(whole, max_pixels=2000)


def test_a_picture_that_there_is_no_memory_for_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object, **how: object) -> None:
        raise MemoryError

    data = file_of(photo())
    monkeypatch.setattr(Image, "open", short)
    with pytest.raises(MemoryError):
        row(DecodeImage(), data)


def test_a_bomb_is_refused_before_it_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    small = file_of(Image.new("L", (1, 1)))
    wide = small[12:16] + struct.pack(">II", 20_000, 20_000) + small[24:29]  # the header says another size
    data = small[:12] + wide + struct.pack(">I", zlib.crc32(wide)) + small[33:]
    monkeypatch.setattr("PIL.Image.Image.load", lambda self: pytest.fail("it was unpacked"))
    with pytest.raises(BadRow, match="more than the 40000000"):
        decoded(data)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"]), st.integers(0, 400))
def test_no_bytes_do_harm(junk: bytes, head: bytes, keep: int) -> None:
    whole = PNG if head.startswith(b"\x89") else JPEG
    for data in (head + junk, whole[:keep] + junk + whole[keep + len(junk) :]):
        try:
            found = decoded(data, max_pixels=10_000)
        except BadRow as error:
            assert str(error)  # noqa: PT017 - either is fine
        else:
            assert found.ndim == 3


PNG, JPEG = file_of(photo()), file_of(photo(), "JPEG")


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [24, 60, (20, 50)])
def test_sizes_are_as_torchvision_makes_them(method: str, size: Any) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    how = transforms.InterpolationMode(method)
    for width, height in ((61, 43), (43, 61), (24, 24), (101, 7)):
        image = photo(width, height)
        mine = row(Resize(size=size, method=method), np.asarray(image))
        np.testing.assert_array_equal(mine, np.asarray(transforms.Resize(size, how)(image)))
        for crop in (16, 23, (21, 40), 64):
            theirs = np.asarray(transforms.CenterCrop(crop)(Image.fromarray(mine)))
            np.testing.assert_array_equal(row(Crop(size=crop), mine), theirs)


def test_whole_pictures_are_as_torchvision_makes_them() -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision is not installed")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = transforms.Compose(
        [transforms.Resize(40), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    images = [photo(61, 43), photo(40, 90)]
    columns: dict[str, Any] = {"x": [row(Crop(size=32), row(Resize(size=40), np.asarray(image))) for image in images]}
    Normalise(mean=mean, std=std).batch(columns, AT)
    assert (columns["x"].shape, columns["x"].dtype) == ((2, 3, 32, 32), np.float32)
    for mine, image in zip(columns["x"], images, strict=True):
        np.testing.assert_allclose(mine, theirs(image).numpy(), atol=1e-6, rtol=0)


def test_a_height_keeps_proportions() -> None:
    wide = np.zeros((20, 100, 3), np.uint8)
    assert row(Resize(height=10), wide).shape == (10, 50, 3)
    assert row(Resize(height=10, max_width=30), wide).shape == (10, 30, 3)
    with pytest.raises(BadRow, match="too long and thin"):
        row(Resize(size=10_000), np.zeros((1, 60_000, 3), np.uint8))


def test_a_thin_line_is_not_blown_up_and_a_cut_keeps_no_picture() -> None:
    with pytest.raises(BadRow, match="too long and thin"):
        row(Resize(size=292), np.zeros((1, 1000, 3), np.uint8))  # 85 million pixels, of a file of 74 bytes
    assert row(Resize(size=(4097, 4097)), np.zeros((2, 2, 3), np.uint8)).shape == (4097, 4097, 3)
    assert row(Resize(size=292), np.zeros((20, 2000, 3), np.uint8)).shape == (292, 29200, 3)
    for size in (8, (8, 100)):
        cut = row(Crop(size=size), np.zeros((50, 100, 3), np.uint8))
        assert cut.base is None or cut.base.nbytes <= cut.nbytes  # no view that holds the whole


def test_channels_may_come_last_and_rows_may_differ_in_shape() -> None:
    rows = [np.full((2, 3, 1), 255, np.uint8), np.zeros((4, 3, 1), np.uint8)]
    columns: dict[str, Any] = {"x": rows}
    Normalise(channels="last").batch(columns, AT)
    assert [one.shape for one in columns["x"]] == [(2, 3, 1), (4, 3, 1)]
    assert [float(one.max()) for one in columns["x"]] == [1.0, 0.0]


def test_pillow_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ConfigError, match="pip install pillow"):
        DecodeImage().flow({}, AT)
