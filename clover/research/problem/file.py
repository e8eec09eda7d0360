"""One optimisation problem in a file: the form `clover-problem/1`.

N identical GPUs, all awake, take Poisson requests.  Each GPU is cut into one of the `partitions`, entirely, and each
slice hosts one variant; a (variant, slice) is a *group*, and an answer says how many workers each group has.  Requests
go first in, first out to any idle worker, shared out as the queueing model says (`pf`, product form, or `mf`, mean
field).  What is maximised is

    f = lambda (1 - E ci / (E_base ci_base)) - (1 - lambda) (A_base - A) / A_base,
    E = idle_w N / rate + sum share_k energy_k,     A = sum share_k accuracy_k,

which is linear in the shares: f = `offset` + sum share_k `gains[k]`.  The PUE cancels.  A configuration is feasible
if its slices tile the GPUs, every variant fits its slice, the load is below capacity and the given quantile of wait
and service keeps the SLA.

Unknown keys are ignored: everything that enters the answer is required, so that no misspelt key is overlooked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.errors import ConfigError
from clover.malformed import MALFORMED

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

SCHEMA = "clover-problem/1"
SMALLEST_SCALE = 0.01
"""A gap is divided by at least this."""
_MOST_GPUS = 1_000_000
_MOST_SLICES = 1_000
"""Of one GPU: beyond any GPU there is, and far from what the kernels' integers hold."""


class _Input(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Base of what is read: immutable; unknown keys are ignored."""


class SolverGroup(_Input, frozen=True, kw_only=True):
    """One (variant, slice): mean service in milliseconds, its variation, dynamic joules a request, accuracy in percent,
    and whether the variant fits the slice's memory."""

    variant: str
    slice: str
    service_ms: float
    cv: float
    energy_j: float
    accuracy: float
    fits: bool

    @property
    def name(self) -> str:
        """As in an answer: "b5@3g"."""
        return f"{self.variant}@{self.slice}"


class Base(_Input, frozen=True, kw_only=True):
    """What savings and losses are measured against."""

    energy_j_per_request: float
    accuracy: float


class ProblemFile(_Input, frozen=True, kw_only=True):
    """A problem as it stands in the file, and its columns as arrays.  Make one with `parse`, which checks it."""

    schema: Literal["clover-problem/1"]
    n_gpus: int
    arrival_rate: float
    model: Literal["pf", "mf"]
    sla_ms: float
    quantile: float
    lam: float = msgspec.field(name="lambda")
    carbon_intensity: float
    ci_base: float
    idle_w_per_gpu: float
    base: Base
    groups: tuple[SolverGroup, ...]
    partitions: tuple[tuple[int, ...], ...]
    partition_slices: tuple[str, ...]
    id: str = ""

    @cached_property
    def service_s(self) -> Floats:
        """Mean service of each group, seconds."""
        return np.array([group.service_ms for group in self.groups]) * 1e-3

    @cached_property
    def cv(self) -> Floats:
        """Coefficient of variation of each group's service."""
        return np.array([group.cv for group in self.groups])

    @cached_property
    def energy_j(self) -> Floats:
        """Dynamic joules of a request in each group."""
        return np.array([group.energy_j for group in self.groups])

    @cached_property
    def accuracy(self) -> Floats:
        """Accuracy of each group's variant, percent."""
        return np.array([group.accuracy for group in self.groups])

    @cached_property
    def fits(self) -> NDArray[np.bool_]:
        """Whether each group's variant fits its slice."""
        return np.array([group.fits for group in self.groups], dtype=np.bool_)

    @cached_property
    def slice_of(self) -> Counts:
        """The column of `table` that each group belongs to."""
        return np.array([self.partition_slices.index(group.slice) for group in self.groups], dtype=np.int64)

    @cached_property
    def table(self) -> Counts:
        """The partitions [p, slices] as the file has them."""
        return np.array(self.partitions, dtype=np.int64).reshape(len(self.partitions), len(self.partition_slices))

    @cached_property
    def usable(self) -> Counts:
        """The distinct partitions of which every slice has a variant that fits."""
        hosted = np.zeros(len(self.partition_slices), dtype=np.bool_)
        hosted[self.slice_of[self.fits]] = True
        return np.unique(self.table[(self.table[:, ~hosted] == 0).all(axis=1)], axis=0)

    @property
    def sla_s(self) -> float:
        """The limit of the quantile, seconds."""
        return self.sla_ms * 1e-3

    @cached_property
    def idle_j(self) -> float:
        """Idle joules that fall to one request."""
        return self.idle_w_per_gpu * self.n_gpus / self.arrival_rate

    @cached_property
    def _price(self) -> float:
        return self.lam * self.carbon_intensity / (self.base.energy_j_per_request * self.ci_base)

    @cached_property
    def gains(self) -> Floats:
        """What a whole share in each group adds to f."""
        return np.asarray((1.0 - self.lam) * self.accuracy / self.base.accuracy - self._price * self.energy_j)

    @cached_property
    def offset(self) -> float:
        """What f is without any share."""
        return self.lam - self._price * self.idle_j - (1.0 - self.lam)

    def objective(self, energy_j: float, accuracy: float) -> float:
        """Return f of joules a request (idle ones included) and accuracy in percent."""
        return (
            self.lam - self._price * energy_j - (1.0 - self.lam) * (self.base.accuracy - accuracy) / self.base.accuracy
        )

    @cached_property
    def co2opt_f(self) -> float | None:
        """f of CO2OPT, the first-listed variant on the smallest slices everywhere; None if that is overloaded, or if no
        GPU can be cut into these slices alone."""
        slices = [row[0] for row in self.table if row[0] and not row[1:].any()]
        small = self.partition_slices[0]
        for at, group in enumerate(self.groups):
            if slices and group.variant == self.groups[0].variant and group.slice == small:
                served = self.n_gpus * max(slices) / self.service_s[at]
                return self.offset + float(self.gains[at]) if self.arrival_rate < served else None
        return None

    def scale(self, best: float) -> float:
        """Return what a distance from f = `best` is divided by to make a gap: the distance from CO2OPT's f, or |best|
        if there is none; at least 0.01."""
        low = self.co2opt_f
        return max(SMALLEST_SCALE, abs(best) if low is None else best - low)

    def named(self, counts: Sequence[int] | Counts) -> dict[str, int]:
        """Return workers of each group as in an answer, without the groups that have none."""
        return {group.name: int(n) for group, n in zip(self.groups, counts, strict=True) if n}

    def counts(self, config: Mapping[str, int]) -> Counts:
        """Return the array that `named` makes a configuration of.  Raises ConfigError for a group the problem lacks."""
        at = {group.name: index for index, group in enumerate(self.groups)}
        workers = np.zeros(len(self.groups), dtype=np.int64)
        for name, number in config.items():
            if name not in at:
                raise ConfigError(f"config.{name}: no such group; there are {', '.join(at)}")
            workers[at[name]] = number
        return workers


def parse(text: bytes | str) -> ProblemFile:
    """Return the problem in a file's text.  Raises ConfigError with the path of what is wrong."""
    try:
        problem = msgspec.json.decode(text, type=ProblemFile)
    except msgspec.ValidationError as error:
        raise ConfigError(_with_path(str(error))) from error
    except MALFORMED as error:
        raise ConfigError(f"not JSON: {error}") from error
    for path, message in _faults(problem):
        raise ConfigError(f"{path}: {message}")
    return problem


def _with_path(message: str) -> str:
    """Turn `message - at `$.a[0].b`` into `a[0].b: message`."""
    text, found, path = message.partition(" - at `$.")
    return f"{path.rstrip('`')}: {text}" if found else message


def _faults(problem: ProblemFile) -> list[tuple[str, str]]:
    """Return what is out of range or does not fit together: (path, what and what to do)."""
    faults: list[tuple[str, str]] = []

    def check(path: str, value: float, good: bool, wanted: str) -> None:
        if not (good and math.isfinite(value)):
            faults.append((path, f"{value:g} is not {wanted}"))

    check("n_gpus", problem.n_gpus, 1 <= problem.n_gpus <= _MOST_GPUS, f"from 1 to {_MOST_GPUS}")
    for path, value in (
        ("arrival_rate", problem.arrival_rate),
        ("sla_ms", problem.sla_ms),
        ("ci_base", problem.ci_base),
        ("base.energy_j_per_request", problem.base.energy_j_per_request),
        ("base.accuracy", problem.base.accuracy),
    ):
        check(path, value, value > 0.0, "above 0")
    check("quantile", problem.quantile, 0.0 < problem.quantile < 1.0, "between 0 and 1")
    check("lambda", problem.lam, 0.0 <= problem.lam <= 1.0, "from 0 to 1")
    check("carbon_intensity", problem.carbon_intensity, problem.carbon_intensity >= 0.0, "at least 0")
    check("idle_w_per_gpu", problem.idle_w_per_gpu, problem.idle_w_per_gpu >= 0.0, "at least 0")
    faults.extend(_find_repeated("partition_slices", problem.partition_slices))
    for index, group in enumerate(problem.groups):
        path = f"groups[{index}]"
        check(f"{path}.service_ms", group.service_ms, group.service_ms > 0.0, "above 0")
        check(f"{path}.cv", group.cv, group.cv >= 0.0, "at least 0")
        check(f"{path}.energy_j", group.energy_j, group.energy_j >= 0.0, "at least 0")
        check(f"{path}.accuracy", group.accuracy, group.accuracy >= 0.0, "at least 0")
        if group.slice not in problem.partition_slices:
            known = ", ".join(problem.partition_slices)
            faults.append((f"{path}.slice", f"{group.slice!r} is not in partition_slices ({known})"))
    faults.extend(_find_repeated("groups", [group.name for group in problem.groups]))
    if not problem.groups:
        faults.append(("groups", "empty; give at least one variant on one slice"))
    if not problem.partitions:
        faults.append(("partitions", "empty; give at least one way to cut a GPU"))
    for index, row in enumerate(problem.partitions):
        path = f"partitions[{index}]"
        if len(row) != len(problem.partition_slices):
            faults.append((path, f"has {len(row)} numbers for {len(problem.partition_slices)} partition_slices"))
        if any(number < 0 for number in row) or not any(row):
            faults.append((path, "needs slice counts of at least 0, not all of them 0"))
        elif sum(row) > _MOST_SLICES:
            faults.append((path, f"has more than {_MOST_SLICES} slices on one GPU"))
    return faults


def _find_repeated(path: str, names: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{path}[{i}]", f"{name!r} is there already") for i, name in enumerate(names) if name in names[:i]]
