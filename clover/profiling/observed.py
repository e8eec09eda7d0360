"""Scores and right answers of every variant, row by row, and the cascade they make at given energies.

A profile keeps a thinned front.  The rows it was made from are kept beside it, as plain arrays: other energies (of
emulated slices, of a planner) are given a front of their own without measuring again, and a simulation can replay which
row goes how far.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from clover.errors import ProfileError
from clover.planning.cascade import energy_of
from clover.profiling import chains
from clover.profiling.chains import Split
from clover.types import (
    BasePoint,
    CascadeProfile,
    ChainPoint,
    ConfidenceSpec,
    LatencyMeasurement,
    Method,
    ScoreProfile,
)

LEVELS = 33
"""Quantiles of scores that a profile keeps."""
TENTHS = 10


@dataclass(frozen=True)
class Costs:
    """What a row costs each variant: joules at its cheapest batch, on which profile, and where joules come from."""

    joules: dict[str, float]
    on: dict[str, str]
    method: Method


@dataclass(frozen=True)
class Observed:
    """Both splits of the variants `names`, and `same` [variants, held-out rows]: the answer is that of the best."""

    names: tuple[str, ...]
    calibration: Split
    held_out: Split
    same: NDArray[np.bool_]

    def points(self, joules: Mapping[str, float], best: str, most: int = chains.MOST_POINTS) -> tuple[ChainPoint, ...]:
        """The front of all chains at `joules` a row."""
        costs = [joules[name] for name in self.names]
        return chains.fit(self.calibration, self.held_out, self.names, costs, self.names.index(best), most=most)

    def cascade(
        self, confidence: ConfidenceSpec, temperature: dict[str, float], costs: Costs, best: str
    ) -> CascadeProfile:
        """All that a profile says of cascades."""
        of = zip(self.names, self.held_out.scores, self.held_out.right, self.same, strict=True)
        return CascadeProfile(
            confidence=confidence,
            best=best,
            temperature=temperature,
            points=self.points(costs.joules, best),
            scores={name: _described(scores, right, same) for name, scores, right, same in of},
            energy_j=costs.joules,
            energy_on=costs.on,
            energy_method=costs.method,
            calibration_rows=self.calibration.rows,
            held_out_rows=self.held_out.rows,
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The rows as plain arrays by name; `observed_of` is the way back."""
        return {
            "names": np.array(self.names),
            "calibration_scores": self.calibration.scores,
            "calibration_right": self.calibration.right,
            "held_out_scores": self.held_out.scores,
            "held_out_right": self.held_out.right,
            "held_out_same": self.same,
        }


def observed_of(arrays: Mapping[str, NDArray[Any]]) -> Observed:
    """Rows out of plain arrays.  Raises KeyError or ValueError where they are none."""
    splits = [Split(arrays[f"{split}_scores"], arrays[f"{split}_right"]) for split in ("calibration", "held_out")]
    names, same = tuple(map(str, arrays["names"])), arrays["held_out_same"]
    for split in splits:
        if split.scores.dtype != np.float32 or split.right.dtype != np.bool_ or split.scores.ndim != 2:
            raise ValueError("scores and right answers are of another type")
        if split.scores.shape != split.right.shape or len(split.scores) != len(names):
            raise ValueError("scores and right answers do not belong together")
    if same.shape != splits[1].right.shape or same.dtype != np.bool_:
        raise ValueError("agreement does not belong to the rows")
    return Observed(names, splits[0], splits[1], same)


def write(path: Path, observed: Observed, made_at: str) -> None:
    """Keep rows in `path`, beside the profile that was `made_at`.  Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            np.savez_compressed(file, made_at=np.array(made_at), **observed.arrays())  # type: ignore[arg-type]
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def read(path: Path, made_at: str) -> Observed | None:
    """The rows in `path`; None where there are none, or not those of the profile that was `made_at`."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return observed_of(file) if str(file["made_at"]) == made_at else None
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # a profile without them is whole: its front is only not made anew


def costs_of(latency: Sequence[LatencyMeasurement], backend: Mapping[str, str], base: BasePoint) -> Costs:
    """What variants cost on their backends: on BASE's profile where they were measured there, otherwise on any.
    Raises ProfileError where one was not measured."""
    found = {}
    for name, chosen in backend.items():
        mine = [m for m in latency if (m.variant, m.backend) == (name, chosen)]
        if not mine:
            raise ProfileError(f"the energy of {name} with {chosen} is unknown: measure it again with --force")
        found[name] = min([m for m in mine if m.profile == base.profile] or mine, key=lambda m: m.energy_j_per_row)
    return Costs(
        {name: m.energy_j_per_row for name, m in found.items()},
        {name: m.profile for name, m in found.items()},
        found[base.variant].energy_method,
    )


def at_costs(cascade: CascadeProfile, costs: Costs, observed: Observed | None) -> CascadeProfile:
    """The cascade at other energies: made anew from the rows; without them, the points it has that are still worth
    it.  Accuracy and reach are of the same answers either way."""
    if observed is not None and set(observed.names) == set(costs.joules):
        return observed.cascade(cascade.confidence, cascade.temperature, costs, cascade.best)
    whole = max(costs.joules[cascade.best], 1e-12)
    points = [replace(point, energy=energy_of(point, costs.joules) / whole) for point in cascade.points]
    kept = chains.front([point.accuracy for point in points], [point.energy for point in points])
    return replace(
        cascade,
        points=tuple(points[index] for index in kept),
        energy_j=costs.joules,
        energy_on=costs.on,
        energy_method=costs.method,
    )


def _described(scores: NDArray[np.float32], right: NDArray[np.bool_], same: NDArray[np.bool_]) -> ScoreProfile:
    tenths = np.array_split(np.argsort(scores, kind="stable"), TENTHS)
    return ScoreProfile(
        quantiles=tuple(map(float, np.quantile(scores, np.linspace(0.0, 1.0, LEVELS)))),
        agreement=tuple(float(same[part].mean()) for part in tenths),
        right=tuple(float(right[part].mean()) for part in tenths),
    )
