"""What pictures cost: no file makes a decoder work longer, or hold more memory, than its pixels are worth."""

from __future__ import annotations

import functools
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover.steps import BadRow, Pipeline, images, pictures
from clover.steps.images import DecodeImage, Resize
from clover.steps.pipeline import PlacedStep
from clover.steps.step import At, bytes_row
from tests.support.pictures import chunk, empty_scans, jpeg, png, scan, segment

Image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
ImageOps = pytest.importorskip("PIL.ImageOps", reason="pillow is not installed")

ROOT = Path(__file__).resolve().parents[3]
WIDE, HIGH = 8000, 5000  # as many pixels as are allowed
MOST = WIDE * HIGH
ONE = scan(1, 0, 63, 0, b"\x3f")  # of a picture of one block
PROFILE = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20), 9))


def steps(*made: Any) -> Pipeline:
    """Return a pipeline of steps that read and write "x"."""
    return Pipeline([PlacedStep(step, At("x", "x", None), ("x", "x_size")) for step in made])


def came_to(data: bytes, *made: Any) -> tuple[NDArray[np.uint8] | None, str]:
    """Return the picture that steps (decode-image by default) make of a file, or why it is refused."""
    found = steps(*(made or (DecodeImage(),))).apply({"x": [bytes_row(data)]}, 1)
    return (None, found.refused[0]) if found.refused else (found.columns["x"][0], "")


# --- what is refused before it is decoded -----------------------------------------------------------------------------

def sized(width: int, height: int) -> bytes:
    """Return a PNG of one pixel whose head says another size."""
    return png(1, 1)[:16] + struct.pack(">II", width, height) + png(1, 1)[24:]


REFUSED = {
    "scans": (lambda: empty_scans(WIDE, HIGH, 33), "the JPEG has 33 scans, more than the 32 allowed"),
    "segments": (lambda: jpeg(8, 8, ONE, extra=segment(0xE5) * 5000), "more than the 4096 segments allowed"),
    "tables": (lambda: jpeg(8, 8, segment(0xC4) * 5000 + ONE), "more than the 4096 segments allowed"),
    "chunks": (lambda: png(1, 1, extra=chunk(b"abCd") * 17_000), "more than the 16384 chunks allowed"),
    "empty pixels": (lambda: png(1, 1, empty=17_000), "more than the 16384 chunks allowed"),
    "chunks behind": (lambda: png(1, 1, after=chunk(b"tEXt", b"a\0b") * 17_000), "more than the 16384 chunks allowed"),
    "arithmetic": (lambda: jpeg(WIDE, HIGH, scan(1, 0, 63, 0, b"\0"), kind=0xC9), "a frame of kind 9, and one of kind"),
    "coefficients": (
        lambda: jpeg(WIDE, HIGH, scan(3, 0, 0, 0, b"\0") + ONE, kind=0xC2, parts=3),
        "the JPEG of 2 scans takes 400000000 bytes to decode, more than the 320000000 allowed",
    ),
    "two frames": (lambda: jpeg(8, 8, ONE, extra=segment(0xC1, bytes(9))), "a second frame"),
    "no frame": (lambda: b"\xff\xd8" + ONE + b"\xff\xd9", "not a whole JPEG"),
    "short frame": (lambda: b"\xff\xd8" + segment(0xC0, bytes(5)) + ONE + b"\xff\xd9", "not a whole JPEG"),
    "no components": (lambda: jpeg(8, 8, ONE, parts=0), "not a whole JPEG"),
    "one side": (lambda: sized(1, 1 << 21), "1048576 allowed on one side"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_costly_file_is_refused_before_a_decoder_sees_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, reason = REFUSED[name]
    monkeypatch.setattr(Image, "open", lambda *_, **how: pytest.fail("a decoder saw it"))
    image, said = came_to(make())
    assert image is None
    assert reason in said
    assert said.isprintable()


def test_what_keeps_the_bounds_is_decoded() -> None:
    for data in (empty_scans(8, 8, 32), jpeg(8, 8, ONE, extra=segment(0xE5) * 4000), png(1, 1, empty=16_000)):
        assert came_to(data)[1] == ""


# --- what it costs, counted by the kernel -----------------------------------------------------------------------------

def costs() -> dict[str, tuple[Any, float, int]]:
    """Return by name: what makes a file, the seconds of CPU time and the MiB of memory that it may cost."""
    exif = segment(0xE1, b"Exif\0\0ab")
    return {
        "empty scans": (lambda: empty_scans(WIDE, HIGH, 100), 0.3, 40),
        "allowed scans": (lambda: empty_scans(4000, 3000, 32), 2.5, 120),
        "one bit a pixel": (lambda: png(WIDE, HIGH, 1), 3.0, 300),
        "sixteen bits": (lambda: png(WIDE, HIGH, 16), 6.0, 400),
        "no data": (lambda: jpeg(WIDE, HIGH, scan(3, 0, 63, 0, bytes(60_000)), parts=3), 3.0, 300),
        "profiles": (lambda: png(1, 1, extra=PROFILE * 1000), 0.5, 40),
        "pieces of EXIF": (lambda: jpeg(8, 8, ONE, extra=exif * 100_000), 0.2, 40),
        "small segments": (lambda: jpeg(8, 8, ONE, extra=segment(0xE5) * 300_000), 0.2, 40),
        "fill bytes": (lambda: jpeg(8, 8, ONE, extra=b"\xff" * 1_000_000), 0.2, 40),
        "animation": (lambda: png(2000, 2000, extra=chunk(b"acTL", struct.pack(">II", 9, 0))), 1.0, 100),
    }


MEASURE = """
import json, os, resource, sys
sys.path.insert(0, sys.argv[1])
from tests.unit.steps import test_pictures as here
from clover.steps.images import DecodeImage, Resize
import PIL.JpegImagePlugin, PIL.PngImagePlugin, PIL.MpoImagePlugin
found = {}
pipeline = here.steps(DecodeImage(), Resize(size=256))
pipeline.apply({"x": [here.bytes_row(here.png(300, 300))]}, 1)
for name, (make, _, _) in here.costs().items():
    data = here.bytes_row(make())
    for form in ("alone", "decoded"):
        child = os.fork()
        if not child:
            if form == "decoded":
                pipeline.apply({"x": [data]}, 1)
            os._exit(0)
        used = os.wait4(child, 0)[2]
        was = found.get(name, (0.0, 0))
        found[name] = used.ru_utime + used.ru_stime - was[0], used.ru_maxrss // 1024 - was[1]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_no_file_costs_more_than_its_pixels() -> None:
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(ROOT)]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    most = {name: (seconds, mebibytes) for name, (_, seconds, mebibytes) in costs().items()}
    over = {name: used for name, used in found.items() if used[0] > most[name][0] or used[1] > most[name][1]}
    assert not over, f"CPU seconds and MiB, of {found}"


class Clock:
    """The CPU time of a thread, which passes with each read of a file."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self._step_s = step_s

    def thread_time(self) -> float:
        self.now_s += self._step_s
        return self.now_s


def test_a_row_that_takes_too_long_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    good, slow = photo_file("PNG", 40, 30), photo_file("PNG", 400, 300, compress_level=0)
    monkeypatch.setattr(images, "time", Clock(0.06))
    found = steps(DecodeImage()).apply({"x": [bytes_row(good), bytes_row(slow), bytes_row(good)]}, 3)
    assert found.kept == [0, 2]
    assert found.refused == {1: "decoding the image takes more than the 1.03 s of CPU time allowed"}


# --- ordinary pictures ------------------------------------------------------------------------------------------------


@functools.cache
def photo(width: int, height: int) -> Any:
    """Return a picture with smooth and rough parts."""
    generator = np.random.default_rng(7)
    rough = generator.integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC))
    grain = np.tile(generator.integers(0, 9, (100, 100, 3), np.uint8), (height // 100 + 1, width // 100 + 1, 1))
    return Image.fromarray(smooth // 2 + grain[:height, :width])


@functools.cache
def photo_file(form: str, width: int, height: int, **how: Any) -> bytes:
    """Return it as a file, to be turned by 90 degrees."""
    exif, made = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    photo(width, height).save(made, form, exif=exif, **how)
    return made.getvalue()


FORMS: dict[str, dict[str, Any]] = {
    "baseline": {"form": "JPEG", "quality": 92},
    "progressive": {"form": "JPEG", "quality": 92, "progressive": True},
    "full colour": {"form": "JPEG", "quality": 92, "progressive": True, "subsampling": 0},
    "png": {"form": "PNG", "compress_level": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_a_photo_of_twelve_megapixels_is_answered_upright(name: str) -> None:
    data = photo_file(width=4000, height=3000, **FORMS[name])
    whole, said = came_to(data)
    assert said == ""
    assert whole is not None
    with Image.open(io.BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
    assert np.array_equal(whole, np.asarray(upright))
    small, _ = came_to(data, DecodeImage(), Resize(size=256))
    assert small is not None
    assert small.shape == (341, 256, 3)
    wanted = np.asarray(upright.resize((256, 341), Image.Resampling.BILINEAR))
    off = np.abs(small.astype(int) - wanted.astype(int))
    assert off.mean() < 0.5  # a JPEG is decoded at half its size
    assert off.max() <= 8


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_picture_that_is_not_much_larger_is_resized_to_the_last_bit(form: str) -> None:
    data = photo_file(form, 500, 300)
    with Image.open(io.BytesIO(data)) as opened:
        wanted = ImageOps.exif_transpose(opened).resize((75, 125), Image.Resampling.BICUBIC)
    found, _ = came_to(data, DecodeImage(), Resize(size=75, method="bicubic"))
    assert found is not None
    np.testing.assert_array_equal(found, np.asarray(wanted))


def test_the_size_beside_an_image_is_that_of_the_file() -> None:
    values: dict[str, Any] = {"x": bytes_row(photo_file("JPEG", 1600, 800))}
    DecodeImage().row(values, At("x", "x", None, Resize(size=40)))
    assert values["x"].shape == (80, 40, 3)
    assert values["x_size"].tolist() == [1600, 800]


@pytest.mark.parametrize("turn", range(10))
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_every_orientation_is_as_pillow_turns_it(form: str, turn: int) -> None:
    exif, made = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    photo(50, 30).save(made, form, exif=exif)
    with Image.open(made) as opened:
        wanted = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(came_to(made.getvalue())[0], wanted)


def test_profiles_texts_and_thumbnails_change_no_pixel() -> None:
    plain, _ = came_to(photo_file("JPEG", 80, 50))
    head, rest = photo_file("JPEG", 80, 50)[:2], photo_file("JPEG", 80, 50)[2:]
    restarts, _ = came_to(photo_file("JPEG", 80, 50, restart_marker_blocks=1))
    np.testing.assert_array_equal(restarts, plain)
    for more in (
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 40,
        segment(0xE2, b"MPF\0" + b"MM\0*\0\0\0\x08" + bytes(50)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
        segment(0xFE, b"\xff\xd9\xff\xda" * 99),
        b"\xff\xff\xff",
    ):
        found, _ = came_to(head + more + rest + b"\xff\xd8a film behind the picture\xff\xd9")
        np.testing.assert_array_equal(found, plain)


@given(st.binary(max_size=300), st.integers(0, 600), st.sampled_from(["JPEG", "PNG"]))
def test_what_the_server_reads_of_a_head_is_what_the_decoder_sees(junk: bytes, keep: int, form: str) -> None:
    whole = photo_file(form, 61, 43)
    for data in (junk, whole[:keep] + junk, whole[:keep] + junk + whole[keep + len(junk) :]):
        seen = pictures.pixels(memoryview(data), 10_000)
        assert 0 <= seen <= 10_000
        try:
            picture = pictures.read(data, 10_000)
        except BadRow as error:
            assert str(error).isprintable()  # noqa: PT017 - either is fine
        else:
            assert seen == picture.width * picture.height


def test_a_row_weighs_by_its_pixels_and_by_the_most_if_they_are_hidden() -> None:
    weigh = DecodeImage().weight
    assert [weigh(memoryview(data)) for data in (b"", b"no picture", png(1000, 1000))] == [1, 1, 1]
    large = ((4000, 3000), (WIDE, HIGH), (1 << 31, 1 << 31))
    assert [weigh(memoryview(sized(*sides))) for sides in large] == [12, 39, 39]
    assert weigh(memoryview(empty_scans(4000, 3000, 2))) == 12
    hidden = jpeg(8, 8, ONE, extra=segment(0xE5) * 64)
    assert weigh(memoryview(hidden)) == weigh(memoryview(hidden[:100])) == 39
