"""Keeps what workers did, to compare with their profiles, and gives what was learned from it back to their meters.

If CPU time tells workers apart, each (variant, profile of the slice) has joules of its own.  On a GPU all that ran on
the device has one sum.  Expected joules are those of the profile as it was measured: what was learned must not change
what it is learned from.

A batch counts where it ends.  If no batch ended in a window, its joules go to the next window, provided that a batch
which ended there began that early.  Otherwise nobody worked, and the joules are noise of the meter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from clover.accounting.devices import ClosedWindow, DeviceAccount, Parts
from clover.accounting.meters import WorkerMeter
from clover.types import MeteredWindow, WorkReport

_KEPT = 256
"""Windows of a family that wait to be taken, and such of a meter without a batch, at most: the oldest are dropped."""

Factors = Mapping[tuple[str, str], float]
"""By (variant, profile of the slice)."""


Joules = deque[tuple[float, float]]
"""Of windows, each with its seconds."""


class ProfileFeedback:
    """Evidence to compare with profiles, by family, and the energy factors in force."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[MeteredWindow]] = {}
        self._factors: dict[str, Factors] = {}
        self._unclaimed: dict[str, dict[WorkerMeter | None, Joules]] = {}
        """Of the latest windows, in which no batch ended, of each worker by device; None: of all on the device."""

    def attach(self, meter: WorkerMeter) -> None:
        """Give the meter of a new worker what was learned of workers like it."""
        meter.factor = self._factors.get(meter.family, {}).get((meter.variant, meter.shape), 1.0)

    def record(self, device: str, closed: ClosedWindow) -> None:
        """Keep what a window of `device` says of profiles."""
        before, unclaimed = self._unclaimed.pop(device, {}), dict[WorkerMeter | None, Joules]()
        parts: dict[tuple[str, tuple[str, str]], tuple[float, float]] = {}
        for joules, expected, shared, reach_s in closed.learnable:
            of = None if shared else expected[0][0]
            earlier = before.get(of)
            if not any(expected_j > 0.0 for _, expected_j in expected):
                waiting = unclaimed[of] = deque(maxlen=_KEPT) if earlier is None else earlier
                waiting.append((joules, closed.seconds))
                continue
            joules += _reached(earlier or (), reach_s)
            if of is None:
                self._record_shared(device, joules, expected)
                continue
            key = of.family, (of.variant, of.shape)
            joules_before, expected_before = parts.get(key, (0.0, 0.0))
            parts[key] = joules_before + joules, expected_before + expected[0][1]
        self._unclaimed[device] = unclaimed
        for (family, own), (joules, expected_j) in parts.items():
            self._keep(family, MeteredWindow(device=device, joules=joules, expected_j={own: expected_j}, shared=False))

    def _record_shared(self, device: str, joules: float, expected: Parts) -> None:
        families = {meter.family for meter, expected_j in expected if expected_j > 0.0}
        if len(families) != 1:
            return  # of several families on one meter
        sums: dict[tuple[str, str], float] = {}
        for meter, expected_j in expected:
            if expected_j > 0.0:
                of = meter.variant, meter.shape
                sums[of] = sums.get(of, 0.0) + expected_j
        self._keep(families.pop(), MeteredWindow(device=device, joules=joules, expected_j=sums, shared=True))

    def _keep(self, family: str, window: MeteredWindow) -> None:
        self._windows.setdefault(family, deque(maxlen=_KEPT)).append(window)

    def collect(self, family: str, meters: Iterable[WorkerMeter]) -> WorkReport:
        """Return what workers of `family`, whose meters are among `meters`, did since the last call."""
        served: dict[tuple[str, str, int], tuple[float, float]] = {}
        for meter in meters:
            if meter.family != family:
                continue
            for rows, (batches, seconds) in meter.collect_batches().items():
                key = meter.variant, meter.shape, rows
                before = served.get(key, (0, 0.0))
                served[key] = before[0] + batches, before[1] + seconds
        return WorkReport(served=served, metered=tuple(self._windows.pop(family, ())))

    def correct(
        self, family: str, factors: Factors, meters: Sequence[WorkerMeter], devices: Mapping[str, DeviceAccount]
    ) -> None:
        """From now on multiply the joules a row of `family`'s profile by `factors`."""
        self._factors[family] = factors
        for name, device in devices.items():
            here = [meter for meter in meters if meter.device == name]
            before_j = sum(meter.modelled_j * meter.factor for meter in here)
            for meter in here:
                if meter.family == family:
                    self.attach(meter)
            if before_j > 0.0:  # the running ratio is of modelled energies with the previous factors
                device.rescale_modelled(sum(meter.modelled_j * meter.factor for meter in here) / before_j)
            for meter in here:
                meter.ratio = device.ratio_of(meter)


def _reached(earlier: Iterable[tuple[float, float]], reach_s: float) -> float:
    """Return the joules of windows up to now into which the last `reach_s` seconds reach."""
    reached_j = 0.0
    for joules, seconds in reversed(tuple(earlier)):
        if reach_s <= 0.0:
            break
        reached_j += joules
        reach_s -= seconds
    return reached_j
