"""Who caused which joules and grams.

A meter counts one device; many workers of many families share it.  Per device and window (a second or so):

* idle energy = idle power x time.  It is split over the workers that hold compute slices, by slices (workers that share
  a placement during a swap share its slices); what nobody holds goes to the line `unowned`.
* active energy = measured - idle.  It is split by modelled energy (busy time x modelled watts, which is rows x profiled
  joules a row) and rescaled, so that the parts sum to what was measured.  Active energy of a window in which no worker
  was busy goes to the line `unattributed`.
* measured < idle happens (noise, clock steps): active is clamped at zero and the debt is carried into later windows, so
  that over time parts + carried debt = measured, exactly.

A request cannot wait for its window to close, so its receipt is an estimate from the same figures: the profiled energy
of its rows x the running ratio of measured to modelled energy, plus its family's idle watts / rows a second over the
trailing minute.  After a quiet time that rate is far below the burst that ends it, so rows only share what is there:
the idle energy that their family's windows were given and no receipt has billed yet, at most that of one trailing
minute.  What no receipt bills, because nobody asked, is the line `idle_unbilled_j`.  Grams = joules x intensity x PUE
at the grid time of the window (or of the answer).

Everything is pure: time, samples and readings are arguments.  Figures keep the method of the sample they come from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from clover.types import EnergySample, FamilyProfile, Method, Reading, Receipt

_SECOND_NS = 1_000_000_000
_JOULES_PER_KWH = 3.6e6
_RATE_WINDOW_S = 60
_RATIO_MEMORY = 0.95
"""Weight of the past in the measured/modelled ratio, per window: about twenty windows count."""


def joules_per_row(
    profile: FamilyProfile | None, variant: str, shape: str, backend: str, max_batch: int
) -> list[float]:
    """Profiled joules a row at each batch size 0 .. `max_batch` (index 0 repeats 1), linear between measured sizes and
    flat beyond them; empty where the profile does not know this worker."""
    if profile is None:
        return []
    points = sorted(
        (m.batch, m.energy_j_per_row)
        for m in profile.latency
        if (m.variant, m.profile, m.backend) == (variant, shape, backend)
    )
    if not points:
        return []
    out: list[float] = []
    for batch in range(max_batch + 1):
        below = [p for p in points if p[0] <= batch] or points[:1]
        above = [p for p in points if p[0] >= batch] or points[-1:]
        (b0, e0), (b1, e1) = below[-1], above[0]
        out.append(e0 if b1 <= b0 else e0 + (e1 - e0) * (batch - b0) / (b1 - b0))
    return out


class WorkerMeter:
    """The work of one worker, counted by the router as batches come back and collected once a window.

    `joules` is the profiled energy a row by batch size; without it, modelled energy is CPU seconds x `core_w`.
    """

    __slots__ = (
        "_joules",
        "_top",
        "busy_ns",
        "core_w",
        "cpu_ns",
        "device",
        "family",
        "modelled_j",
        "placement",
        "rows",
        "slices",
        "variant",
        "window_busy_ns",
        "window_modelled_j",
    )

    def __init__(
        self,
        *,
        family: str,
        variant: str,
        device: str,
        placement: str,
        slices: int,
        joules: Sequence[float] = (),
        core_w: float = 8.0,
    ) -> None:
        self.family = family
        self.variant = variant
        self.device = device
        self.placement = placement
        self.slices = slices
        self.core_w = core_w
        self._joules = tuple(joules)
        self._top = len(self._joules) - 1
        self.rows = 0
        self.busy_ns = 0
        self.cpu_ns = 0
        self.modelled_j = 0.0
        self.window_busy_ns = 0
        self.window_modelled_j = 0.0

    def add(self, rows: int, busy_ns: int, cpu_ns: int) -> float:
        """Count a finished batch; returns its modelled joules a row."""
        if self._top >= 0:
            per_row = self._joules[rows if rows <= self._top else self._top]
        else:
            per_row = cpu_ns * 1e-9 * self.core_w / rows if rows else 0.0
        joules = per_row * rows
        self.rows += rows
        self.busy_ns += busy_ns
        self.cpu_ns += cpu_ns
        self.modelled_j += joules
        self.window_busy_ns += busy_ns
        self.window_modelled_j += joules
        return per_row


@dataclass
class Share:
    """Joules and grams of one (family, variant, method), active and idle apart."""

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


@dataclass
class _DeviceAccount:
    """The running state of one device."""

    slices: int
    last: EnergySample | None = None
    measured_j: float = 0.0
    carried_j: float = 0.0
    unattributed_j: float = 0.0
    unowned_j: float = 0.0
    ratio_measured_j: float = 0.0
    ratio_modelled_j: float = 0.0
    method: Method = "none"
    idle_w: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Measured over modelled active energy, recent windows weighing most; 1 until something was measured."""
        return self.ratio_measured_j / self.ratio_modelled_j if self.ratio_modelled_j > 0.0 else 1.0


class _FamilyRate:
    """Rows of the trailing minute, in one-second bins."""

    __slots__ = ("bins", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self.since_ns = now_ns
        self.bins: deque[list[int]] = deque()

    def add(self, now_ns: int, rows: int) -> None:
        second = now_ns // _SECOND_NS
        if self.bins and self.bins[-1][0] == second:
            self.bins[-1][1] += rows
            return
        self.bins.append([second, rows])
        while self.bins[0][0] <= second - _RATE_WINDOW_S:
            self.bins.popleft()

    def per_s(self, now_ns: int) -> float:
        first = now_ns // _SECOND_NS - _RATE_WINDOW_S
        total = sum(rows for second, rows in self.bins if second > first)
        covered_s = (now_ns - self.since_ns) / _SECOND_NS
        return total / min(max(covered_s, 1.0), float(_RATE_WINDOW_S))


@dataclass
class _IdleBill:
    """Idle joules of one family: given to it by windows, billed in receipts, and what receipts may still bill."""

    accrued_j: float = 0.0
    billed_j: float = 0.0
    open_j: float = 0.0


class Account:
    """Attribution over all devices, families and variants of a server."""

    def __init__(self, *, pue: float, core_w: float = 8.0) -> None:
        self.pue = pue
        self.core_w = core_w
        self.reading: Reading | None = None
        self.shares: dict[tuple[str, str, Method], Share] = {}
        self.receipts_j: dict[str, float] = {}
        self._devices: dict[str, _DeviceAccount] = {}
        self._meters: list[WorkerMeter] = []
        self._gone: list[WorkerMeter] = []
        self._rates: dict[str, _FamilyRate] = {}
        self._idle: dict[str, _IdleBill] = {}
        self._retired_cpu_ns = 0

    # --- who is there -------------------------------------------------------------------------------------------------

    def add_device(self, device: str, slices: int) -> None:
        """A device with `slices` compute slices, over which its idle energy is split."""
        self._devices[device] = _DeviceAccount(slices=max(slices, 1))

    def add_family(self, family: str, now_ns: int) -> None:
        """Start the row rate of a family."""
        self._rates.setdefault(family, _FamilyRate(now_ns))

    def attach(self, meter: WorkerMeter) -> WorkerMeter:
        """A worker that now holds its slices."""
        self._meters.append(meter)
        return meter

    def detach(self, meter: WorkerMeter) -> None:
        """A worker that is gone; the work of its last window still counts."""
        if meter in self._meters:
            self._meters.remove(meter)
            self._gone.append(meter)

    def cpu_seconds(self) -> float:
        """CPU seconds used by all workers in batches so far: what a modelled meter integrates."""
        # Of one that died, batches may still be counted after it was detached: it is retired with its last window.
        counted = sum(meter.cpu_ns for meter in (*self._meters, *self._gone))
        return (self._retired_cpu_ns + counted) / _SECOND_NS

    # --- windows ------------------------------------------------------------------------------------------------------

    def rows_done(self, family: str, rows: int, now_ns: int) -> None:
        """Count answered rows for the trailing-minute rate."""
        rate = self._rates.get(family)
        if rate is None:
            rate = self._rates[family] = _FamilyRate(now_ns)
        rate.add(now_ns, rows)

    def window(self, sample: EnergySample, reading: Reading) -> None:
        """Close the window of `sample.device` at `sample.at_ns`, its carbon priced at `reading`.  The first sample of a
        device only opens its first window."""
        self.reading = reading
        device = self._devices.get(sample.device)
        if device is None:
            device = self._devices[sample.device] = _DeviceAccount(slices=1)
        last, device.last = device.last, sample
        device.method = sample.method
        here = [meter for meter in self._meters if meter.device == sample.device]
        device.idle_w = self._idle_watts(device, here, sample.idle_w)
        gone = [meter for meter in self._gone if meter.device == sample.device]
        worked = here + gone
        self._retired_cpu_ns += sum(meter.cpu_ns for meter in gone)
        self._gone = [meter for meter in self._gone if meter.device != sample.device]
        modelled = [(meter, meter.window_modelled_j) for meter in worked]
        busy = [(meter, float(meter.window_busy_ns)) for meter in worked]
        for meter in worked:
            meter.window_busy_ns = 0
            meter.window_modelled_j = 0.0
        if last is None:
            return
        measured_j = sample.total_j - last.total_j
        seconds = (sample.at_ns - last.at_ns) / _SECOND_NS
        idle_j = sample.idle_w * seconds
        active_j = measured_j - idle_j + device.carried_j
        device.carried_j = min(active_j, 0.0)
        active_j = max(active_j, 0.0)
        device.measured_j += measured_j
        grams_per_j = reading.g_per_kwh / _JOULES_PER_KWH * self.pue
        self._split_idle(device, here, idle_j, grams_per_j)
        weights = modelled if sum(w for _, w in modelled) > 0.0 else busy
        total = sum(weight for _, weight in weights)
        if total <= 0.0:
            device.unattributed_j += active_j
            return
        for meter, weight in weights:
            if weight > 0.0:
                share = self._share(meter, device.method)
                part_j = active_j * weight / total
                share.active_j += part_j
                share.active_g += part_j * grams_per_j
        if weights is modelled:
            device.ratio_measured_j = device.ratio_measured_j * _RATIO_MEMORY + active_j
            device.ratio_modelled_j = device.ratio_modelled_j * _RATIO_MEMORY + total

    def _share(self, meter: WorkerMeter, method: Method) -> Share:
        key = (meter.family, meter.variant, method)
        share = self.shares.get(key)
        if share is None:
            share = self.shares[key] = Share()
        return share

    @staticmethod
    def _owned(here: Iterable[WorkerMeter]) -> list[tuple[WorkerMeter, float]]:
        """Slices by worker; those of one placement are shared by the workers on it."""
        crowd: dict[str, int] = {}
        meters = list(here)
        for meter in meters:
            crowd[meter.placement] = crowd.get(meter.placement, 0) + 1
        return [(meter, meter.slices / crowd[meter.placement]) for meter in meters]

    def _split_idle(self, device: _DeviceAccount, here: list[WorkerMeter], idle_j: float, grams_per_j: float) -> None:
        owned = self._owned(here)
        # Placements of an old and a new layout may overlap during a transition: never hand out more than all.
        slices = max(float(device.slices), sum(count for _, count in owned))
        rest = 1.0
        for meter, count in owned:
            part_j = idle_j * count / slices
            share = self._share(meter, device.method)
            share.idle_j += part_j
            share.idle_g += part_j * grams_per_j
            rest -= count / slices
            bill = self._idle.setdefault(meter.family, _IdleBill())
            bill.accrued_j += part_j
            bill.open_j += part_j
        device.unowned_j += idle_j * rest
        for family, bill in self._idle.items():
            bill.open_j = min(bill.open_j, self._family_idle_w(family) * _RATE_WINDOW_S)

    def _idle_watts(self, device: _DeviceAccount, here: list[WorkerMeter], idle_w: float) -> dict[str, float]:
        owned = self._owned(here)
        slices = max(float(device.slices), sum(count for _, count in owned))
        out: dict[str, float] = {}
        for meter, count in owned:
            out[meter.family] = out.get(meter.family, 0.0) + idle_w * count / slices
        return out

    def _family_idle_w(self, family: str) -> float:
        return sum(device.idle_w.get(family, 0.0) for device in self._devices.values())

    # --- receipts and totals ------------------------------------------------------------------------------------------

    def receipt(
        self, family: str, *, variant: str, accuracy: float, rows: int, modelled_j: float, now_ns: int
    ) -> Receipt:
        """What `rows` rows with `modelled_j` joules of profiled energy cost, idle share and PUE included."""
        measured = sum(device.ratio_measured_j for device in self._devices.values())
        modelled = sum(device.ratio_modelled_j for device in self._devices.values())
        ratio = measured / modelled if modelled > 0.0 else 1.0
        energy_j = modelled_j * ratio + self._bill_idle(family, rows, now_ns)
        self.receipts_j[family] = self.receipts_j.get(family, 0.0) + energy_j
        reading = self.reading
        intensity = reading.g_per_kwh if reading is not None else 0.0
        return Receipt(
            variant=variant,
            accuracy=accuracy,
            energy_j=energy_j,
            carbon_mg=energy_j / _JOULES_PER_KWH * intensity * self.pue * 1e3,
            intensity_g_per_kwh=intensity,
            # A receipt is always an estimate: the device was measured or not, but never this one request.
            method="emulated" if any(d.method == "emulated" for d in self._devices.values()) else "modelled",
            intensity_state=reading.state if reading is not None else "unknown",
        )

    def _bill_idle(self, family: str, rows: int, now_ns: int) -> float:
        """The idle joules that `rows` rows share, taken from what is still to be billed."""
        rate = self._rates[family].per_s(now_ns) if family in self._rates else 0.0
        bill = self._idle.get(family)
        if bill is None or rate <= 0.0:
            return 0.0
        part_j = min(self._family_idle_w(family) / rate * rows, bill.open_j)
        bill.open_j -= part_j
        bill.billed_j += part_j
        return part_j

    def devices(self) -> dict[str, dict[str, float | str]]:
        """Per device: joules measured, carried, unattributed, unowned, and the measured/modelled ratio."""
        return {
            name: {
                "measured_j": device.measured_j,
                "carried_j": device.carried_j,
                "unattributed_j": device.unattributed_j,
                "unowned_j": device.unowned_j,
                "ratio": device.ratio,
                "method": device.method,
            }
            for name, device in self._devices.items()
        }

    def totals(self, family: str | None = None) -> dict[str, float]:
        """Joules and grams over all variants (of one family); of the idle joules, those that no receipt has billed."""
        bills = [bill for name, bill in self._idle.items() if family in (None, name)]
        picked = [share for (name, _, _), share in self.shares.items() if family in (None, name)]
        return {
            "active_j": sum(share.active_j for share in picked),
            "idle_j": sum(share.idle_j for share in picked),
            "energy_j": sum(share.total_j for share in picked),
            "carbon_g": sum(share.total_g for share in picked),
            "idle_unbilled_j": sum(bill.accrued_j - bill.billed_j for bill in bills),
        }
