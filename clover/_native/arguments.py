"""Check what the annealing kernels are given, and copy it into arrays of the types that they read.

The kernels read these arrays through pointers and trust them.  `AnnealArguments` are those of `anneal.Problem`,
`LanesArguments` those of `lanes.Problem`; once made, every column is an array.  The kernels' twins take them too.
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_GPUS = 1_000_000
MOST_DEVICES = 1_000_000  # of a kind
MOST_SLICES = 4096  # of a kind, in a partition


@dataclass(eq=False)
class AnnealArguments:
    """N equal GPUs and the requests they serve; times in seconds, energies in joules, intensities in any one unit."""

    n_gpus: int
    rate: float  # requests/s
    # by group
    service_s: Any
    cv: Any
    energy_j: Any
    accuracy: Any
    fits: Any  # whether the variant may run on that slice
    slice_of: Any  # which column of `partitions` its slice is
    # the partitions that a GPU may have: [partition, slice], numbers of slices
    partitions: Any
    model: str  # of the queue: "pf" (product form) or "mf" (mean field)
    sla_s: float  # the latency target of `quantile`
    quantile: float
    lam: float  # the weight of carbon; 1 - lam is that of accuracy
    intensity: float
    reference_intensity: float
    idle_w: float
    base_energy_j: float
    base_accuracy: float
    _: KW_ONLY
    running: Any = None  # a configuration, with `switching`: what f loses for each worker of the group beyond it
    switching: Any = None
    accuracy_floor: float = 0.0
    utilisation_limit: float = 1.0  # the load over what the workers serve at most
    switches: bool = field(init=False)  # whether `running` is given

    def __post_init__(self) -> None:
        self.partitions = partition_table(self.partitions)
        slices = self.partitions.shape[1]
        self.service_s = _column("service_s", self.service_s)
        groups = len(self.service_s)
        self.cv = _column("cv", self.cv, groups)
        self.energy_j = _column("energy_j", self.energy_j, groups)
        self.accuracy = _column("accuracy", self.accuracy, groups)
        self.fits = _column("fits", self.fits, groups) != 0.0
        self.slice_of = np.asarray(self.slice_of)
        if self.slice_of.shape != (groups,) or self.slice_of.dtype.kind not in "iu":
            raise ValueError("slice_of must be one column of partitions a group")
        if groups == 0 or self.slice_of.min() < 0 or self.slice_of.max() >= slices:
            raise ValueError(f"slice_of must be in 0..{slices - 1}, for one group at least")
        self.slice_of = self.slice_of.astype(np.intc)
        if not self.service_s.min() > 0.0 or self.cv.min() < 0.0:
            raise ValueError("service_s must be positive, and cv not negative")
        if self.model not in ("pf", "mf"):
            raise ValueError(f"model must be 'pf' or 'mf', not {self.model!r}")
        if not 1 <= self.n_gpus <= MOST_GPUS:
            raise ValueError(f"n_gpus must be in 1..{MOST_GPUS}, not {self.n_gpus}")
        for name in ("rate", "sla_s", "base_energy_j", "base_accuracy", "reference_intensity"):
            value = getattr(self, name)
            if not (value > 0.0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive and finite, not {value}")
        if not 0.0 < self.quantile < 1.0 or not 0.0 <= self.lam <= 1.0 or not 0.0 < self.utilisation_limit <= 1.0:
            raise ValueError("quantile, lam and utilisation_limit must be between 0 and 1")
        if not all(x >= 0.0 and math.isfinite(x) for x in (self.intensity, self.idle_w)):
            raise ValueError("intensity and idle_w must be finite and not negative")
        if (self.running is None) != (self.switching is None):
            raise ValueError("running and switching are given together")
        self.switches = self.running is not None
        self.running = _column("running", self.running if self.switches else np.zeros(groups), groups)
        self.switching = _column("switching", self.switching if self.switches else np.zeros(groups), groups)


@dataclass(eq=False, kw_only=True)
class LanesArguments:
    """Devices of some kinds and the families that share them.  All workers of a variant are a lane of its family."""

    devices: Any  # of each kind
    # by partition
    kind_of: Any  # the kind of device that is cut so
    partitions: Any  # [partition, slice], numbers of slices
    idle_w: Any  # of a device cut so
    spare: Any  # what it counts for as one that can be woken
    # by group
    slice_of: Any
    lane_of: Any
    capacity: Any  # rows/s of one worker
    energy_j: Any  # [group, sizes, loads + 1], of a row: lanes of 1, 2, 4, ... workers, loads from 0 to `limit`
    late: Any  # likewise, the share of its rows that miss the latency target
    # by lane
    family_of: Any  # ascending
    accuracy: Any  # percent
    quality: Any  # what a whole share is worth before its energy is paid for
    # by family
    rate: Any  # rows/s
    peak: Any  # rows/s
    wake: Any  # rows/s that a woken device brings
    floor: Any  # percent
    miss: Any  # the share of its rows that may be late
    limit: Any  # the highest utilisation
    price: Any  # what a joule of each row costs
    watt: float  # what an idle watt costs
    least: float = 0.0  # the part of an even share that every worker has to get
    running: Any = None  # by group: a configuration, with `switching`: what each worker beyond it costs
    switching: Any = None

    def __post_init__(self) -> None:
        self._check_devices()
        self._check_groups()
        self._check_families()
        self._check_signs()

    def _check_devices(self) -> None:
        self.partitions = partition_table(self.partitions)
        numbers = np.array(self.devices)
        if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu":
            raise ValueError("devices must be a whole number for each kind")
        if numbers.min() < 1 or numbers.max() > MOST_DEVICES:
            raise ValueError(f"devices must be 1 to {MOST_DEVICES} of each kind")
        self.devices = numbers.astype(np.int64)
        parts = len(self.partitions)
        self.kind_of = _indices("kind_of", self.kind_of, parts, len(numbers))
        if set(self.kind_of.tolist()) != set(range(len(numbers))):
            raise ValueError("each kind of device must have a partition")
        self.idle_w = _column("idle_w", self.idle_w, parts)
        self.spare = _column("spare", self.spare, parts)

    def _check_groups(self) -> None:
        self.capacity = _column("capacity", self.capacity)
        groups, slices = len(self.capacity), self.partitions.shape[1]
        self.slice_of = _indices("slice_of", self.slice_of, groups, slices)
        self.accuracy = _column("accuracy", self.accuracy)
        self.lane_of = _indices("lane_of", self.lane_of, groups, len(self.accuracy))
        self.energy_j = np.array(self.energy_j, dtype=np.float64, order="C")
        self.late = np.array(self.late, dtype=np.float64, order="C")
        shape = self.energy_j.shape
        if shape != self.late.shape or len(shape) != 3 or shape[0] != groups:
            raise ValueError("energy_j and late must be [groups, sizes, loads]")
        if shape[1] < 1 or shape[2] < 2:
            raise ValueError("energy_j and late must be of one size or more, and two loads or more")
        if not (np.isfinite(self.energy_j).all() and (self.late >= 0.0).all() and (self.late <= 1.0).all()):
            raise ValueError("energy_j must be finite, and late in 0..1")
        if not set(np.flatnonzero(self.partitions.any(axis=0))) <= set(self.slice_of.tolist()):
            raise ValueError("every slice of a partition needs a group")
        if (self.running is None) != (self.switching is None):
            raise ValueError("running and switching are given together")
        self.running = _column("running", np.zeros(groups) if self.running is None else self.running, groups)
        self.switching = _column("switching", np.zeros(groups) if self.switching is None else self.switching, groups)

    def _check_families(self) -> None:
        lanes = len(self.accuracy)
        self.quality = _column("quality", self.quality, lanes)
        self.rate = _column("rate", self.rate)
        families = len(self.rate)
        self.family_of = _indices("family_of", self.family_of, lanes, families)
        if set(self.family_of.tolist()) != set(range(families)) or (np.diff(self.family_of) < 0).any():
            raise ValueError("family_of must be ascending, and each family must have a lane")
        for name in ("peak", "wake", "floor", "miss", "limit", "price"):
            setattr(self, name, _column(name, getattr(self, name), families))

    def _check_signs(self) -> None:
        if min(self.capacity.min(), self.rate.min(), self.wake.min()) <= 0.0:
            raise ValueError("capacity, rate and wake must be positive")
        if not (self.miss.min() > 0.0 and self.miss.max() < 1.0 and self.limit.min() > 0.0 and self.limit.max() <= 1.0):
            raise ValueError("miss and limit must be between 0 and 1")
        if not 0.0 <= self.least < 1.0 or not 0.0 <= self.watt < math.inf:
            raise ValueError("least must be in 0..1, and watt finite and not negative")
        for name in ("price", "idle_w", "spare", "running", "switching"):
            if getattr(self, name).min() < 0.0:
                raise ValueError(f"{name} must not be negative")


def partition_table(partitions: Any) -> NDArray[np.int64]:
    """Return the partitions that a device may have as an array [partition, slice]."""
    table = np.ascontiguousarray(partitions)
    if table.ndim != 2 or not table.size or table.dtype.kind not in "iu":
        raise ValueError("partitions must be a table of whole numbers, one row a partition")
    if (table < 0).any() or (table > MOST_SLICES).any():
        raise ValueError(f"partitions must have 0 to {MOST_SLICES} of each slice")
    return table.astype(np.int64)


def _column(name: str, values: Any, size: int | None = None) -> NDArray[np.float64]:
    column = np.array(values, dtype=np.float64)
    if column.ndim != 1 or not column.size or (size is not None and len(column) != size):
        raise ValueError(f"{name} must be one number each of {size or 'one or more'}")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} must be finite")
    return column


def _indices(name: str, values: Any, size: int, below: int) -> NDArray[np.intc]:
    column = np.array(values)
    if column.shape != (size,) or not size or column.dtype.kind not in "iu":
        raise ValueError(f"{name} must be {size} whole numbers in 0..{below - 1}")
    if column.min() < 0 or column.max() >= below:
        raise ValueError(f"{name} must be {size} whole numbers in 0..{below - 1}")
    return column.astype(np.intc)
