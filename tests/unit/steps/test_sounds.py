"""Sounds: WAV files as Python's `wave` and NumPy hold them, other rates, lengths and frames."""

from __future__ import annotations

import io
import struct
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clover.steps import BadRow
from clover.steps.sounds import DecodeWav, Frame, Pad, decode_wav, encode_wav, resample
from clover.steps.step import At, bytes_row

AT = At("x", "x", None)
RATE = 8000


def tone(seconds: float = 0.25, rate: int = RATE, hertz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def by_wave(samples: NDArray[np.float64], width: int, channels: int = 1) -> bytes:
    """Return samples as the standard library writes them, `channels` times side by side."""
    whole = np.round(samples * ((1 << (8 * width - 1)) - 1)).astype(np.int64)
    wide = np.repeat(whole, channels).astype("<i8")
    body = wide.view(np.uint8).reshape(-1, 8)[:, :width]
    body = body if width > 1 else (wide + 128).astype(np.uint8)
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((channels, width, RATE, 0, "NONE", ""))
        file.writeframes(body.tobytes())
    return made.getvalue()


def by_float(samples: NDArray[Any], datatype: str) -> bytes:
    body = samples.astype(datatype).tobytes()
    width = np.dtype(datatype).itemsize
    form = struct.pack("<HHIIHH", 3, 1, RATE, RATE * width, width, 8 * width)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"odd " + struct.pack("<I", 3) + b"abc\0"
    return b"RIFF\0\0\0\0WAVE" + chunks + b"data" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_every_width(width: int, channels: int) -> None:
    found, rate = decode_wav(by_wave(tone(), width, channels))
    assert (rate, found.dtype, found.shape) == (RATE, np.float32, (2000,))
    np.testing.assert_allclose(found, tone(), atol=2.0 ** (2 - 8 * width) + 1e-6)


@pytest.mark.parametrize("datatype", ["<f4", "<f8"])
def test_floats_and_chunks_that_are_not_known(datatype: str) -> None:
    found, _ = decode_wav(by_float(tone(), datatype))
    np.testing.assert_array_equal(found, tone().astype(np.float32))


def test_floats_beyond_one_are_cut_and_a_stream_need_not_know_its_length() -> None:
    np.testing.assert_array_equal(decode_wav(by_float(np.array([1e38, -2.0, 0.5]), "<f4"))[0], [1.0, -1.0, 0.5])
    whole = encode_wav(tone(), RATE)
    for said in (0xFFFF_FFFF, 0x7FFF_FFFF):  # as written into a pipe
        np.testing.assert_array_equal(
            decode_wav(whole[:40] + struct.pack("<I", said) + whole[44:])[0], decode_wav(whole)[0]
        )


def test_what_is_no_sound_is_refused_with_a_reason() -> None:
    whole = encode_wav(tone(), RATE)
    for data, reason in (
        (b"", "not a WAV file"),
        (whole[:36], "no samples"),
        (whole[:44], "no samples"),
        (whole[:20] + b"\x02" + whole[21:], "samples of kind 2"),
        (whole[:22] + b"\0\0" + whole[24:], "0 channels"),
        (by_float(np.array([np.nan, 0.0]), "<f4"), "no finite numbers"),
        (by_float(np.array([1e300, 0.0]), "<f8"), "no finite numbers"),
        (whole[:1000], "4000 bytes of samples, and 956 are there"),
    ):
        with pytest.raises(BadRow, match=reason):
            decode_wav(data)
    for step, reason in (
        (DecodeWav(rate=RATE, max_seconds=0.1), "longer than the 0.1 s"),
        (DecodeWav(rate=16000, resample=False), "8000 samples a second, and 16000"),
    ):
        with pytest.raises(BadRow, match=reason):
            step.row({"x": bytes_row(whole)}, AT)


WHOLE = encode_wav(tone(0.01), RATE)


@given(st.integers(0, len(WHOLE)), st.binary(max_size=60))
def test_no_bytes_do_harm(keep: int, junk: bytes) -> None:
    for data in (junk, WHOLE[:keep] + junk, WHOLE[:keep] + junk + WHOLE[keep + len(junk) :]):
        values: dict[str, Any] = {"x": bytes_row(data)}
        try:
            DecodeWav(rate=RATE).row(values, AT)
        except BadRow as error:
            assert str(error)  # noqa: PT017 - either is fine
        else:
            assert np.isfinite(values["x"]).all()


@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (8000, 16000), (16000, 11025)])
def test_a_tone_stays_a_tone_at_another_rate(rate: int, wanted: int) -> None:
    found = resample(tone(0.25, rate).astype(np.float32), rate, wanted)
    inner = slice(wanted // 50, -wanted // 50)
    np.testing.assert_allclose(found[inner], tone(0.25, wanted)[: len(found)][inner], atol=2e-3)


def exactly(given: NDArray[np.float32], rate: int, wanted: int, number: int) -> float:
    """Return the sample `number` of a sound that is resampled, without any shortcut."""
    part = min(1.0, wanted / rate)
    distance = number * rate / wanted - np.arange(len(given))
    window = np.where(np.abs(distance) < 32 / part, 0.5 + 0.5 * np.cos(np.pi * distance * part / 32), 0.0)
    return float((given * window * np.sinc(distance * part) * part).sum())


@pytest.mark.parametrize(("rate", "wanted", "count"), [(44100, 16000, 900), (250, 16000, 9), (15999, 16000, 300)])
def test_filters_that_repeat_are_those_of_each_sample(rate: int, wanted: int, count: int) -> None:
    given = np.random.default_rng(0).uniform(-1, 1, count).astype(np.float32)
    found = resample(given, rate, wanted)
    for number in range(0, len(found), 37):
        assert found[number] == pytest.approx(exactly(given, rate, wanted, number), abs=1e-6)


@pytest.mark.parametrize(("rate", "wanted"), [(44101, 16000), (7999, 8000), (16000, 44099)])
def test_rates_that_share_nothing_need_few_filters(rate: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.random.default_rng(1).uniform(-1, 1, 12_000).astype(np.float32)
    made = 0

    def counted(places: NDArray[Any]) -> NDArray[Any]:
        nonlocal made
        made += len(places)
        found: NDArray[Any] = sinc(places)
        return found

    sinc = np.sinc
    monkeypatch.setattr(np, "sinc", counted)
    found = resample(given, rate, wanted)
    monkeypatch.undo()
    assert made <= 1025  # it was one for each of the samples that are made
    assert len(found) > 4000
    for number in range(0, len(found), 379):
        assert found[number] == pytest.approx(exactly(given, rate, wanted, number), abs=1e-5)


def head(count: int, rate: int, bits: int = 8) -> bytes:
    """Return a silent sound of so many samples."""
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * bits // 8, bits // 8, bits)
    size = count * bits // 8
    return b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + bytes(size)


def test_what_a_sound_costs_is_known_from_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(data: bytes, **how: Any) -> str:
        with pytest.raises(BadRow) as caught:
            DecodeWav(**how).row({"x": bytes_row(data)}, AT)
        assert str(caught.value).isprintable()
        return str(caught.value)

    monkeypatch.setattr("clover.steps.sounds._samples", lambda sound: pytest.fail("its samples were looked at"))
    assert "longer than the 1 s allowed" in refused(head(8001, RATE), rate=RATE, max_seconds=1)
    assert "has 250 samples a second, and 16001 are taken" in refused(head(10, 250), rate=16001)
    many = refused(head(10_000_000, 192_000), rate=16_000)
    assert many.endswith("takes 640833077 products to be resampled to 16000, more than the 536870912 allowed")
    crowded = head(10, RATE)[:12] + b"junk\0\0\0\0" * 1024 + head(10, RATE)[12:]
    assert "more than the 1024 chunks allowed" in refused(crowded, rate=RATE)


def test_a_sound_weighs_by_the_products_that_it_takes() -> None:
    weigh = DecodeWav(rate=16_000).weight
    light = (b"", b"RIFF", head(960_000, 16_000), head(16_000, 8_000))
    assert [weigh(memoryview(data)) for data in light] == [1, 1, 1, 1]
    assert weigh(memoryview(head(2_646_000, 44_100))) == 11
    assert weigh(memoryview(head(10_000_000, 192_000))) == 1  # it is refused
    assert DecodeWav(rate=16_000, resample=False).weight(memoryview(head(2_646_000, 44_100))) == 1


def test_above_half_the_new_rate_nothing_is_left() -> None:
    found = resample(tone(0.25, 44100, 12000.0).astype(np.float32), 44100, 16000)
    assert np.abs(found[500:-500]).max() < 2e-3


def test_lengths_and_frames() -> None:
    rows = [np.arange(5, dtype=np.float32), np.arange(9, dtype=np.float32)]
    columns: dict[str, Any] = {"x": rows}
    Pad(multiple=4).batch(columns, AT)
    assert [row.tolist()[4:] for row in columns["x"]] == [[4, 0, 0, 0, 0, 0, 0, 0], [4, 5, 6, 7, 8, 0, 0, 0]]
    columns = {"x": rows}
    Pad(size=7, value=-1).batch(columns, AT)
    assert [row.tolist()[4:] for row in columns["x"]] == [[4, -1, -1], [4, 5, 6]]
    columns = {"x": [*rows, np.ones(2, np.float32)]}
    Frame(size=4, hop=3).batch(columns, AT)
    assert [row.tolist() for row in columns["x"]] == [[[0, 1, 2, 3]], [[0, 1, 2, 3], [3, 4, 5, 6]], [[1, 1, 0, 0]]]
