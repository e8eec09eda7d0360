"""What a declaration consists of: its file, the words that its keys accept, and the datatypes of tensors."""

from __future__ import annotations

import re
from typing import Any, get_args

import numpy as np

from clover.types import Precision

FILE = "family.toml"
COMPUTED = ("folder", "digest")
"""Fields of `FamilySpec` that Clover fills in; a file must not give them."""

SPLITS = ("calibration", "held_out")
TOP1 = "top1"
"""The metric that is built in: the answer is the label, or it is not."""
CONFIDENCES = ("top", "margin", "entropy")
PRECISIONS: tuple[str, ...] = get_args(Precision)
MAX_VARIANTS = 64
"""Variants of a family, at most: the batcher keeps sets of them as the bits of one word."""

MAX_RANK = 8
"""Axes of a tensor, at most; the batch axis is one of them."""

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""The Open Inference Protocol's datatypes and the arrays that hold them.  BF16 travels as its 16 bits; BYTES as an
object array of `bytes`."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
LOADER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
