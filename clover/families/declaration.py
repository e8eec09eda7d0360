"""What a declaration consists of: its file, the words that its keys accept, and the datatypes of tensors."""

from __future__ import annotations

import re
from typing import get_args

from clover.datatypes import DATATYPES
from clover.types import FamilySpec, Precision

__all__ = [
    "COMPUTED",
    "COMPUTED_OF_VARIANTS",
    "CONFIDENCES",
    "DATATYPES",
    "DIGEST",
    "FILE",
    "LOADER",
    "MAX_RANK",
    "MAX_VARIANTS",
    "NAME",
    "PRECISIONS",
    "PUBLISHED",
    "SPLITS",
    "by_agreement",
]

FILE = "family.toml"
COMPUTED = ("folder", "digest", "manifest")
"""Fields of `FamilySpec` that Clover fills in; a file must not give them."""

COMPUTED_OF_VARIANTS = ("inputs", "outputs")
"""The same of `VariantSpec`."""

SPLITS = ("calibration", "held_out")
TOP1 = "top1"
"""The usual metric: the answer is the label, or it is not."""
AGREEMENT = "agreement"
"""The metric without labels: the answer is that of the last variant, or it is not.  A proxy."""
METRICS = (TOP1, AGREEMENT)
CONFIDENCES = ("top", "margin", "entropy")
PRECISIONS: tuple[str, ...] = get_args(Precision)
MAX_VARIANTS = 64
"""Variants of a family, at most: the batcher keeps sets of them as the bits of one word."""

MAX_RANK = 8
"""Axes of a tensor, at most; the batch axis is one of them."""

NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
LOADER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
PUBLISHED = re.compile(r"https://[\w.-]+(/([\w.~-]+|\{revision\}))+", re.ASCII)
DIGEST = re.compile(r"[0-9a-f]{8,64}")


def by_agreement(spec: FamilySpec) -> bool:
    """Return whether a family is measured by agreement with its best variant."""
    return spec.evaluation is not None and spec.evaluation.metric == AGREEMENT
