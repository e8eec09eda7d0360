"""A confidence that was not measured: how sure the paper's variants might be of their answers, by two parameters.

The paper publishes how often each variant is right, not on which requests, nor how sure it is.  What a cascade would be
worth depends on both, so a simulation of one needs a model, and says so wherever it shows a number of it.

**The model.**  Every request has a difficulty z, the same for all variants, and each variant its own luck e, both
standard normal.  A variant finds a request as hard as u = sqrt(`alike`) z + sqrt(1 - `alike`) e, and is right if u lies
below the threshold t that yields its published accuracy.  So `alike` is the correlation of how hard two variants find a
request: with 1, whatever a good one gets wrong the cheap one gets wrong too; with 0, errors have nothing in common.  Of
its margin t - u a variant sees m = t - u + `blur` x noise, and its score is the probability to be right given m, which
is calibrated by construction.  `blur` 0 knows every error, a large one none.

**The parameters.**  0.9 and 0.7 are those of one family that was measured.  With the accuracies of `fashion` the model
has the accuracy of each of its ten pairs, with 2 to 50 % of the rows sent on, to 0.21 points (root mean square; 0.05
too low on average) of what 5,000 held-out images gave.  Whether other data and models resemble it is unknown: AUROCs of
score against being right are 0.89 to 0.93 for the paper's families here, errors correlate by 0.64 to 0.71, and chains
may be up to a point more accurate than the best variant, which those of `fashion` are not.  `0.95,1` is a more careful
guess.

**What it leaves out.**  A row of these families is a request: a request of 8 images is sent on as a whole, by one
score.  A metric that is not a share of right answers (mAP) is treated as one.  Thresholds are chosen on one set of
drawn requests and counted on another, as the profiler does; both are drawn by a fixed seed, and every variant is right
on exactly its published part of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.profiling.chains import Answers, profile_of
from clover.types import CascadeProfile, Record

ROWS = 10_000
"""Requests drawn for each of the two sets."""
_SEED = 20231112

Floats = NDArray[np.float64]


class Confidence(Record, frozen=True, kw_only=True):
    """The parameters: `alike` in 0..1, `blur` from 0 up."""

    alike: float = 0.9
    blur: float = 0.7

    @property
    def about(self) -> str:
        """The parameters in words, for reports."""
        return (
            f"confidence is PARAMETRIC, not measured: difficulties correlate by {self.alike:g}, margins are seen with "
            f"a noise of {self.blur:g}"
        )


def parse(text: str) -> Confidence | None:
    """Return the confidence that `text` names: parametric, parametric:ALIKE,BLUR, or none; ConfigError otherwise."""
    if text == "none":
        return None
    kind, colon, rest = text.partition(":")
    try:
        alike, blur = map(float, rest.split(",")) if colon else (Confidence().alike, Confidence().blur)
    except ValueError:
        alike = blur = math.nan
    if kind != "parametric" or not (0.0 <= alike <= 1.0 and 0.0 <= blur <= 100.0):
        raise ConfigError(f"--confidence is none, parametric, or parametric:ALIKE,BLUR (0..1, 0..100), not {text!r}")
    return Confidence(alike=alike, blur=blur)


def cascade_of(accuracy: Mapping[str, float], joules: Mapping[str, float], confidence: Confidence) -> CascadeProfile:
    """Return chains and thresholds of variants with these accuracies (percent) at these joules a row."""
    ordered = sorted(accuracy, key=lambda name: joules[name])
    percent = {name: accuracy[name] for name in ordered}
    chosen_on, counted_on = (draw_answers(percent, confidence, _SEED + number) for number in (0, 1))
    cascade = profile_of(chosen_on, counted_on, {name: joules[name] for name in ordered})
    return msgspec.structs.replace(cascade, method="analytical")


def draw_answers(
    accuracy: Mapping[str, float], confidence: Confidence, seed: int, rows: int = ROWS
) -> dict[str, Answers]:
    """Return what variants of these accuracies (percent) answer to `rows` requests: right or not, and how sure."""
    rng = np.random.default_rng(seed)
    shared = math.sqrt(confidence.alike) * rng.standard_normal(rows)
    answers = {}
    for name, percent in accuracy.items():
        hard = shared + math.sqrt(1.0 - confidence.alike) * rng.standard_normal(rows)
        order = np.argsort(hard, kind="stable")
        good = min(max(round(percent / 100.0 * rows), 1), rows - 1)
        limit = 0.5 * (hard[order[good - 1]] + hard[order[good]])
        right = hard < limit
        seen = limit - hard + confidence.blur * rng.standard_normal(rows)
        answers[name] = Answers(scores=_certainty(seen, float(limit), confidence.blur), right=right)
    return answers


def _certainty(seen: Floats, limit: float, blur: float) -> Floats:
    """Return the probability to be right given the margin `seen`: it is normal around `limit`, and known up
    to `blur`."""
    if blur <= 0.0:
        return np.where(seen > 0.0, 1.0, 0.0)
    share = blur * blur / (1.0 + blur * blur)
    mean, spread = (1.0 - share) * seen + share * limit, math.sqrt(share)
    return np.array([0.5 * math.erfc(-value / math.sqrt(2.0)) for value in (mean / spread).tolist()])
