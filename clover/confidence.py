"""Confidence in answers: a score for each row from the outputs of a batch; a higher score means a surer answer.

The worker computes scores with the batch, so that cascades need one number a row.  The profiler computes them on rows
whose labels are known, and chooses thresholds from these.  A score has no unit: it only separates rows below a
threshold from those above it.

A row whose output is not finite scores NaN, which is below every threshold: a cascade passes it on.  Other rows of the
batch, which may be of other clients, are not affected.  Anything else that is wrong with scores is an error of the
family and raises `ScoreError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover._native.scores import Scores
from clover.families import CONFIDENCES, resolve
from clover.types import ConfidenceSpec, FamilySpec

Floats = NDArray[np.float32]
Scorer = Callable[[Sequence[Any]], Floats]
"""Outputs of a batch in their declared order (arrays [rows, ...]) -> scores [rows], float32."""

Writer = Callable[[Sequence[Any], NDArray[np.uint32], Floats], None]
"""Outputs of a batch as above, slots [rows] in C order, scores [slots] -> the rows' scores are written."""

ROUNDING = 0.01
"""How far out of 0..1 a score may be by rounding (in half precision); beyond, the output holds no probabilities."""


class ScoreError(ValueError):
    """A function of a family gave no scores, or an output holds no probabilities."""


def scorer(spec: FamilySpec) -> Scorer | None:
    """Return how to score the answers of the models of `spec`, before any step; None if it declares no confidence.

    Raises ConfigError if it names a function of its own that cannot be found.
    """
    confidence = spec.confidence
    if confidence is None:
        return None
    names = [tensor.name for tensor in spec.model_outputs(spec.variants[0])]
    at = names.index(confidence.output) if confidence.output else 0
    if confidence.kind not in CONFIDENCES:
        return _own(resolve(confidence.kind, spec.folder), at)
    return _BuiltIn(confidence, at, names[at])


def writer(spec: FamilySpec) -> Writer | None:
    """Return the same as `scorer`, but scores go straight to slots; if it raises, some may have been written."""
    score = scorer(spec)
    if isinstance(score, _BuiltIn):
        return score.write
    if score is None:
        return None

    def write(outputs: Sequence[Any], slots: NDArray[np.uint32], into: Floats) -> None:
        into[slots] = score(outputs)

    return write


class _BuiltIn:
    """The built-in score of output `at` [rows, ...], called `name`, that holds probabilities, or logits.

    It raises ScoreError if the output cannot hold probabilities, and ValueError if a row has too few numbers.
    """

    def __init__(self, confidence: ConfidenceSpec, at: int, name: str) -> None:
        self._scores = Scores(confidence.kind, confidence.logits, ROUNDING)
        self._at = at
        self._name = name

    def __call__(self, outputs: Sequence[Any]) -> Floats:
        """Return the scores [rows] of a batch."""
        found = np.empty(len(outputs[self._at]), np.float32)
        self.write(outputs, None, found)
        return found

    def write(self, outputs: Sequence[Any], slots: NDArray[np.uint32] | None, into: Floats) -> None:
        """Write the scores of a batch to `slots` [rows] of `into`, or to all of it.

        Raises IndexError, and writes nothing, if there is no such slot.
        """
        values = outputs[self._at]
        try:
            wrong = self._scores.score(values, into, slots)
        except ValueError:  # most are float32 in C order, and a lone row would wait for numpy to say so
            values = np.require(values, np.float32, ("C", "A"))
            wrong = self._scores.score(values, into, slots)
        if wrong >= 0:
            found = into[wrong if slots is None else slots[wrong]]
            what = f"output {self._name!r} gave a score of {found:g}, so it holds no probabilities (logits = true?)"
            raise ScoreError(f"confidence: {what}")


def _with_nans(found: Floats, fine: NDArray[np.bool_], values: NDArray[Any], what: str) -> Floats:
    """Return scores `found` with NaN for the rows that are not `fine` because their `values` are not finite.

    Raises ScoreError, with the text `what`, if a row is not fine although its values are finite.
    """
    finite = np.ones(len(found), np.bool_)
    if values.dtype.kind == "f":
        finite = np.isfinite(values).reshape(len(found), -1).all(axis=1)
    if (finite & ~fine).any():
        raise ScoreError(f"confidence: {what.format(found[finite & ~fine][0])}")
    return np.where(fine, found, np.float32(np.nan))


def _own(function: Callable[..., Any], at: int) -> Scorer:
    """Return a family's own function as a scorer: from the chosen output [rows, ...] to finite scores [rows].

    The scorer raises ScoreError if the function returns anything else.
    """

    def score(outputs: Sequence[Any]) -> Floats:
        found = np.asarray(function(outputs[at]))
        if found.shape != (len(outputs[at]),) or found.dtype.kind not in "fiu":
            raise ScoreError(f"confidence gave {found.dtype} {list(found.shape)} for {len(outputs[at])} rows")
        scores = found.astype(np.float32, copy=False)
        fine = np.isfinite(scores)
        return scores if fine.all() else _with_nans(scores, fine, np.asarray(outputs[at]), "the function gave {:g}")

    return score


def answers(rows: NDArray[Any] | list[bytes]) -> NDArray[Any]:
    """Return the answer of each row of a first output: the argmax of several floats, or else the values themselves."""
    if isinstance(rows, list):
        return np.array(rows, dtype=object)
    flat = rows.reshape(len(rows), -1)
    return flat.argmax(axis=1) if flat.shape[1] > 1 and flat.dtype.kind == "f" else flat.copy()


def alike(mine: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows have the same answer; floats may differ by rounding (1e-3 relative)."""
    if mine.shape != reference.shape:
        return np.zeros(len(mine), np.bool_)
    if mine.dtype.kind == "f":
        same = np.isclose(mine, reference, rtol=1e-3, atol=1e-5, equal_nan=True)
    else:
        same = np.asarray(mine == reference, np.bool_)
    found: NDArray[np.bool_] = same.reshape(len(mine), -1).all(axis=1)
    return found


def agreement(mine: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the share of rows with the same answer, as `alike` judges it."""
    return float(alike(mine, reference).mean()) if len(mine) else 0.0


__all__ = ["ScoreError", "Scorer", "Writer", "agreement", "alike", "answers", "scorer", "writer"]
