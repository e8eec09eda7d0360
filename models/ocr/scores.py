"""How right a line is, and how sure a model is of it; NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def texts_of(outputs: dict[str, NDArray[Any]]) -> list[str]:
    """Return the lines that a model read."""
    return [bytes(row).decode("utf-8", "replace") for row in outputs["text"][:, 0]]


def whole_line(outputs: dict[str, NDArray[Any]], labels: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Return which lines are exactly what they should be, every character and space."""
    return np.array([found == str(label) for found, label in zip(texts_of(outputs), labels, strict=True)])


def characters(outputs: dict[str, NDArray[Any]], labels: NDArray[np.str_]) -> NDArray[np.float64]:
    """Return one less the character error rate of each line, at least 0: edits that make it its label, by length."""
    pairs = zip(texts_of(outputs), labels, strict=True)
    return np.array([max(0.0, 1.0 - edits(found, str(label)) / max(1, len(label))) for found, label in pairs])


def edits(one: str, other: str) -> int:
    """Return the fewest insertions, deletions and replacements of characters that make `one` the `other`."""
    row = list(range(len(other) + 1))
    for at, character in enumerate(one, 1):
        before, row[0] = row[0], at
        for k, wanted in enumerate(other, 1):
            before, row[k] = row[k], min(row[k] + 1, row[k - 1] + 1, before + (character != wanted))
    return row[-1]


def stated(confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the model itself says of its lines [rows, 1], as scores [rows]."""
    return confidence[:, 0]
