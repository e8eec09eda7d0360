"""The rows behind a cascade profile, kept beside it, and what chains cost elsewhere.

A profile keeps a thinned front, chosen at the energies of the machine that measured.  The rows it came from (scores,
right answers, answers) lie beside it as plain arrays: slices with other energies are given a front of their own without
asking a variant again, and a simulation can replay which row goes how far.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from clover.planning.cascade.cost import expected_energy
from clover.profiling.chains import Answers, points_of
from clover.types import CascadeProfile, LatencyMeasurement


@dataclass(frozen=True)
class Kept:
    """What each variant said of the rows of both splits, the same rows in the same order for all."""

    calibration: dict[str, Answers]
    held_out: dict[str, Answers]


def write(path: Path, kept: Kept, made_at: str) -> None:
    """Keep rows in `path`, beside the profile that was `made_at`.  Raises OSError."""
    arrays = {"made_at": np.array(made_at), "names": np.array(list(kept.held_out))}
    for split, answers in (("calibration", kept.calibration), ("held_out", kept.held_out)):
        arrays[f"{split}_scores"] = np.stack([own.scores.astype(np.float32) for own in answers.values()])
        arrays[f"{split}_right"] = np.stack([own.right for own in answers.values()])
        said = [own.said for own in answers.values() if own.said is not None and own.said.dtype.kind in "biuf"]
        if len(said) == len(answers):
            arrays[f"{split}_said"] = np.stack(said)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def read(path: Path, made_at: str) -> Kept | None:
    """Return the rows in `path`; None where there are none, they are damaged, or another profile's than that `made_at`:
    a profile without them is whole, only its front is not made anew."""
    splits = []
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file["made_at"]) != made_at:
                return None
            for split in ("calibration", "held_out"):
                scores, right = file[f"{split}_scores"].astype(np.float64), file[f"{split}_right"]
                said = file[f"{split}_said"] if f"{split}_said" in file else [None] * len(scores)
                if scores.ndim != 2 or scores.shape != right.shape or right.dtype != np.bool_ or not scores.size:
                    return None
                of = zip(map(str, file["names"]), scores, right, said, strict=True)
                splits.append({name: Answers(*own) for name, *own in of})
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return Kept(*splits)


def frugal(
    latency: Sequence[LatencyMeasurement], backend: Mapping[str, str], profile: str
) -> dict[str, LatencyMeasurement]:
    """Return the most frugal measurement of each variant on its backend, as far as there is one: on `profile`, that of
    BASE, where it was measured there, otherwise on any."""
    found = {}
    for name, chosen in backend.items():
        mine = [m for m in latency if (m.variant, m.backend) == (name, chosen)]
        if there := [m for m in mine if m.profile == profile] or mine:
            found[name] = min(there, key=lambda m: m.energy_j_per_row)
    return found


def labelled(cascade: CascadeProfile, found: Mapping[str, LatencyMeasurement]) -> CascadeProfile:
    """Return the cascade with where its energies come from."""
    return replace(
        cascade,
        joules={name: m.energy_j_per_row for name, m in found.items()},
        measured_on={name: m.profile for name, m in found.items()},
        method=found[cascade.best].energy_method,
    )


def elsewhere(cascade: CascadeProfile, found: Mapping[str, LatencyMeasurement], kept: Kept | None) -> CascadeProfile:
    """Return the cascade of the same answers at other energies, of the variants that have any: a front of its own from
    the rows; without them the points it has, at what they cost there."""
    joules = {name: m.energy_j_per_row for name, m in found.items()}
    if kept is not None and joules.keys() <= kept.held_out.keys():
        calibration, held_out = ({name: split[name] for name in joules} for split in (kept.calibration, kept.held_out))
        points = points_of(calibration, held_out, joules, cascade.best)
    else:
        whole = max(joules[cascade.best], 1e-12)
        here = [point for point in cascade.points if set(point.chain) <= joules.keys()]
        costs = [expected_energy(point.reach, [joules[name] for name in point.chain]) / whole for point in here]
        moved = [replace(point, cost=cost) for point, cost in zip(here, costs, strict=True)]
        points = tuple(sorted(moved, key=lambda point: (point.cost, point.accuracy)))
    return labelled(replace(cascade, points=points), found)
