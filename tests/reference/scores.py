"""Twin of `clover._native.scores`: probabilities first, then a score of these, in doubles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(logits: list[float]) -> list[float]:
    """Return the probabilities of a row of logits; all NaN if one is NaN or inf, or all are -inf."""
    most = max(logits)
    if not math.isfinite(most) or any(map(math.isnan, logits)):
        return [math.nan] * len(logits)
    raised = [math.exp(logit - most) for logit in logits]
    total = sum(raised)
    return [one / total for one in raised]


def top(row: list[float]) -> float:
    """Return the largest probability of a row without NaN."""
    return max(row)


def margin(row: list[float]) -> float:
    """Return the largest probability of a row without NaN, less the second largest."""
    second, most = sorted(row)[-2:]
    return most - second


def entropy(row: list[float]) -> float:
    """Return 1 - H / ln K of a row without NaN: 1 for certainty, 0 if all classes are equally likely, NaN of one."""
    if len(row) == 1:
        return math.nan
    return 1.0 + sum(max(one, 1e-12) * math.log(max(one, 1e-12)) for one in row) / math.log(len(row))


KINDS = {"top": top, "margin": margin, "entropy": entropy}


class Scores:
    """Scores of a kind, "top", "margin" or "entropy": of logits, or of probabilities with errors up to `rounding`."""

    def __init__(self, kind: str, logits: bool, rounding: float) -> None:
        if kind not in KINDS:
            raise ValueError(f"there is no score {kind!r}")
        self._function = KINDS[kind]
        self._fewest = 2 if kind == "margin" else 1
        self._logits = logits
        self._rounding = rounding

    def score(self, values: NDArray[Any], into: NDArray[np.float32], slots: NDArray[np.uint32] | None = None) -> int:
        if values.dtype != np.float32 or values.ndim < 1 or not values.flags.c_contiguous or into.dtype != np.float32:
            raise ValueError("values and scores are float32, with an axis of rows")
        if slots is not None and (slots.dtype != np.uint32 or not slots.flags.c_contiguous):
            raise ValueError("slots are uint32")
        places = into if slots is None else slots
        if into.ndim != 1 or places.shape != (len(values),) or not into.flags.writeable:
            raise ValueError(f"{len(values)} rows have as many scores")
        count = math.prod(values.shape[1:])
        if count < self._fewest:
            raise ValueError(f"a score needs a number a row, a margin two: there are {count}")
        for slot in [] if slots is None else slots.tolist():
            if slot >= len(into):
                raise IndexError(f"slot {slot} is outside 0..{len(into) - 1}")
        wrong = -1
        for at, row in enumerate(values.reshape(len(values), count).tolist()):
            shares = softmax(row) if self._logits else row
            with np.errstate(over="ignore"):
                found = np.float32(math.nan if any(map(math.isnan, shares)) else self._function(shares))
            if not self._logits and not -self._rounding <= found <= 1.0 + self._rounding:
                if not all(map(math.isfinite, row)):
                    found = np.float32(math.nan)
                elif wrong < 0:
                    wrong = at
            into[at if slots is None else slots[at]] = found
        return wrong
