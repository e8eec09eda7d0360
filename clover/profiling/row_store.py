"""The answers behind a cascade profile, kept beside it.

A profile keeps a thinned Pareto front, chosen at the energies of the machine that measured.  The answers that it came
from (of every row: score, whether right, answer) lie beside it as plain arrays.  So slices with other energies get a
front of their own without running a variant again (`clover.emulation.profiles.analytical`).
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

from clover.cache import make_private
from clover.profiling.chains import Answers
from clover.profiling.score import Rights
from clover.types import CascadeProfile, LatencyMeasurement


@dataclass(frozen=True)
class CascadeRows:
    """The answers of each variant to the rows of both splits; the same rows in the same order for all variants."""

    calibration: dict[str, Answers]
    held_out: dict[str, Answers]


def write(path: Path, kept: CascadeRows, made_at: str) -> None:
    """Write the answers behind the profile that was made at `made_at` to `path`, replacing the file atomically.

    What is right or wrong is written as a bit, what may be partly right as float32.  Raises OSError.
    """
    arrays = {"made_at": np.array(made_at), "names": np.array(list(kept.held_out))}
    for split, answers in (("calibration", kept.calibration), ("held_out", kept.held_out)):
        arrays[f"{split}_scores"] = np.stack([own.scores.astype(np.float32) for own in answers.values()])
        arrays[f"{split}_right"] = _narrow(np.stack([own.right for own in answers.values()]))
        said = [own.said for own in answers.values() if own.said is not None and own.said.dtype.kind in "biuf"]
        if len(said) == len(answers):
            arrays[f"{split}_said"] = np.stack(said)
    make_private(path.parent)
    fd, draft = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


def read(path: Path, made_at: str) -> CascadeRows | None:
    """Return the answers in `path`; None if there is no file, it is damaged, or it belongs to another profile.
    `made_at` is that of the profile.  Without answers the profile is complete, but its front cannot be made anew."""
    splits = []
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if str(file["made_at"]) != made_at:
                return None
            for split in ("calibration", "held_out"):
                scores, right = file[f"{split}_scores"].astype(np.float64), file[f"{split}_right"]
                said = file[f"{split}_said"] if f"{split}_said" in file else [None] * len(scores)
                if scores.ndim != 2 or scores.shape != right.shape or not scores.size or not _plausible(right):
                    return None
                of = zip(map(str, file["names"]), scores, right, said, strict=True)
                splits.append({name: Answers(*own) for name, *own in of})
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return CascadeRows(*splits)


def _narrow(right: Rights) -> NDArray[Any]:
    """Return how right answers are in the form that is kept."""
    return right if right.dtype == np.bool_ else right.astype(np.float32)


def _plausible(right: NDArray[Any]) -> bool:
    """Return whether `right`, as it was read from a file, says of each row whether, or how far, it is right."""
    return right.dtype == np.bool_ or (right.dtype == np.float32 and bool(((right >= 0.0) & (right <= 1.0)).all()))


def most_frugal(
    latency: Sequence[LatencyMeasurement], backend: Mapping[str, str], profile: str
) -> dict[str, LatencyMeasurement]:
    """Return the measurement with the least energy a row of each variant on its backend: on `profile` (that of BASE) if
    the variant was measured there, otherwise on any.  A variant that was not measured is left out."""
    measurements = {}
    for name, chosen in backend.items():
        mine = [m for m in latency if (m.variant, m.backend) == (name, chosen)]
        if there := [m for m in mine if m.profile == profile] or mine:
            measurements[name] = min(there, key=lambda m: m.energy_j_per_row)
    return measurements


def with_energies(cascade: CascadeProfile, found: Mapping[str, LatencyMeasurement]) -> CascadeProfile:
    """Return the cascade with the energies of `found` (by variant) and where these were measured."""
    return replace(
        cascade,
        joules={name: m.energy_j_per_row for name, m in found.items()},
        measured_on={name: m.profile for name, m in found.items()},
        method=found[cascade.best].energy_method,
    )
