"""Accuracy by proxy: how often each variant answers as the last, most expensive one does (`metric = "agreement"`).

No labels are known.  The last variant counts as right on every row.  Every figure that follows, the points of a floor
too, is agreement with it and is labelled "proxy".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from clover.profiling.chains import Answers
from clover.profiling.rig import Findings
from clover.profiling.score import alike, interval
from clover.types import FamilySpec


def judge_by_best(spec: FamilySpec, found: Findings, backend: Mapping[str, str]) -> None:
    """Set how right the answers found so far are, by those of the last variant with its chosen `backend`."""
    best = spec.variants[-1].name
    held_out = _said(found.held_out[best, backend[best]])
    found.held_out = {key: _judge(one, held_out) for key, one in found.held_out.items()}
    if best in found.calibration:
        calibration = _said(found.calibration[best])
        found.calibration = {key: _judge(one, calibration) for key, one in found.calibration.items()}
    for index, item in enumerate(found.accuracy):
        right = found.held_out[item.variant, item.backend].right
        low, high = interval(float(right.sum()), len(right))
        found.accuracy[index] = structs.replace(
            item,
            value=100.0 * float(right.mean()),
            low=low,
            high=high,
            samples=len(right),
            source=f"the same answer as {best}, on held-out rows",
        )
    found.notes.append(f"accuracy is a proxy: agreement with {best}, which counts as right on every row; no labels")


def _said(answers: Answers) -> NDArray[Any]:
    assert answers.said is not None
    return answers.said


def _judge(own: Answers, best: NDArray[Any]) -> Answers:
    """Return answers with how right they are: on the rows that the best variant saw, too."""
    mine = _said(own)
    seen = min(len(mine), len(best))
    right = np.asarray(alike(mine[:seen], best[:seen]))
    return replace(own, scores=own.scores[:seen], right=right, said=mine[:seen])
