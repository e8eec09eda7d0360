"""The labelled sentences of the package `eld`, and a split of them by what they say.

Needs NumPy and the files of `eld` only (`pip install "clover-inference[models]"`): nothing of it is imported, and
none of its sentences comes with Clover.  The hash of a sentence's letters says which part of the split it belongs to;
digits, punctuation, case and spacing are left out.  So a sentence that is there twice, or twice but for a number, is
never in two parts, the parts do not depend on the order of the file, and the weights never saw what they are scored on.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANGUAGES = (
    "am", "ar", "az", "be", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "et", "eu", "fa", "fi", "fr", "gu",
    "he", "hi", "hr", "hu", "hy", "is", "it", "ja", "ka", "kn", "ko", "ku", "lo", "lt", "lv", "ml", "mr", "ms", "nl",
    "no", "or", "pa", "pl", "pt", "ro", "ru", "sk", "sl", "sq", "sr", "sv", "ta", "te", "th", "tl", "tr", "uk", "ur",
    "vi", "yo", "zh",
)  # fmt: skip
"""ISO 639-1, in the order of the family's output."""

FILE = "tests/data/big-test.txt"
TENTHS = {"calibration": (0, 1), "held_out": (2, 3), "train": (4, 5, 6, 7, 8, 9)}
"""Which tenths of the hashes belong to which part."""


def sentences_file() -> Path:
    """Return the file of labelled sentences.  Raises ModuleNotFoundError if the package is not installed, and
    FileNotFoundError if this version of it comes without them."""
    found = importlib.util.find_spec("eld")
    if found is None or found.origin is None:
        text = "the labelled sentences of the family language are in the package eld"
        raise ModuleNotFoundError(f'{text}: pip install "clover-inference[models]"', name="eld")
    path = Path(found.origin).parent / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this version of eld has no sentences: pip install eld==1.0.6")
    return path


def tenth_of(sentence: str) -> int:
    """Return the tenth, 0 to 9, that a sentence belongs to by its letters."""
    letters = "".join(character for character in sentence.casefold() if character.isalpha())
    return hashlib.sha256(letters.encode()).digest()[0] * 10 // 256


def sentences(part: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the sentences of "train", "calibration" or "held_out", each once, and the index of their language.

    A sentence that stands under two languages keeps the first.
    """
    tenths, number = TENTHS[part], {language: at for at, language in enumerate(LANGUAGES)}
    found: dict[str, int] = {}
    with sentences_file().open(encoding="utf-8") as lines:
        for line in lines:
            language, _, text = line.rstrip("\n").partition("\t")
            if tenth_of(text) in tenths:
                found.setdefault(text, number[language])
    return list(found), np.fromiter(found.values(), np.int64, len(found))


def load(folder: Path, split: str) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Return the sentences of `split` ("calibration" or "held_out") as UTF-8 in `[text]`, and their languages."""
    texts, labels = sentences(split)
    rows = np.empty((len(texts), 1), dtype=object)
    rows[:, 0] = [text.encode() for text in texts]
    return [rows], labels
