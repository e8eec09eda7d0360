"""How right answers are: by label or by a family's own metric, with intervals; and agreement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.confidence import agreement, alike, answers
from clover.errors import ProfileError
from clover.families import AGREEMENT, TOP1, resolve
from clover.runtime.guard.drift import wilson
from clover.runtime.memory.bytes_codec import split_row
from clover.types import FamilySpec, TensorSpec

Rights = NDArray[Any]
"""Whether each row is right (bool); or how far, 0..1 (float64)."""
Judge = Callable[[Mapping[str, NDArray[Any]], NDArray[Any]], Rights]
"""Outputs of some rows by name (arrays [rows, ...]), and the labels of these rows -> how right each is [rows]."""


def judge(spec: FamilySpec, own: Callable[..., Any] | None = None) -> Judge:
    """Return a function that compares outputs with labels: `[evaluation] metric`.  `own` stands for a metric of the
    family's own; without it that metric is imported here.  Raises ConfigError if the metric names a function that
    cannot be found.  The judge raises ProfileError if that function fails, or gives anything but one number in 0..1 a
    row."""
    metric = spec.evaluation.metric if spec.evaluation is not None else TOP1
    if metric in (TOP1, AGREEMENT):
        first = spec.outputs[0].name
        return lambda outputs, labels: _equal(answers(outputs[first]), labels)
    where = f"family {spec.name!r}: evaluation.metric {metric!r}"
    return _own(own or resolve(metric, spec.folder), where, apart=own is not None)


def _equal(found: NDArray[Any], labels: NDArray[Any]) -> Rights:
    """Return which answers are their labels; an answer of one element may have a label without an axis for it."""
    if labels.dtype.kind == "U":
        labels = np.char.encode(labels, "utf-8")  # a model answers text as bytes
    shaped = found.reshape(labels.shape) if found.size == labels.size else found
    same: Rights = np.asarray(shaped == labels, dtype=np.bool_)
    right: Rights = np.logical_and.reduce(same.reshape(len(labels), -1), axis=1)
    return right


def _own(function: Callable[..., Any], where: str, *, apart: bool) -> Judge:
    def judged(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any]) -> Rights:
        try:
            rights = np.asarray(function(dict(outputs), labels))
        except Exception as error:
            said = str(error) if apart else f"{type(error).__name__}: {error}"
            raise ProfileError(f"{where}: {said}") from error
        if rights.shape != (len(labels),) or rights.dtype.kind not in "biuf":
            raise ProfileError(f"{where}: gave {rights.dtype} {list(rights.shape)} for {len(labels)} rows")
        scores = rights.astype(np.float64)
        if not ((scores >= 0.0) & (scores <= 1.0)).all():
            odd = scores[~((scores >= 0.0) & (scores <= 1.0))][0]
            raise ProfileError(f"{where}: gave {odd:g}: a row is right by 0 to 1")
        return scores

    return judged


def as_array(tensor: TensorSpec, rows: NDArray[Any] | list[bytes]) -> NDArray[Any]:
    """Return rows of an output as an array [rows, ...]; BYTES, which come as the protocol has them, as objects."""
    if not isinstance(rows, list):
        return rows
    rows_array = np.empty((len(rows), *(1 if axis < 0 else axis for axis in tensor.shape)), dtype=object)
    for at, row in enumerate(rows):
        rows_array[at] = np.array(split_row(row), dtype=object).reshape(rows_array.shape[1:])
    return rows_array


def interval(right: float, rows: int) -> tuple[float, float]:
    """Return the 95 % interval, in percent, of the mean of `rows` scores of 0..1 whose sum is `right`.  It is Wilson's
    for a share.  Scores between 0 and 1 vary less than right and wrong with the same mean, so for them the interval is
    wider than necessary, and never too narrow."""
    low, high = wilson(right, rows)  # type: ignore[arg-type]  # a part of a row counts as a part
    mean = 100.0 * right / rows
    return min(low, mean), max(high, mean)  # if all rows are right, rounding leaves the bound a little below 100


__all__ = ["Judge", "Rights", "agreement", "alike", "answers", "as_array", "interval", "judge", "wilson"]
