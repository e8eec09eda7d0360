"""The account of one device: its windows, and how each is split over the workers on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clover.accounting.meters import WorkerMeter
from clover.types import EnergySample, Method

_SECOND_NS = 1_000_000_000
_RATIO_MEMORY = 0.95
"""Weight of earlier windows in the measured/modelled ratio: about twenty windows count."""

Parts = list[tuple[WorkerMeter, float]]


@dataclass
class Share:
    """Joules and grams of one (family, variant, method), or of one placement; active and idle apart."""

    active_j: float = 0.0
    idle_j: float = 0.0
    active_g: float = 0.0
    idle_g: float = 0.0

    @property
    def total_j(self) -> float:
        return self.active_j + self.idle_j

    @property
    def total_g(self) -> float:
        return self.active_g + self.idle_g


class ClosedWindow(NamedTuple):
    """A window of a device, split over its workers.

    `active` and `idle` are the joules of each worker, `unowned_j` the idle joules of slices without a worker, `seconds`
    the length of the window.
    """

    active: Parts
    idle: Parts
    rows: list[tuple[WorkerMeter, int, int, float]]
    """Of each worker: its rows, how many of them a cascade passed on, and by how many rows x percent the others are
    right more often than the variant is over all rows."""
    unowned_j: float
    seconds: float


NOTHING = ClosedWindow([], [], [], 0.0, 0.0)


@dataclass
class DeviceAccount:
    """The running state of one device with `slices` compute slices."""

    slices: int
    last: EnergySample | None = None
    measured_j: float = 0.0
    carried_j: float = 0.0
    unattributed_j: float = 0.0
    unowned_j: float = 0.0
    ratio_measured_j: float = 0.0
    ratio_modelled_j: float = 0.0
    method: Method = "none"
    watts: float = 0.0
    """Of the last window."""
    idle_w: float = 0.0
    frozen: bool = True
    """Whether the last sample brought nothing new, or there was none yet."""
    restarts: int = 0
    """Times that the meter began anew."""
    unmetered_s: float = 0.0
    """Seconds in which the meter gave no reading."""
    unknown_s: float = 0.0
    """Seconds whose energy is not counted and never will be: before the meter began anew."""
    uncertainty: tuple[float, float] | None = None
    retired_busy_ns: int = 0
    family_idle_w: dict[str, float] = field(default_factory=dict)
    _looks: int = 0
    _held: dict[WorkerMeter, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Measured over modelled active energy, recent windows weighing most; 1 until something was measured."""
        return self.ratio_measured_j / self.ratio_modelled_j if self.ratio_modelled_j > 0.0 else 1.0

    def window(
        self, sample: EnergySample, here: Sequence[WorkerMeter], gone: Sequence[WorkerMeter]
    ) -> ClosedWindow | None:
        """Close the window at `sample` and return it; None if it stays open.

        `here` are the workers that hold slices now, `gone` those that worked in the window and have ended.
        """
        self.method, self.idle_w, self.uncertainty = sample.method, sample.idle_w, sample.uncertainty
        self._look(here)
        last = self.last
        if last is not None and sample.epoch == last.epoch and sample.at_ns <= last.at_ns:
            self.frozen = True
            return None
        self.frozen = False
        self.last = sample
        weights, by_model = _weights([*here, *gone])
        rows = [
            (meter, meter.window_rows, meter.window_gone_on, meter.window_right)
            for meter in (*here, *gone)
            if meter.window_rows
        ]
        held = {meter: share / self._looks for meter, share in self._held.items()}
        was_frozen = self._looks > 1
        self._looks, self._held = 0, {}
        for meter in (*here, *gone):
            meter.forget_window()
        if last is None:
            return NOTHING
        if sample.epoch != last.epoch or sample.total_j < last.total_j:
            self.restarts += 1
            self.unknown_s += max(sample.at_ns - last.at_ns, 0) / _SECOND_NS
            return NOTHING
        measured_j = sample.total_j - last.total_j
        seconds = (sample.at_ns - last.at_ns) / _SECOND_NS
        idle_j = sample.idle_w * seconds
        if was_frozen:
            idle_j = min(idle_j, measured_j)
        self.measured_j += measured_j
        self.watts = measured_j / seconds
        active_j = measured_j - idle_j + self.carried_j
        self.carried_j = min(active_j, 0.0)
        active = self._split_active(weights, by_model, max(active_j, 0.0))
        unowned_j = self.unowned_j
        idle = self._split_idle(held, idle_j)
        for meter in here:
            meter.ratio = self.ratio
        return ClosedWindow(active, idle, rows, self.unowned_j - unowned_j, seconds)

    def _look(self, here: Iterable[WorkerMeter]) -> None:
        """Note which worker holds which share of the slices.

        This is called once for every sample: once a window, or more often if the window was frozen.
        """
        crowd: dict[str, int] = {}
        meters = list(here)
        for meter in meters:
            crowd[meter.placement] = crowd.get(meter.placement, 0) + 1
        owned = [(meter, meter.slices / crowd[meter.placement]) for meter in meters]
        # Placements of an old and a new layout may overlap during a transition: shares must not add up to more than 1.
        slices = max(float(self.slices), sum(count for _, count in owned))
        self._looks += 1
        self.family_idle_w = {}
        for meter, count in owned:
            self._held[meter] = self._held.get(meter, 0.0) + count / slices
            idle_w = self.idle_w * count / slices
            self.family_idle_w[meter.family] = self.family_idle_w.get(meter.family, 0.0) + idle_w

    def _split_active(self, weights: Parts, by_model: bool, active_j: float) -> Parts:
        total = sum(weight for _, weight in weights)
        if total <= 0.0:
            self.unattributed_j += active_j
            return []
        if by_model:
            self.ratio_measured_j = self.ratio_measured_j * _RATIO_MEMORY + active_j
            self.ratio_modelled_j = self.ratio_modelled_j * _RATIO_MEMORY + total
        return [(meter, active_j * weight / total) for meter, weight in weights]

    def _split_idle(self, held: dict[WorkerMeter, float], idle_j: float) -> Parts:
        parts = [(meter, idle_j * share) for meter, share in held.items()]
        self.unowned_j += max(idle_j - sum(part_j for _, part_j in parts), 0.0)
        return parts


def _weights(worked: Sequence[WorkerMeter]) -> tuple[Parts, bool]:
    """Return the weights that active energy is split by, and whether they are modelled joules.

    Without a profile they are busy times, which say nothing about the ratio of measured to modelled.
    """
    modelled = [(meter, meter.window_modelled_j) for meter in worked if meter.window_modelled_j > 0.0]
    busy = [(meter, float(meter.window_busy_ns)) for meter in worked if meter.window_busy_ns > 0]
    return (modelled, True) if modelled else (busy, False)
