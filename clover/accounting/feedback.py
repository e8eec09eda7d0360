"""What workers did, kept to compare with their profiles, and what was learned from that, given back to their meters.

Where CPU time tells workers apart, each (variant, profile of the slice) has joules of its own; on a GPU all that ran on
the device have one sum.  Expected joules are those of the profile as it was measured: what was learned must not change
what it is learned from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from clover.accounting.devices import ClosedWindow, DeviceAccount
from clover.accounting.meters import WorkerMeter
from clover.types import MeteredWindow, WorkReport

_KEPT = 256
"""Windows of a family that wait to be taken, at most: the oldest are dropped."""

Factors = Mapping[tuple[str, str], float]
"""By (variant, profile of the slice)."""


class ProfileFeedback:
    """What is to be compared with profiles, by family, and the energy factors in force."""

    def __init__(self) -> None:
        self._windows: dict[str, deque[MeteredWindow]] = {}
        self._factors: dict[str, Factors] = {}

    def attach(self, meter: WorkerMeter) -> None:
        """Give the meter of a new worker what was learned of workers like it."""
        meter.factor = self._factors.get(meter.family, {}).get((meter.variant, meter.shape), 1.0)

    def note(self, device: str, closed: ClosedWindow) -> None:
        """Keep what a window of `device` says of profiles."""
        parts: dict[tuple[str, object], tuple[float, dict[tuple[str, str], float]]] = {}
        for joules, expected in closed.learnable:
            families = {meter.family for meter, expected_j in expected if expected_j > 0.0}
            if len(families) != 1:
                continue  # no work, or that of several families on one meter
            key = (families.pop(), (expected[0][0].variant, expected[0][0].shape) if len(expected) == 1 else None)
            before_j, sums = parts.get(key, (0.0, {}))
            for meter, expected_j in expected:
                of = meter.variant, meter.shape
                sums[of] = sums.get(of, 0.0) + expected_j
            parts[key] = before_j + joules, sums
        for (family, _), (joules, sums) in parts.items():
            known = {of: expected_j for of, expected_j in sums.items() if expected_j > 0.0}
            window = MeteredWindow(device=device, joules=joules, expected_j=known)
            self._windows.setdefault(family, deque(maxlen=_KEPT)).append(window)

    def take(self, family: str, meters: Iterable[WorkerMeter]) -> WorkReport:
        """Return what workers of `family`, whose meters are among `meters`, did since the last call."""
        served: dict[tuple[str, str, int], tuple[float, float]] = {}
        for meter in meters:
            if meter.family != family:
                continue
            for rows, (batches, seconds) in meter.take_batches().items():
                key = meter.variant, meter.shape, rows
                before = served.get(key, (0, 0.0))
                served[key] = before[0] + batches, before[1] + seconds
        return WorkReport(served=served, metered=tuple(self._windows.pop(family, ())))

    def correct(
        self, family: str, factors: Factors, meters: Sequence[WorkerMeter], devices: Mapping[str, DeviceAccount]
    ) -> None:
        """Take joules a row of `family` to be `factors` times those of its profile from now on."""
        self._factors[family] = factors
        for name, device in devices.items():
            here = [meter for meter in meters if meter.device == name]
            before_j = sum(meter.modelled_j * meter.factor for meter in here)
            for meter in here:
                if meter.family == family:
                    self.attach(meter)
            if before_j > 0.0:  # the running ratio is of modelled energies with the factors of before
                device.refactored(sum(meter.modelled_j * meter.factor for meter in here) / before_j)
            for meter in here:
                meter.ratio = device.ratio_of(meter)
