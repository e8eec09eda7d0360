"""How sure a variant is of each row: one float32 out of a batch's outputs, computed in the worker with every batch.

Built-in scores lie in 0..1 and read the probabilities of one output: "top" is the largest, "margin" the largest less
the second, "entropy" 1 - H / ln K.  A temperature T divides logits (or log-probabilities) before softmax; T = 1 leaves
probabilities as they are, and then nothing but the score itself is computed.

What a model answers to a client's odd row must not fail its neighbours in the batch: rows whose outputs are not finite
score the minimum, so they go on to a dearer variant.  Everything else that is wrong with scores (a NaN or infinity for
finite outputs, a value outside the declared range, another shape) is a `ScoreError`: a fault of the family's, never a
silent score.  Imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clover import families
from clover.errors import ConfigError
from clover.types import ConfidenceSpec, FamilySpec

Scorer = Callable[[Sequence[NDArray[Any]]], NDArray[np.float32]]
"""Outputs of a batch (arrays [rows, ...] in declared order) -> float32 [rows], higher for surer."""

ROUNDING = 1e-2
"""How far above 1 probabilities in half precision may come by rounding; further off, they are no probabilities."""


class ScoreError(ValueError):
    """Scores that cannot be used: the family's declaration or its function is wrong."""


def scorer(spec: FamilySpec, temperature: float = 1.0) -> Scorer:
    """The score of `spec`, as declared.  Raises ConfigError where the family declares none, its function is not to be
    found, or a temperature is given for a function of its own (which reads what it likes)."""
    confidence = spec.confidence
    if confidence is None:
        raise ConfigError(f"family {spec.name!r} has no [confidence]: it does not cascade")
    if not 0.0 < temperature < float("inf"):
        raise ConfigError(f"family {spec.name!r}: {temperature} is not a temperature")
    if confidence.built_in:
        return _built_in(spec, confidence, temperature)
    if temperature != 1.0:
        raise ConfigError(f"family {spec.name!r}: {confidence.kind} has no temperature")
    return _own(spec, confidence)


def output_of(spec: FamilySpec) -> int:
    """The index of the output that the built-in score of `spec` reads."""
    name = spec.confidence.output if spec.confidence is not None else ""
    return next((index for index, tensor in enumerate(spec.outputs) if tensor.name == name), 0)


def as_float32(spec: FamilySpec, values: NDArray[Any]) -> NDArray[np.float32]:
    """The values of the output that the built-in score of `spec` reads, as float32."""
    if values.dtype == np.float32:
        return values
    if spec.outputs[output_of(spec)].datatype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def probabilities(values: NDArray[np.float32], *, logits: bool, temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities [rows, K] of an output's `values` [rows, K] at a temperature."""
    plain = values
    if not logits:
        if temperature == 1.0:
            return plain
        plain = np.log(np.maximum(plain, np.float32(1e-30)))
    if temperature != 1.0:
        plain = plain * np.float32(1.0 / temperature)
    made: NDArray[np.float32] = np.exp(plain - plain.max(axis=1, keepdims=True))
    made /= made.sum(axis=1, keepdims=True)
    return made


# --- built in ---------------------------------------------------------------------------------------------------------


def _top(p: NDArray[np.float32]) -> NDArray[np.float32]:
    best: NDArray[np.float32] = p.max(axis=1)
    return best


def _margin(p: NDArray[np.float32]) -> NDArray[np.float32]:
    two = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    apart: NDArray[np.float32] = two[:, 1] - two[:, 0]
    return apart


def _entropy(p: NDArray[np.float32]) -> NDArray[np.float32]:
    bits = np.einsum("ij,ij->i", p, np.log(np.maximum(p, np.float32(1e-30))))
    sure: NDArray[np.float32] = np.float32(1.0) + bits * np.float32(1.0 / np.log(p.shape[1]))
    return sure


_KINDS = {"top": _top, "margin": _margin, "entropy": _entropy}


def _built_in(spec: FamilySpec, confidence: ConfidenceSpec, temperature: float) -> Scorer:
    index, kind, logits = output_of(spec), _KINDS[confidence.kind], confidence.logits

    def score(outputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        values = as_float32(spec, outputs[index])
        scores = kind(probabilities(values, logits=logits, temperature=temperature))
        return scores if ((scores >= 0.0) & (scores <= 1.0)).all() else mended(scores, values)

    def mended(scores: NDArray[np.float32], values: NDArray[Any]) -> NDArray[np.float32]:
        with np.errstate(invalid="ignore"):
            finite = np.isfinite(values).all(axis=1)
            wrong = finite & ~((scores >= -ROUNDING) & (scores <= 1.0 + ROUNDING))
        if wrong.any():
            name, value = spec.outputs[index].name, scores[wrong][0]
            raise ScoreError(f"output {name!r} gives a score of {value:g}: it holds no probabilities (logits = true?)")
        return np.where(finite, np.clip(scores, 0.0, 1.0), np.float32(0.0))

    def quiet(outputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        with np.errstate(invalid="ignore", over="ignore"):
            return score(outputs)

    return quiet if logits or temperature != 1.0 or confidence.kind == "entropy" else score


# --- a function of the family's own ---------------------------------------------------------------------------------


def _own(spec: FamilySpec, confidence: ConfidenceSpec) -> Scorer:
    had_torch = "torch" in sys.modules
    function = families.resolve(confidence.kind, spec.folder)
    if not had_torch and "torch" in sys.modules:
        raise ConfigError(
            f"family {spec.name!r}: confidence {confidence.kind!r}: imports torch, which the server must not: keep it "
            "in a module that only needs NumPy"
        )
    where, low, high = f"confidence {confidence.kind!r}", confidence.minimum, confidence.maximum

    def score(outputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(outputs[0])
        try:
            scores = np.asarray(function(list(outputs)), np.float32)
        except (TypeError, ValueError) as error:
            raise ScoreError(f"{where}: {error}") from error
        if scores.shape != (rows,):
            raise ScoreError(f"{where} gave scores of shape {list(scores.shape)} for {rows} rows: one a row is needed")
        fine = (scores >= low) & (scores <= high)
        if fine.all():
            return scores
        lost = ~fine & ~_finite(outputs, rows)
        if not (fine | lost).all():
            raise ScoreError(f"{where} gave {scores[~fine & ~lost][0]:g}, declared are {low:g} to {high:g}")
        return np.where(lost, np.float32(low), scores)

    return score


def _finite(outputs: Sequence[NDArray[Any]], rows: int) -> NDArray[np.bool_]:
    """Which rows have finite outputs, as far as those are floating-point."""
    finite = np.ones(rows, np.bool_)
    for array in outputs:
        if array.dtype.kind == "f":
            finite &= np.isfinite(array.reshape(rows, -1)).all(axis=1)
    return finite
