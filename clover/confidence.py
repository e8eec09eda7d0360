"""Confidence in answers: a score for each row from the outputs of a batch; a higher score means a surer answer.

The worker computes scores with the batch, so that cascades need one number a row.  The profiler computes them on rows
whose labels are known, and chooses thresholds from these.  A score has no unit: it only separates rows below a
threshold from those above it.

A row whose output is not finite scores NaN, which is below every threshold: a cascade passes it on.  Other rows of the
batch, which may be of other clients, are not affected.  Anything else that is wrong with scores is an error of the
family and raises `ScoreError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover.families import CONFIDENCES, resolve
from clover.types import FamilySpec

Floats = NDArray[np.float32]
Scorer = Callable[[Sequence[Any]], Floats]
"""Outputs of a batch in their declared order (arrays [rows, ...]) -> scores [rows], float32."""

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
    score = {"top": top, "margin": margin, "entropy": entropy}[confidence.kind]
    if not confidence.logits:
        return _of_probabilities(score, at, names[at])
    return lambda outputs: score(softmax(_flat(outputs[at])))


def _of_probabilities(function: Callable[[Floats], Floats], at: int, name: str) -> Scorer:
    """Return a built-in score of an output [rows, ...] that holds probabilities.

    The score raises ScoreError if the output cannot hold probabilities.
    """
    wrong = f"output {name!r} gave a score of {{:g}}, so it holds no probabilities (logits = true?)"

    def score(outputs: Sequence[Any]) -> Floats:
        values = _flat(outputs[at])
        found = function(values)
        fine = (found >= -ROUNDING) & (found <= 1.0 + ROUNDING)
        return found if fine.all() else _with_nans(found, fine, values, wrong)

    return score


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


def _flat(output: NDArray[Any]) -> Floats:
    return output.reshape(len(output), -1).astype(np.float32, copy=False)


def softmax(logits: Floats) -> Floats:
    """Return probabilities [rows, K] of logits [rows, K]."""
    with np.errstate(invalid="ignore"):  # rows that are not finite
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        found: Floats = raised / raised.sum(axis=1, keepdims=True)
    return found


def top(probabilities: Floats) -> Floats:
    """Return the largest probability [rows] of probabilities [rows, K]."""
    found: Floats = probabilities.max(axis=1)
    return found


def margin(probabilities: Floats) -> Floats:
    """Return the largest probability less the second largest [rows] of probabilities [rows, K]."""
    last = np.partition(probabilities, -2, axis=1)
    found: Floats = last[:, -1] - last[:, -2]
    return found


def entropy(probabilities: Floats) -> Floats:
    """Return 1 - H / ln K [rows] of probabilities [rows, K]: 1 for certainty, 0 if all classes are equally likely."""
    clipped = np.maximum(probabilities, np.float32(1e-12))
    found: Floats = 1.0 + (clipped * np.log(clipped)).sum(axis=1) / np.float32(math.log(probabilities.shape[1]))
    return found


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


def agreement(mine: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the share of rows with the same answer; floats may differ by rounding (1e-3 relative)."""
    if mine.shape != reference.shape or not len(mine):
        return 0.0
    if mine.dtype.kind == "f":
        same = np.isclose(mine, reference, rtol=1e-3, atol=1e-5, equal_nan=True)
    else:
        same = mine == reference
    return float(np.mean(same.reshape(len(mine), -1).all(axis=1)))


__all__ = ["ScoreError", "Scorer", "agreement", "answers", "entropy", "margin", "scorer", "softmax", "top"]
