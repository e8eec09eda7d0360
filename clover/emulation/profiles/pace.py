"""Pace files: how fast variants run on slices of a GPU, and what they draw there, given as rows.

    {"method": "analytical", "source": "where the figures come from",
     "rows": [{"family": "f", "variant": "v", "profile": "1g.5gb", "batch": 8, "ms": 21.0, "watts": 16.7}, ...]}

`ms` is the time of a whole batch, `watts` the power above idle while it runs.  A row may add `drawn_watts`, the power
that the emulated board really draws, to emulate a board that differs from its profile.  A variant without a row for a
profile does not run on it, for example because its model does not fit.

One such table comes with Clover (`shipped`): families of the SC'23 paper on an A100 with 40 GB.  A malformed or
contradictory file is refused with its path; nothing in it is guessed.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from clover.cache import expanded
from clover.errors import ConfigError
from clover.malformed import MALFORMED
from clover.profiles import Pace
from clover.types import FamilySpec, Method, Record

SHIPPED = "a100_paces.json"


class PaceRow(Record, frozen=True, kw_only=True):
    """One batch size of one variant on one profile."""

    family: str
    variant: str
    profile: str
    batch: int
    ms: float
    watts: float
    drawn_watts: float | None = None

    @property
    def drawn_w(self) -> float:
        """What the board draws above idle while the batch runs."""
        return self.watts if self.drawn_watts is None else self.drawn_watts


class PaceFile(Record, frozen=True, kw_only=True):
    """A whole file; `source` says where its figures come from."""

    method: Method
    source: str
    rows: tuple[PaceRow, ...]

    def rows_of(self, family: str) -> tuple[PaceRow, ...]:
        """Return the rows of one family."""
        return tuple(row for row in self.rows if row.family == family)

    def paces_of(self, family: str) -> dict[tuple[str, str], Pace]:
        """Return how the board runs each (variant, profile) of a family."""
        return {key: as_pace(rows, drawn=True) for key, rows in by_place(self.rows_of(family)).items()}


def as_pace(rows: list[PaceRow], *, drawn: bool = False) -> Pace:
    """Return rows of one (variant, profile), by rising batch, as a pace with the watts expected or `drawn`."""
    return Pace(
        batches=tuple(row.batch for row in rows),
        ms=tuple(row.ms for row in rows),
        watts=tuple(row.drawn_w if drawn else row.watts for row in rows),
    )


def by_place(rows: tuple[PaceRow, ...]) -> dict[tuple[str, str], list[PaceRow]]:
    """Return rows by (variant, profile), by rising batch."""
    rows_by_place: dict[tuple[str, str], list[PaceRow]] = {}
    for row in sorted(rows, key=lambda row: row.batch):
        rows_by_place.setdefault((row.variant, row.profile), []).append(row)
    return rows_by_place


def load(path: Path | str) -> PaceFile:
    """Return the pace file at `path`; raises ConfigError, with the path, for anything wrong about it."""
    try:
        data = expanded(str(path)).read_bytes()
    except OSError as error:
        raise ConfigError(f"the pace file {path} cannot be read: {error.strerror}") from error
    return _parse(data, str(path))


def shipped() -> PaceFile:
    """Return the table that comes with Clover."""
    return _parse(shipped_bytes(), SHIPPED)


def shipped_bytes() -> bytes:
    """Return the content of that table's file."""
    return (importlib.resources.files("clover.devices") / "data" / SHIPPED).read_bytes()


def _parse(data: bytes, path: str) -> PaceFile:
    try:
        file = msgspec.json.decode(data, type=PaceFile)
    except MALFORMED as error:
        raise ConfigError(f"the pace file {path} is malformed: {error}") from error
    if not file.source.strip():
        raise ConfigError(f"the pace file {path} does not say where its figures come from: fill in `source`")
    if not file.rows:
        raise ConfigError(f"the pace file {path} has no rows")
    seen: dict[tuple[str, str, str, int], int] = {}
    for number, row in enumerate(file.rows):
        where = f"the pace file {path}, row {number + 1} ({row.variant} on {row.profile}, batch {row.batch})"
        if row.batch < 1:
            raise ConfigError(f"{where}: a batch has at least one row")
        if not (math.isfinite(row.ms) and row.ms > 0):
            raise ConfigError(f"{where}: ms must be above zero, not {row.ms}")
        for name, watts in (("watts", row.watts), ("drawn_watts", row.drawn_w)):
            if not (math.isfinite(watts) and watts >= 0):
                raise ConfigError(f"{where}: {name} must be at least zero, not {watts}")
        key = (row.family, row.variant, row.profile, row.batch)
        if key in seen:
            raise ConfigError(f"{where} repeats row {seen[key]}")
        seen[key] = number + 1
    return file


def rows_of(
    file: PaceFile, spec: FamilySpec, profiles: Mapping[str, int], path: str
) -> dict[tuple[str, str], list[PaceRow]]:
    """Return the rows of `spec` for a device with these profiles, by (variant, profile).

    Empty if the file does not have the family.  Raises ConfigError if it has the family and does not fit it: it names
    another variant, or has no row of some variant for any of the profiles.
    """
    mine = file.rows_of(spec.name)
    if not mine:
        return {}
    names = [variant.name for variant in spec.variants]
    for row in mine:
        if row.variant not in names:
            raise ConfigError(
                f"the pace file {path} names a variant {row.variant!r} of {spec.name}, which has {', '.join(names)}"
            )
    fitting = tuple(row for row in mine if row.profile in profiles)
    for name in names:
        if not any(row.variant == name for row in fitting):
            raise ConfigError(
                f"the pace file {path} has no row of {name} ({spec.name}) for any of {', '.join(profiles)}"
            )
    return by_place(fitting)
