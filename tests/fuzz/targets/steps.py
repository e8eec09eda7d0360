"""Steps on what clients send: the first byte chooses a step, the rest is a picture, a sound or a text.

A row is taken or refused with `BadRow`, whose text is one short printable line; what it becomes has the shape, datatype
and bounds that the step declares, and a `resize` that is done while a picture is decoded makes the same of it.  The
weight of a row is that of its pixels, and no row takes a second of CPU time.
"""

from __future__ import annotations

import io
import struct
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from clover.steps import pictures
from clover.steps.images import Crop, DecodeImage, Resize
from clover.steps.sounds import DecodeWav, decode_wav, encode_wav
from clover.steps.step import At, BadRow, bytes_row
from clover.steps.texts import Tokenise
from tests.support.pictures import chunk, empty_scans, jpeg, png, scan, segment

INSTRUMENTED = ("clover.steps",)
_FOLDER = tempfile.TemporaryDirectory(prefix="clover-fuzz-steps-")
_LENGTH = 16

DICTIONARY = (
    *(b"RIFF", b"WAVE", b"fmt ", b"data", b"\x89PNG\r\n\x1a\n", b"IHDR", b"IDAT", b"IEND", b"eXIf", b"\xff\xd8\xff",
      b"PLTE"),
    *(b"\xff\xff\xff\xff", b"\xff\xda", b"\xff\xc0", b"\xff\xe1", b"Exif\0\0", b"\xfe\xff", b"\1\0\1\0", b"\3\0\1\0",
      b"iCCP"),
    *(b"who sat", b"[CLS]", b"[PAD]", b"\xff", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\0", b"tRNS", b"acTL", b"zTXt"),
)  # fmt: skip


def _tokenizer() -> Path:
    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "who", "sat", "on", "the", "mat", "a", "cat"])
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    made.save(str(Path(_FOLDER.name) / "tokenizer.json"))
    return Path(_FOLDER.name)


HERE = _tokenizer()
_PICTURES = (
    DecodeImage(max_pixels=100_000),
    DecodeImage(mode="L", max_pixels=100_000, upright=False),
)
_SHAPES = (Resize(size=24), Crop(size=8))
_WAV = DecodeWav(rate=8000, max_seconds=0.5)
_WORDS = Tokenise(length=_LENGTH)


def seeds() -> list[bytes]:
    """Return small pictures in several modes, sounds in several formats, and texts."""
    found = []
    for mode in ("RGB", "L", "P", "RGBA", "I;16", "1", "LA"):
        picture = Image.new(mode, (5, 3))
        made = io.BytesIO()
        picture.save(made, "PNG")
        found += [bytes([kind]) + made.getvalue() for kind in (0, 1)]
    for mode in ("RGB", "L", "CMYK"):
        made = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new(mode, (9, 4)).save(made, "JPEG", exif=exif)
        found += [bytes([kind]) + made.getvalue() for kind in (0, 1)]
    sound = encode_wav(np.sin(np.arange(50)), 8000)
    found += [b"\2" + sound, b"\2" + encode_wav(np.sin(np.arange(50)), 4410)]
    found += [b"\2" + sound.replace(b"\x10\0data", bytes([bits, 0]) + b"data") for bits in (8, 24, 32, 64)]
    found += [b"\0" + picture for picture in _costly_pictures()]
    odd = encode_wav(np.sin(np.arange(900)), 8009)
    found += [b"\2" + odd, b"\2" + odd[:12] + b"junk\0\0\0\0" * 200 + odd[12:]]
    found += [b"\3who sat on the mat", b"\3[CLS] a [SEP]", b"\3", b"\3\xff\xfe", "\3é\U0001f600".encode()]
    return found


def _costly_pictures() -> list[bytes]:
    """Return pictures that cost a decoder more than their bytes let expect."""
    one = scan(1, 0, 63, 0, b"\x3f")
    bomb = zlib.compress(bytes(1 << 18), 9)
    turns = b"II*\0\x08\0\0\0" + struct.pack("<H", 40) + struct.pack("<HHII", 0x0111, 2, 60_000, 8) * 39
    turns += struct.pack("<HHIII", 0x0112, 3, 1, 6, 8)
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 300, 300, 0, 0, 1, 1, 1, 0))
    return [
        empty_scans(300, 300, 33),
        empty_scans(300, 300, 20),
        jpeg(300, 300, scan(3, 0, 63, 0, b"\0" * 40), parts=3),
        jpeg(300, 300, scan(1, 0, 63, 0, b"\0\0"), kind=0xC9),
        jpeg(8, 8, one, extra=segment(0xE1, b"Exif\0\0" + turns) * 2),
        jpeg(8, 8, segment(0xDD, b"\0\1") + scan(1, 0, 63, 0, b"\x3f\xff\xd0" * 9), extra=segment(0xE5) * 70),
        png(300, 300, 1),
        png(40, 40, 16, 6, extra=chunk(b"iCCP", b"a\0\0" + bomb) + chunk(b"zTXt", b"a\0\0" + bomb)),
        png(300, 300, extra=chunk(b"acTL", struct.pack(">II", 9, 0)) + frame, empty=30),
        png(9, 9, extra=chunk(b"eXIf", turns), after=chunk(b"tEXt", b"a\0b") * 30),
    ]


def check(data: bytes) -> str:
    """Apply one step to one row."""
    begun_s = time.thread_time()
    found = _check(data)
    assert time.thread_time() - begun_s < 1.0
    return found


def _check(data: bytes) -> str:
    kind, row = (data[:1] or b"\0")[0] % 4, data[1:]
    values: dict[str, Any] = {"x": bytes_row(row)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind < 2:
                return _picture(_PICTURES[kind], values)
            if kind == 2:
                return _sound(row, values)
            return _text(values)
    except BadRow as error:
        text = str(error)
        assert 0 < len(text) < 300, text
        assert text.isprintable(), text
        return f"refused: {text}"


def _picture(step: DecodeImage, values: dict[str, Any]) -> str:
    row = values["x"][0]
    step.row(values, At("x", "image", HERE))
    image = values["image"]
    assert pictures.pixels(memoryview(row), step.max_pixels) in (image.shape[0] * image.shape[1], step.max_pixels)
    at_once = {"x": values["x"]}
    step.row(at_once, At("x", "image", HERE, _SHAPES[0]))
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == (3 if step.mode == "RGB" else 1)
    assert 0 < image.shape[0] * image.shape[1] <= step.max_pixels
    assert values["image_size"].tolist() == list(image.shape[:2])
    for shape in _SHAPES:
        shape.row(values, At("image", "image", HERE))
        if shape is _SHAPES[0]:
            resized = values["image"]
            assert at_once["image"].shape == resized.shape
            if min(image.shape[:2]) < 8 * 24:
                assert np.array_equal(at_once["image"], resized)
    assert values["image"].shape[:2] == (8, 8)
    return f"image {image.shape} {int(image.sum())}"


def _sound(row: bytes, values: dict[str, Any]) -> str:
    samples, rate = decode_wav(row)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert np.abs(samples).max(initial=0.0) <= 1.0
    if rate * 64 < _WAV.rate or len(samples) > 1 << 16:
        return f"sound of {len(samples)} at {rate}"
    _WAV.row(values, At("x", "sound", HERE))
    sound = values["sound"]
    assert np.isfinite(sound).all()
    assert len(sound) <= _WAV.rate * _WAV.max_seconds
    return f"sound {sound.shape} {sound.dtype}"


def _text(values: dict[str, Any]) -> str:
    at = At("x", "ids", HERE)
    _WORDS.row(values, at)
    columns: dict[str, Any] = {name: [value] for name, value in values.items()}
    _WORDS.batch(columns, at)
    ids = columns["ids"][0]
    assert len(ids) == _LENGTH
    return f"tokens {list(map(int, ids))}"
