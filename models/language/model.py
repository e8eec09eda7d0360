"""The variants of the `language` family: hashed character n-grams, their mean embedding, and one linear layer.

A text is lower-cased and cut to the characters that a variant reads.  Every run of 1 to `orders` characters is hashed
into one of 2^`bits` buckets; the embeddings of the buckets are averaged, and a linear layer and a softmax make 60
probabilities of the mean.  What a text costs is the number of embeddings that are read for it, so cheap variants read
the beginning of a text only, and short runs.

NumPy alone, one thread.  Rows of a batch are one after the other in one array, so a batch costs a few calls in all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from clover.types import VariantSpec

_PRIME, _MIX = np.uint32(0x01000193), np.uint32(0x9E3779B1)
_EDGE = " "
"""Stands before and after a text, so that the beginnings and ends of words look alike everywhere in it."""


def ngrams(
    texts: Sequence[str], orders: int, bits: int, characters: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the buckets of all n-grams of all texts, row after row, and where each row begins.

    Every row has at least one: the edge of an empty text.
    """
    cut = [f"{_EDGE}{text[:characters].lower()}{_EDGE}" for text in texts]
    codes = np.frombuffer("".join(cut).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.array([len(text) for text in cut])
    ends = np.repeat(np.cumsum(lengths), lengths)  # of the row that each character belongs to
    at = np.arange(len(codes))
    found = np.empty((len(codes), orders), np.int64)
    kept = np.empty((len(codes), orders), np.bool_)
    hashed = np.zeros(len(codes), np.uint32)
    for order in range(orders):
        follows = np.zeros_like(hashed)
        follows[: max(0, len(codes) - order)] = codes[order:]
        hashed = (hashed ^ follows) * _PRIME + np.uint32(order)
        found[:, order] = ((hashed ^ (hashed >> np.uint32(15))) * _MIX) >> np.uint32(32 - bits)
        kept[:, order] = at + order < ends
    per_row = np.add.reduceat(kept.sum(axis=1), np.cumsum(lengths) - lengths)
    return found[kept], np.cumsum(per_row) - per_row


def decoded(rows: NDArray[Any]) -> list[str]:
    """Return the texts of BYTES rows [rows, 1]; bytes that are not UTF-8 become U+FFFD."""
    return [bytes(row).decode("utf-8", "replace") for row in rows[:, 0]]


class Detector:
    """One variant: texts to probabilities.  `embeddings` [buckets, width], `weight` [60, width], `bias` [60]."""

    def __init__(self, tensors: dict[str, NDArray[Any]], orders: int, characters: int) -> None:
        self._embeddings = np.ascontiguousarray(tensors["embeddings"], np.float32)
        self._weight = np.ascontiguousarray(tensors["weight"].T, np.float32)
        self._bias = tensors["bias"].astype(np.float32)
        self._orders = orders
        self._characters = characters
        self._bits = len(self._embeddings).bit_length() - 1

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the probability of each language, float32 [texts, 60]."""
        buckets, begins = ngrams(texts, self._orders, self._bits, self._characters)
        sums = np.add.reduceat(self._embeddings[buckets], begins, axis=0)
        counts = np.diff(begins, append=len(buckets)).astype(np.float32)
        logits = (sums / counts[:, None]) @ self._weight + self._bias
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: NDArray[np.float32] = raised / raised.sum(axis=1, keepdims=True)
        return found

    def __call__(self, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        """Answer a batch: BYTES [rows, 1] in, float32 [rows, 60] out."""
        return [self.probabilities(decoded(inputs[0]))]


def load(variant: VariantSpec, folder: Path) -> Callable[[list[NDArray[Any]]], list[NDArray[Any]]]:
    """Return the trained `variant`; its weights are stored as float16 and computed with as float32."""
    from safetensors.numpy import load_file

    tensors = load_file(folder / variant.weights)
    return Detector(tensors, int(variant.parameters["orders"]), int(variant.parameters["characters"]))
