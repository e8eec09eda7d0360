"""How many rows arrive: load shapes, as rows a second of each step.

    constant:U      U of BASE's capacity on these devices, always
    diurnal[:U]     U in the mean: U (1 + 0.4 cos(2 pi (h - 14) / 24)), h the hour of the day (UTC); busiest at 14:00
    bursts[:U]      U, and 1.6 U in bursts of one to three steps; one begins in a quiet step with probability 1/24
    surges[:U]      U, and 2.5 U in every third hour
    doubling[:U]    U, 2 U, U and U / 2, an hour each, again and again: doubles and halves
    FILE            arrival times, one a line, in seconds from the start of the simulation, ascending; counted by step

U is a part of BASE's capacity (the best variant on whole devices), 0.6 where none is given; `R/s` in its place is rows
a second.  Within a step arrivals are Poisson at the step's rate, for a FILE too: gusts shorter than a step are
not seen (`minutes` sees them).  Bursts depend on the seed and nothing else.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clover.errors import ConfigError

BASE_LOAD = 0.6
_SWING = 0.4
_BUSIEST_H = 14.0
_BURST = 1.6
_BEGINS = 1.0 / 24.0
_LONGEST = 3
_LARGEST = 3.0
_SURGE = 2.5
_SURGE_EVERY_H = 3
_DOUBLING = (1.0, 2.0, 1.0, 0.5)


@dataclass(frozen=True)
class Load:
    """A load shape.  `level` is a part of BASE's capacity, or rows a second if `per_s`; `arrivals_s` belongs to a file
    only.  A diurnal one plays its day in `day_s` seconds.  `counted_s`: when the rows of one day that was played with
    this shape arrived, in ascending seconds; the controller's windows then count these, not rows drawn by chance."""

    name: str
    kind: str
    level: float
    arrivals_s: tuple[float, ...] = ()
    digest: str = ""
    per_s: bool = False
    day_s: float = 86_400.0
    counted_s: tuple[float, ...] = ()

    def mean(self, capacity: float) -> float:
        """Return rows a second on average, for a BASE that serves `capacity` rows a second."""
        return self.level if self.per_s else self.level * capacity

    def rates(self, capacity: float, start_s: float, step_s: float, steps: int, seed: int) -> list[float]:
        """Return rows a second of each step; `capacity` is BASE's, `start_s` grid time."""
        if self.kind == "file":
            counts = [0] * steps
            for at_s in self.arrivals_s:
                if (index := int(at_s // step_s)) < steps:
                    counts[index] += 1
            return [count / step_s for count in counts]
        mean = self.mean(capacity)
        if self.kind == "diurnal":
            hours = [24.0 * (((start_s + (index + 0.5) * step_s) / self.day_s) % 1.0) for index in range(steps)]
            return [mean * (1.0 + _SWING * math.cos(2.0 * math.pi * (h - _BUSIEST_H) / 24.0)) for h in hours]
        if self.kind == "bursts":
            return _bursts(mean, steps, seed)
        if self.kind == "surges":
            hours_in = [int((index + 0.5) * step_s // 3600.0) for index in range(steps)]
            return [mean * (_SURGE if hour % _SURGE_EVERY_H == _SURGE_EVERY_H - 1 else 1.0) for hour in hours_in]
        if self.kind == "doubling":
            hours_in = [int((index + 0.5) * step_s // 3600.0) for index in range(steps)]
            return [mean * _DOUBLING[hour % len(_DOUBLING)] for hour in hours_in]
        return [mean] * steps

    def scaled(self, part: float) -> Load:
        """Return the same shape at `part` of the level; ConfigError for a file, whose rows are what they are."""
        if self.kind == "file":
            raise ConfigError("the artifact's accounting scales the load: a FILE of arrivals cannot be scaled")
        return replace(self, level=self.level * part)


def _bursts(mean: float, steps: int, seed: int) -> list[float]:
    rng = random.Random(seed)
    rates: list[float] = []
    left = 0
    for _ in range(steps):
        if not left and rng.random() < _BEGINS:
            left = rng.randint(1, _LONGEST)
        rates.append(mean * (_BURST if left else 1.0))
        left = max(0, left - 1)
    return rates


def parse(text: str) -> Load:
    """Return the load that `text` names; ConfigError if it names none."""
    kind, colon, rest = text.partition(":")
    if kind in ("constant", "diurnal", "bursts", "surges", "doubling"):
        rest, per_s, _ = rest.partition("/s")
        try:
            level = float(rest) if colon else BASE_LOAD
        except ValueError as error:
            raise ConfigError(
                f"--load {kind}:U takes a part of BASE's capacity, as {kind}:0.6, not {rest!r}"
            ) from error
        if per_s and math.isfinite(level) and level > 0.0:
            return Load(f"{kind}:{level:g}/s", kind, level, per_s=True)
        if per_s or not 0.0 < level <= _LARGEST:
            raise ConfigError(
                f"--load {kind}:U takes a part of BASE's capacity above 0 and up to {_LARGEST:g}, not {rest}"
            )
        return Load(f"{kind}:{level:g}", kind, level)
    return _of_file(Path(text))


def _of_file(path: Path) -> Load:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"--load {path}: {error.strerror or error}; it is constant:U, diurnal, bursts, surges, doubling, or a "
            "file of times"
        ) from error
    return Load(f"arrivals of {path.name}", "file", 0.0, tuple(_times(path, data)), hashlib.sha256(data).hexdigest())


def _times(path: Path, data: bytes) -> Sequence[float]:
    times: list[float] = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        if not (text := line.strip()) or text.startswith("#"):
            continue
        try:
            at_s = float(text)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: {text!r} is no time in seconds") from error
        if not (math.isfinite(at_s) and at_s >= (times[-1] if times else 0.0)):
            raise ConfigError(f"{path}, line {number}: times are 0 or more and ascend, which {text} does not")
        times.append(at_s)
    if not times:
        raise ConfigError(f"{path} holds no arrival times")
    return times
