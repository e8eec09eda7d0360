"""How sure an answer is: a score a row from the outputs of a batch, higher the surer.

Computed by the worker, in the batch, so that cascades need nothing but a number a row; and by the profiler, on rows
whose answers are known, which is where thresholds come from.  A score means nothing by itself: only rows below a
threshold are told from those above it.
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


class ScoreError(ValueError):
    """A function of a family gave no scores."""


def scorer(spec: FamilySpec) -> Scorer | None:
    """How to score the answers of `spec`; None where it declares no confidence.  ConfigError for a function of its own
    that is not to be found."""
    confidence = spec.confidence
    if confidence is None:
        return None
    names = [tensor.name for tensor in spec.outputs]
    at = names.index(confidence.output) if confidence.output else 0
    if confidence.kind not in CONFIDENCES:
        return _own(resolve(confidence.kind, spec.folder), at)
    score = {"top": top, "margin": margin, "entropy": entropy}[confidence.kind]
    if not confidence.logits:
        return lambda outputs: score(_flat(outputs[at]))
    return lambda outputs: score(softmax(_flat(outputs[at])))


def _flat(output: NDArray[Any]) -> Floats:
    return output.reshape(len(output), -1).astype(np.float32, copy=False)


def softmax(logits: Floats) -> Floats:
    """Probabilities [rows, K] of logits [rows, K]."""
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: Floats = raised / raised.sum(axis=1, keepdims=True)
    return found


def top(probabilities: Floats) -> Floats:
    """The largest probability [rows] of probabilities [rows, K]."""
    found: Floats = probabilities.max(axis=1)
    return found


def margin(probabilities: Floats) -> Floats:
    """The largest probability less the second largest [rows]."""
    last = np.partition(probabilities, -2, axis=1)
    found: Floats = last[:, -1] - last[:, -2]
    return found


def entropy(probabilities: Floats) -> Floats:
    """1 - H / ln K [rows]: 1 for certainty, 0 where all are as likely."""
    clipped = np.clip(probabilities, 1e-12, 1.0)
    found: Floats = 1.0 + (clipped * np.log(clipped)).sum(axis=1) / np.float32(math.log(probabilities.shape[1]))
    return found


def _own(function: Callable[..., Any], at: int) -> Scorer:
    """A family's own function: the chosen output [rows, ...] -> scores [rows]; ScoreError for anything else."""

    def score(outputs: Sequence[Any]) -> Floats:
        found = np.asarray(function(outputs[at]))
        if found.shape != (len(outputs[at]),) or found.dtype.kind not in "fiu":
            raise ScoreError(f"confidence gave {found.dtype} {list(found.shape)} for {len(outputs[at])} rows")
        if np.isnan(found).any():
            raise ScoreError("confidence gave NaN")
        return found.astype(np.float32, copy=False)

    return score


__all__ = ["ScoreError", "Scorer", "entropy", "margin", "scorer", "softmax", "top"]
