"""The account of a server: its devices and workers, what was attributed to them, and what an answer is billed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from clover.accounting.devices import DeviceAccount, Share
from clover.accounting.meters import WorkerMeter
from clover.types import EnergySample, Method, Reading, Receipt

_SECOND_NS = 1_000_000_000
_JOULES_PER_KWH = 3.6e6
_RATE_WINDOW_S = 60


class AnsweredRate:
    """Rows a second that a family answered over the trailing minute, in one-second bins, to share idle energy out by.

    Time before the first row counts from when the family was added, unlike in `traffic.Rate` of the router, which
    starts with its first event and answers for rates that are shown and planned with.
    """

    __slots__ = ("_answer", "_asked_ns", "bins", "rows", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self._asked_ns = -1
        self._answer = 0.0
        self.since_ns = now_ns
        self.bins: deque[list[int]] = deque()
        self.rows = 0

    def add(self, now_ns: int, rows: int) -> None:
        """Count rows that were answered at `now_ns`."""
        second = now_ns // 1_000_000_000
        self._asked_ns = -1
        self.rows += rows
        if self.bins and self.bins[-1][0] == second:
            self.bins[-1][1] += rows
        else:
            self.bins.append([second, rows])
            while self.bins[0][0] <= second - _RATE_WINDOW_S:
                self.rows -= self.bins.popleft()[1]

    def per_s(self, now_ns: int) -> float:
        """Return rows a second over the last minute, or over the time since the family was added if that is shorter."""
        if now_ns == self._asked_ns:  # the rows of a batch are answered at one time
            return self._answer
        first = now_ns // 1_000_000_000 - 60
        while self.bins and self.bins[0][0] <= first:
            self.rows -= self.bins.popleft()[1]
        covered_s = (now_ns - self.since_ns) / _SECOND_NS
        self._asked_ns, self._answer = now_ns, self.rows / min(max(covered_s, 1.0), float(_RATE_WINDOW_S))
        return self._answer


class IdleBill:
    """Idle joules of one family: attributed to it, billed in receipts, and what receipts may still bill."""

    __slots__ = ("accrued_j", "billed_j", "open_j")

    def __init__(self) -> None:
        self.accrued_j = 0.0
        self.billed_j = 0.0
        self.open_j = 0.0


@dataclass
class Span:
    """The work of a family since the last `Account.take`: rows that each variant computed, joules and grams, and the
    methods of the devices.

    Rows whose energy is unknown (the meter began anew) are left out.  Cascades passed `gone_on` of the rows on to
    another variant; those that were answered are right by `right` (rows x percent) more than the variants are over all
    rows that they computed.
    """

    rows: dict[str, int] = field(default_factory=dict)
    gone_on: int = 0
    right: float = 0.0
    share: Share = field(default_factory=Share)
    methods: set[Method] = field(default_factory=set)


@dataclass
class Spans:
    """The spans of all families; by device the idle joules and grams of slices without a worker (`unowned`); and the
    length of the longest window in them."""

    families: dict[str, Span] = field(default_factory=dict)
    unowned: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float = 0.0

    def of(self, family: str) -> Span:
        """Return the span of `family`, made if it is missing."""
        return self.families.setdefault(family, Span())


class Account:
    """Attribution over all devices, families and variants of a server.

    `shares` holds joules and grams by (family, variant, method), `placements` by (device, placement, method).  Grams
    include the overhead of the data centre, `pue`; a busy core draws `core_w` watts if no profile knows better.
    """

    def __init__(self, *, pue: float, core_w: float = 8.0) -> None:
        self.pue = pue
        self.core_w = core_w
        self.reading: Reading | None = None
        self.shares: dict[tuple[str, str, Method], Share] = {}
        self.placements: dict[tuple[str, str, Method], Share] = {}
        self.receipts_j: dict[str, float] = {}
        self._devices: dict[str, DeviceAccount] = {}
        self._meters: list[WorkerMeter] = []
        self._gone: list[WorkerMeter] = []
        self._places: dict[str, set[str]] = {}
        self._rates: dict[str, AnsweredRate] = {}
        self._idle: dict[str, IdleBill] = {}
        self._spans = Spans()
        self._retired_cpu_ns = 0
        self._idle_w: dict[str, float] = {}
        self._receipt_method: dict[str, Method] = {}
        """Answers of `_family_idle_w` and `method_of` by family, kept until devices or workers change."""
        self._last_j = -1.0
        self._last_accuracy = -1.0
        self._last_variant = ""
        self._last_method: Method = "modelled"
        self._last_reading: Reading | None = None
        self._last_path: tuple[str, ...] = ()
        self._last_receipt: Receipt | None = None

    # --- who is there -------------------------------------------------------------------------------------------------

    def add_device(self, device: str, slices: int) -> None:
        """Add a device with `slices` compute slices, over which its idle energy is split.

        A known device (a GPU that was lost and is back) keeps its account.
        """
        self._devices.setdefault(device, DeviceAccount(slices=1)).slices = max(slices, 1)
        self._forget()

    def add_family(self, family: str, now_ns: int) -> None:
        """Start the row rate of a family."""
        self._rates.setdefault(family, AnsweredRate(now_ns))

    def attach(self, meter: WorkerMeter) -> WorkerMeter:
        """Note that a worker now holds its slices; return its meter."""
        self._meters.append(meter)
        self._places.setdefault(meter.family, set()).add(meter.device)
        self._forget()
        device = self._devices.get(meter.device)
        meter.ratio = device.ratio if device is not None else 1.0
        return meter

    def detach(self, meter: WorkerMeter) -> None:
        """Note that a worker has ended; its work in the window under way still counts."""
        if meter in self._meters:
            self._meters.remove(meter)
            self._gone.append(meter)

    def cpu_seconds(self) -> float:
        """Return CPU seconds used by all workers in batches so far: what a modelled meter integrates."""
        # Batches of a dead worker may still be counted after `detach`: it is retired with its last window.
        counted = sum(meter.cpu_ns for meter in (*self._meters, *self._gone))
        return (self._retired_cpu_ns + counted) / _SECOND_NS

    def busy_ns(self, device: str) -> int:
        """Return the nanoseconds that workers of `device` were busy so far, dead ones included."""
        known = self._devices.get(device)
        retired_ns = known.retired_busy_ns if known is not None else 0
        return retired_ns + sum(meter.busy_ns for meter in (*self._meters, *self._gone) if meter.device == device)

    # --- windows ------------------------------------------------------------------------------------------------------

    def rows_done(self, family: str, rows: int, now_ns: int) -> None:
        """Count answered rows for the trailing-minute rate."""
        rate = self._rates.get(family)
        if rate is None:
            rate = self._rates[family] = AnsweredRate(now_ns)
        rate.add(now_ns, rows)

    def window(self, sample: EnergySample, reading: Reading) -> None:
        """Close the window of `sample.device` at `sample.at_ns`, its carbon priced at `reading`.

        The first sample of a device or of an epoch only opens a window; one no newer than the last leaves it open.
        """
        self.reading = reading
        device = self._devices.setdefault(sample.device, DeviceAccount(slices=1))
        here = [meter for meter in self._meters if meter.device == sample.device]
        gone = [meter for meter in self._gone if meter.device == sample.device]
        closed = device.window(sample, here, gone)
        self._forget()
        if closed is None:
            return
        self._gone = [meter for meter in self._gone if meter.device != sample.device]
        self._retired_cpu_ns += sum(meter.cpu_ns for meter in gone)
        device.retired_busy_ns += sum(meter.busy_ns for meter in gone)
        grams_per_j = reading.g_per_kwh / _JOULES_PER_KWH * self.pue
        spans = self._spans
        spans.seconds = max(spans.seconds, closed.seconds)
        for meter, part_j in closed.active:
            for share in (*self._booked(meter, sample.method), spans.of(meter.family).share):
                share.active_j += part_j
                share.active_g += part_j * grams_per_j
        for meter, rows, gone_on, right in closed.rows:
            span = spans.of(meter.family)
            span.gone_on += gone_on
            span.right += right
            span.rows[meter.variant] = span.rows.get(meter.variant, 0) + rows
            span.methods.add(sample.method)
        unowned_j, unowned_g = spans.unowned.get(sample.device, (0.0, 0.0))
        more_j = closed.unowned_j
        spans.unowned[sample.device] = (unowned_j + more_j, unowned_g + more_j * grams_per_j)
        for meter, part_j in closed.idle:
            for share in (*self._booked(meter, sample.method), spans.of(meter.family).share):
                share.idle_j += part_j
                share.idle_g += part_j * grams_per_j
            bill = self._idle.setdefault(meter.family, IdleBill())
            bill.accrued_j += part_j
            bill.open_j += part_j
        for family, bill in self._idle.items():
            bill.open_j = min(bill.open_j, self._family_idle_w(family) * _RATE_WINDOW_S)

    def take(self) -> Spans:
        """Return the spans of the windows that were closed since the last call."""
        taken, self._spans = self._spans, Spans()
        return taken

    def _booked(self, meter: WorkerMeter, method: Method) -> tuple[Share, Share]:
        by_variant = self.shares.setdefault((meter.family, meter.variant, method), Share())
        by_placement = self.placements.setdefault((meter.device, meter.placement, method), Share())
        return by_variant, by_placement

    def _family_idle_w(self, family: str) -> float:
        watts = self._idle_w.get(family)
        if watts is None:
            watts = sum([device.family_idle_w.get(family, 0.0) for device in self._devices.values()])
            self._idle_w[family] = watts
        return watts

    # --- receipts and totals ------------------------------------------------------------------------------------------

    def receipt(
        self,
        family: str,
        variant: str,
        accuracy: float,
        rows: int,
        active_j: float,
        now_ns: int,
        path: tuple[str, ...] = (),
    ) -> Receipt:
        """Return the receipt of `rows` rows with `active_j` joules (as their workers' meters gave them).

        Energy includes their share of idle energy, carbon also the PUE.  The rows of a batch share one object.
        """
        energy_j = active_j + self._bill_idle(family, rows, now_ns)
        self.receipts_j[family] = self.receipts_j.get(family, 0.0) + energy_j
        reading = self.reading
        # A receipt is always an estimate: the device was measured or not, but never this one request.
        method = self.method_of(family)
        last = self._last_receipt
        if (
            last is not None
            and energy_j == self._last_j
            and accuracy == self._last_accuracy
            and variant is self._last_variant
            and reading is self._last_reading
            and method is self._last_method
            and path is self._last_path
        ):
            return last  # the rows of a batch cost the same
        intensity = reading.g_per_kwh if reading is not None else 0.0
        self._last_j, self._last_accuracy, self._last_variant = energy_j, accuracy, variant
        self._last_reading, self._last_method, self._last_path = reading, method, path
        self._last_receipt = last = Receipt(
            variant=variant,
            accuracy=accuracy,
            energy_j=energy_j,
            carbon_mg=energy_j / _JOULES_PER_KWH * intensity * self.pue * 1e3,
            intensity_g_per_kwh=intensity,
            method=method,
            intensity_state=reading.state if reading is not None else "unknown",
            intensity=reading,
            path=path,
        )
        return last

    def method_of(self, family: str) -> Method:
        """Return how the energy of a single row of a family is known: emulated if any of its devices is."""
        known = self._receipt_method.get(family)
        if known is None:
            known = self._receipt_method[family] = "emulated" if self._is_emulated(family) else "modelled"
        return known

    def _is_emulated(self, family: str) -> bool:
        places = self._places.get(family, ())
        return any(name in places and device.method == "emulated" for name, device in self._devices.items())

    def _forget(self) -> None:
        self._idle_w.clear()
        self._receipt_method.clear()

    def _bill_idle(self, family: str, rows: int, now_ns: int) -> float:
        """Return the idle joules that `rows` rows share, taken from what is still to be billed."""
        known = self._rates.get(family)
        rate = known.per_s(now_ns) if known is not None else 0.0
        bill = self._idle.get(family)
        if bill is None or rate <= 0.0:
            return 0.0
        part_j = min(self._family_idle_w(family) / rate * rows, bill.open_j)
        bill.open_j -= part_j
        bill.billed_j += part_j
        return part_j

    def devices(self) -> dict[str, dict[str, float | str]]:
        """Return the lines of each device, by name.

        Joules sum up: `measured_j` = active, idle, unattributed, unowned and carried.  `watts` are those of the last
        window (absent while the meter gives no new reading: `frozen` is 1), `idle_w` those at rest; `ratio` is measured
        over modelled energy; `restarts` counts how often the meter began anew.
        """
        active: dict[str, float] = {}
        idle: dict[str, float] = {}
        for (name, _, _), share in self.placements.items():
            active[name] = active.get(name, 0.0) + share.active_j
            idle[name] = idle.get(name, 0.0) + share.idle_j
        return {
            name: {
                "measured_j": device.measured_j,
                "active_j": active.get(name, 0.0),
                "idle_j": idle.get(name, 0.0),
                "unattributed_j": device.unattributed_j,
                "unowned_j": device.unowned_j,
                "carried_j": device.carried_j,
                **({} if device.frozen else {"watts": device.watts}),
                "idle_w": device.idle_w,
                "ratio": device.ratio,
                "frozen": float(device.frozen),
                "restarts": float(device.restarts),
                "method": device.method,
            }
            for name, device in self._devices.items()
        }

    def totals(self, family: str | None = None) -> dict[str, float]:
        """Return joules and grams over all variants (of one family); `idle_unbilled_j`: idle joules not in receipts."""
        bills = [bill for name, bill in self._idle.items() if family in (None, name)]
        picked = [share for (name, _, _), share in self.shares.items() if family in (None, name)]
        return {
            "active_j": sum(share.active_j for share in picked),
            "idle_j": sum(share.idle_j for share in picked),
            "energy_j": sum(share.total_j for share in picked),
            "carbon_g": sum(share.total_g for share in picked),
            "idle_unbilled_j": sum(bill.accrued_j - bill.billed_j for bill in bills),
        }
