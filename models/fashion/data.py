"""Fashion-MNIST as NumPy arrays, and the fixed split of its test set.

Needs gzip and NumPy only: the server calls `load` to measure accuracy and must not import torch for it.

The 10,000 test images were never trained on.  They are shuffled once with a fixed seed and cut in two: 5,000
"calibration" images (thresholds, choice of backend, anything that is fitted) and 5,000 "held_out" images (what is
reported).  Sorting the indices keeps the file's order inside each half.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
SPLITS = ("calibration", "held_out")
SPLIT_SEED = 20170825
"""Any constant would do; this one is the date the data set was published."""

IDX_UINT8 = 8
"""Type byte of an IDX file of unsigned bytes, the only kind used here."""


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array in a gzipped IDX file of unsigned bytes.  Raises ValueError if it is not one.

    IDX is: two zero bytes, a type byte, the rank, one big-endian uint32 per axis, then the elements in C order.
    """
    content = gzip.decompress(path.read_bytes())
    if len(content) < 4 or content[:3] != bytes((0, 0, IDX_UINT8)):
        raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
    rank = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank))
    elements = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if elements.size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"{path.name} holds {elements.size} elements, its header promises {shape}")
    return elements.reshape(shape)


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return images `[n, 28, 28]` of 0..255 as the family's input: float32 `[n, 1, 28, 28]` of 0..1."""
    scaled: NDArray[np.float32] = images[:, None].astype(np.float32) / np.float32(255)
    return scaled


def split_indices(split: str, rows: int = 10_000) -> NDArray[np.int64]:
    """Return the sorted indices into the test set that belong to `split`.  Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: it is one of {', '.join(SPLITS)}")
    # RandomState, unlike default_rng, is frozen: the same seed gives the same order in every NumPy.
    order = np.random.RandomState(SPLIT_SEED).permutation(rows)
    half = rows // 2
    chosen = order[:half] if split == "calibration" else order[half:]
    return np.sort(chosen).astype(np.int64)


def load_test(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all 10,000 test images as the family's input, and their labels 0..9."""
    images = read_idx(folder / "data" / TEST_IMAGES)
    labels = read_idx(folder / "data" / TEST_LABELS)
    return pixels(images), labels.astype(np.int64)


def load(folder: Path, split: str) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """Return the 5,000 images of `split` ("calibration" or "held_out") as `[image]`, and their labels."""
    chosen = split_indices(split)
    images = read_idx(folder / "data" / TEST_IMAGES)[chosen]
    labels = read_idx(folder / "data" / TEST_LABELS)[chosen]
    return [pixels(images)], labels.astype(np.int64)
