"""Steps on what clients send: the first byte chooses a step, the rest is a picture, a sound or a text.

A row is taken or refused with `BadRow`, whose text is one short printable line; what it becomes has the shape, datatype
and bounds that the step declares.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from clover.steps.images import Crop, DecodeImage, Resize
from clover.steps.sounds import DecodeWav, decode_wav, encode_wav
from clover.steps.step import At, BadRow, bytes_row
from clover.steps.texts import Tokenise

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
    found += [b"\3who sat on the mat", b"\3[CLS] a [SEP]", b"\3", b"\3\xff\xfe", "\3é\U0001f600".encode()]
    return found


def check(data: bytes) -> str:
    """Apply one step to one row."""
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
    step.row(values, At("x", "image", HERE))
    image = values["image"]
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == (3 if step.mode == "RGB" else 1)
    assert 0 < image.shape[0] * image.shape[1] <= step.max_pixels
    assert values["image_size"].tolist() == list(image.shape[:2])
    for shape in _SHAPES:
        shape.row(values, At("image", "image", HERE))
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
