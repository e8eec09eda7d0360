"""The account of a server: its devices and workers, what was attributed to them, and what an answer is billed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from clover.accounting.devices import ClosedWindow, DeviceAccount, Line, Share
from clover.accounting.feedback import ProfileFeedback
from clover.accounting.host import HostCpu
from clover.accounting.meters import WorkerMeter
from clover.accounting.prices import Price, Prices
from clover.accounting.spans import Spans, Work
from clover.accounting.usage import UsageBook, book_active, book_rows
from clover.types import EnergySample, Method, Reading, Receipt, WorkReport

_SECOND_NS = 1_000_000_000
_JOULES_PER_KWH = 3.6e6
_RATE_WINDOW_S = 60
_LATEST = 0.1
"""Weight of the last window in what a row costs of the front end."""


class AnsweredRate:
    """Rows a second that a family answered over the trailing minute, in one-second bins, to share idle energy out by.

    Time before the first row counts from when the family was added, unlike in `traffic.Rate` of the router, which
    starts with its first event and answers for rates that are shown and planned with.
    """

    __slots__ = ("_answer", "_asked_ns", "_newest", "_newest_s", "_trimmed_s", "answered", "bins", "rows", "since_ns")

    def __init__(self, now_ns: int) -> None:
        self._asked_ns = -1
        self._answer = 0.0
        self.since_ns = now_ns
        self.bins: deque[list[int]] = deque()
        self._newest: list[int] = []  # of the bins: rows of a request nearly always join that of the last
        self._newest_s = -1
        self._trimmed_s = -1
        self.rows = 0
        self.answered = 0
        """Rows since the family was added."""

    def add(self, now_ns: int, rows: int) -> None:
        """Count rows that were answered at `now_ns`."""
        second = now_ns // 1_000_000_000
        self._asked_ns = -1
        self.answered += rows
        self.rows += rows
        if second == self._newest_s:
            self._newest[1] += rows
        else:
            self._newest, self._newest_s = [second, rows], second
            self.bins.append(self._newest)
            while self.bins[0][0] <= second - _RATE_WINDOW_S:
                self.rows -= self.bins.popleft()[1]

    def per_s(self, now_ns: int) -> float:
        """Return rows a second over the last minute, or over the time since the family was added if that is shorter."""
        if now_ns == self._asked_ns:  # the rows of a batch are answered at one time
            return self._answer
        first = now_ns // 1_000_000_000 - 60
        if first != self._trimmed_s:
            self._trimmed_s = first
            while self.bins and self.bins[0][0] <= first:
                self.rows -= self.bins.popleft()[1]
        covered_s = (now_ns - self.since_ns) / _SECOND_NS
        self._asked_ns, self._answer = now_ns, self.rows / min(max(covered_s, 1.0), float(_RATE_WINDOW_S))
        return self._answer


class OverheadBill:
    """What a row costs beside its own computing: joules and grams that were attributed to a family and that no receipt
    has billed yet.

    `per_row_j`: what a row cost in the last windows, of the front end; idle joules accrue with time instead.
    """

    __slots__ = ("accrued_j", "billed_j", "open_g", "open_j", "per_row_j")

    def __init__(self) -> None:
        self.accrued_j = 0.0
        self.billed_j = 0.0
        self.open_j = 0.0
        self.open_g = 0.0
        self.per_row_j = 0.0

    def accrue(self, joules: float, prices: Sequence[Price]) -> None:
        """Add what was attributed in a window."""
        self.accrued_j += joules
        self.open_j += joules
        for price in prices:
            self.open_g += joules * price.part * price.grams_per_j

    def bound(self, most_j: float) -> None:
        """Let receipts bill no more than `most_j` of what is open: the rest stays without a receipt."""
        if self.open_j > most_j:
            self.open_g *= most_j / self.open_j
            self.open_j = most_j

    def take(self, joules: float) -> float:
        """Return up to `joules` of what is open, which is billed now."""
        part_j = min(joules, self.open_j)
        if part_j <= 0.0:
            return 0.0
        self.open_g -= self.open_g * part_j / self.open_j
        self.open_j -= part_j
        self.billed_j += part_j
        return part_j


class Account:
    """Attribution over all devices, families and variants of a server.

    `shares` holds joules and grams by (family, variant, method), `placements` by (device, placement, method), `usage`
    rows and active energy by variant, slice and tenant.  Grams include the overhead of the data centre, `pue`; a busy
    core draws `core_w` watts if no profile knows better.
    """

    def __init__(self, *, pue: float, core_w: float = 8.0) -> None:
        self.pue = pue
        self.core_w = core_w
        self.reading: Reading | None = None
        self.host: HostCpu | None = None
        """The CPU times of the machine, whose account is that of the device `host_device`."""
        self.host_device = ""
        self.shares: dict[tuple[str, str, Method], Share] = {}
        self.overheads: dict[tuple[str, str, Method], Share] = {}
        """Joules and grams by (family, "front_end" or "control", method)."""
        self.placements: dict[tuple[str, str, Method], Share] = {}
        self.usage: UsageBook = {}
        self.receipts_j: dict[str, float] = {}
        self._devices: dict[str, DeviceAccount] = {}
        self._meters: list[WorkerMeter] = []
        self._gone: list[WorkerMeter] = []
        self._places: dict[str, set[str]] = {}
        self._rates: dict[str, AnsweredRate] = {}
        self._idle: dict[str, OverheadBill] = {}
        self._front_end: dict[str, OverheadBill] = {}
        self._overhead_g = 0.0
        self._work: dict[tuple[str, str, Method], Work] = {}
        self._answered: dict[str, int] = {}
        """Answered rows of each family when the front end's energy was last split by them."""
        self._prices = Prices(pue)
        self._spans = Spans()
        self._feedback = ProfileFeedback()
        self._retired_cpu_ns = 0
        self._idle_w: dict[str, float] = {}
        self._receipt_method: dict[str, Method] = {}
        """Answers of `_family_idle_w` and `method_of` by family, kept until devices or workers change."""
        self._last_j = self._last_overhead_g = -1.0
        self._last_accuracy = -1.0
        self._last_variant = ""
        self._last_method: Method = "modelled"
        self._last_reading: Reading | None = None
        self._last_path: tuple[str, ...] = ()
        self._last_receipt: Receipt | None = None

    # --- who is there -------------------------------------------------------------------------------------------------

    def add_device(self, device: str, slices: int, front_end: int = 0, foreign: float = 0.0) -> None:
        """Add a device with `slices` compute slices for workers, `front_end` more (cores that workers may not use), and
        `foreign` ones that its meter covers and that are not the server's; over all its idle energy is split.

        A known device (a GPU that was lost and is back) keeps its account.
        """
        known = self._devices.setdefault(device, DeviceAccount(slices=1))
        known.slices, known.front_end, known.foreign = max(slices, 1), front_end, foreign
        self._forget()

    def add_host(self, device: str, host: HostCpu) -> None:
        """Have the active energy of `device`, the machine, split by the CPU times of `host`."""
        self.host_device, self.host = device, host
        for meter in self._meters:
            host.add(meter)

    def add_family(self, family: str, now_ns: int) -> None:
        """Start the row rate of a family."""
        self._rates.setdefault(family, AnsweredRate(now_ns))

    def attach(self, meter: WorkerMeter) -> WorkerMeter:
        """Note that a worker now holds its slices; return its meter."""
        self._meters.append(meter)
        self._places.setdefault(meter.family, set()).add(meter.device)
        self._forget()
        self._feedback.attach(meter)
        device = self._devices.get(meter.device)
        meter.ratio = device.ratio_of(meter) if device is not None else 1.0
        if self.host is not None:
            self.host.add(meter)
        return meter

    def detach(self, meter: WorkerMeter) -> None:
        """Note that a worker has ended; its work in the window under way still counts."""
        if meter in self._meters:
            self._meters.remove(meter)
            self._gone.append(meter)
            if self.host is not None:
                self.host.leave(meter)

    def cpu_seconds(self) -> float:
        """Return CPU seconds used by all workers in batches so far, by their own word."""
        # Batches of a dead worker may still be counted after `detach`: it is retired with its last window.
        counted = sum(meter.cpu_ns for meter in (*self._meters, *self._gone))
        return (self._retired_cpu_ns + counted) / _SECOND_NS

    def busy_ns(self, device: str) -> int:
        """Return the nanoseconds that workers of `device` were busy so far, dead ones included."""
        known = self._devices.get(device)
        retired_ns = known.retired_busy_ns if known is not None else 0
        return retired_ns + sum(meter.busy_ns for meter in (*self._meters, *self._gone) if meter.device == device)

    def workers(self) -> tuple[WorkerMeter, ...]:
        """Return the meters of the workers that hold slices now."""
        return tuple(self._meters)

    # --- windows ------------------------------------------------------------------------------------------------------

    def rows_done(self, family: str, rows: int, now_ns: int) -> None:
        """Count answered rows for the trailing-minute rate."""
        rate = self._rates.get(family)
        if rate is None:
            rate = self._rates[family] = AnsweredRate(now_ns)
        rate.add(now_ns, rows)

    def window(self, sample: EnergySample, reading: Reading, now_ns: int = 0) -> None:
        """Close the window of `sample.device` at `sample.at_ns`.

        `reading` was in force until `now_ns` (default: until the sample).  Energy that comes late is priced at the
        readings of its own time.  The first sample of a device or of an epoch only opens a window; one no newer than
        the last leaves it open.
        """
        self.reading = reading
        self._prices.note(reading, now_ns or sample.at_ns)
        device = self._devices.setdefault(sample.device, DeviceAccount(slices=1))
        host = self.host if sample.device == self.host_device else None
        everywhere = host is not None and not any(meter.device == sample.device for meter in self._meters)
        here = [meter for meter in self._meters if everywhere or meter.device == sample.device]
        gone = [meter for meter in self._gone if meter.device == sample.device]
        book_rows(self.usage, (meter for meter in (*here, *gone) if meter.device == sample.device))
        closed = device.window(sample, here, gone, self._prices, host.parts if host is not None else None)
        self._forget()
        if closed is None:
            return
        self._gone = [meter for meter in self._gone if meter.device != sample.device]
        self._retired_cpu_ns += sum(meter.cpu_ns for meter in gone)
        device.retired_busy_ns += sum(meter.busy_ns for meter in gone)
        if host is not None:
            host.close()
        self._book(sample, closed)
        self._feedback.note(sample.device, closed)
        for family, bill in self._idle.items():
            bill.bound(self._family_idle_w(family) * _RATE_WINDOW_S)
        for family, bill in self._front_end.items():
            bill.bound(bill.per_row_j * self._rate(family).rows)

    def _book(self, sample: EnergySample, closed: ClosedWindow) -> None:
        spans, prices = self._spans, closed.prices
        book_active(self.usage, sample, closed.active, prices)
        spans.seconds = max(spans.seconds, closed.seconds)
        for meter, part_j in closed.active:
            for share in (*self._booked(meter, sample), spans.of(meter.family).share):
                share.add_active(part_j, prices)
        for meter, part_j in closed.audits:
            span = spans.of(meter.family)
            for share in (span.control, self._overhead_share(meter.family, "control", sample.method)):
                share.add_active(part_j, prices)
        for meter, part_j in (*closed.active, *closed.audits):
            if meter.device == sample.device:  # and not what a worker of a GPU uses of its host
                self._work.setdefault((meter.family, meter.variant, sample.method), Work()).metered_j += part_j
        for meter, rows, gone_on, right, expected_j, computed in closed.rows:
            span = spans.of(meter.family)
            span.gone_on += gone_on
            span.right += right
            span.rows[meter.variant] = span.rows.get(meter.variant, 0) + rows
            span.methods.add(sample.method)
            work = self._work.setdefault((meter.family, meter.variant, sample.method), Work())
            work.rows += computed
            work.expected_j += expected_j
        for meter, part_j in closed.idle:
            for share in (*self._booked(meter, sample), spans.of(meter.family).share):
                share.add_idle(part_j, prices)
            self._idle.setdefault(meter.family, OverheadBill()).accrue(part_j, prices)
        spans.unheld(sample.device, closed.unowned_j, sum(price.part * price.grams_per_j for price in prices))
        if sample.device == self.host_device:
            self._book_overheads(sample.method, closed)
        for span in spans.families.values():
            span.grids.update(price.method for price in prices)

    def _book_overheads(self, method: Method, closed: ClosedWindow) -> None:
        """Split what the front end and control used over the families by rows answered; evenly, if none were."""
        answered = {family: rate.answered - self._answered.get(family, 0) for family, rate in self._rates.items()}
        self._answered = {family: rate.answered for family, rate in self._rates.items()}
        total = sum(answered.values())
        for family, rows in answered.items():
            part = rows / total if total else 1.0 / len(answered)
            span = self._spans.of(family)
            for name, booked, active_j, idle_j in (
                ("front_end", span.front_end, closed.front_end_j, closed.front_end_idle_j),
                ("control", span.control, closed.control_j, 0.0),
            ):
                for share in (booked, self._overhead_share(family, name, method)):
                    share.add_active(part * active_j, closed.prices)
                    share.add_idle(part * idle_j, closed.prices)
            front_end_j = part * (closed.front_end_j + closed.front_end_idle_j)
            bill = self._front_end.setdefault(family, OverheadBill())
            bill.accrue(front_end_j, closed.prices)
            if rows:
                latest_j = front_end_j / rows
                bill.per_row_j += (latest_j - bill.per_row_j) * _LATEST if bill.per_row_j else latest_j

    def unmetered(self, device: str, seconds: float) -> None:
        """Count time in which the meter of `device` gave no reading; the device is shown as not metered."""
        account = self._devices.setdefault(device, DeviceAccount(slices=1))
        account.unmetered_s += seconds
        account.frozen = True

    def work_report(self, family: str) -> WorkReport:
        """See `clover.interfaces.Fleet.work_report`."""
        return self._feedback.take(family, (*self._meters, *self._gone))

    def correct(self, family: str, factors: Mapping[tuple[str, str], float]) -> None:
        """See `clover.interfaces.Fleet.correct_energy`."""
        self._feedback.correct(family, factors, self._meters, self._devices)

    def take(self) -> Spans:
        """Return the spans of the windows that were closed since the last call."""
        taken, self._spans = self._spans, Spans()
        return taken

    def _booked(self, meter: WorkerMeter, sample: EnergySample) -> tuple[Share, Share]:
        by_variant = self.shares.setdefault((meter.family, meter.variant, sample.method), Share())
        by_placement = self.placements.setdefault((sample.device, meter.placement, sample.method), Share())
        return by_variant, by_placement

    def _overhead_share(self, family: str, line: str, method: Method) -> Share:
        return self.overheads.setdefault((family, line, method), Share())

    def _rate(self, family: str) -> AnsweredRate:
        return self._rates.setdefault(family, AnsweredRate(0))

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
        """Bill `rows` rows with `active_j` joules (as their workers' meters gave them) and return their receipt.  Call
        it once for each ticket.

        Energy includes their share of idle energy and of the front end's, carbon also the PUE.  The rows of a batch
        share one object.
        """
        energy_j = active_j + self._bill_overhead(family, rows, now_ns)
        self.receipts_j[family] = self.receipts_j.get(family, 0.0) + energy_j
        reading = self.reading
        # A receipt is always an estimate: the device was measured or not, but never this one request.
        method = self.method_of(family)
        last = self._last_receipt
        if (
            last is not None
            and (energy_j == self._last_j and self._overhead_g == self._last_overhead_g)
            and accuracy == self._last_accuracy
            and variant is self._last_variant
            and reading is self._last_reading
            and method is self._last_method
            and path is self._last_path
        ):
            return last  # the rows of a batch cost the same
        intensity = reading.g_per_kwh if reading is not None else 0.0
        self._last_j, self._last_overhead_g, self._last_accuracy = energy_j, self._overhead_g, accuracy
        self._last_variant, self._last_reading, self._last_method, self._last_path = variant, reading, method, path
        self._last_receipt = last = Receipt(
            variant=variant,
            accuracy=accuracy,
            energy_j=energy_j,
            carbon_mg=(active_j / _JOULES_PER_KWH * intensity * self.pue + self._overhead_g) * 1e3,
            intensity_g_per_kwh=intensity,
            method=method,
            intensity_state=reading.state if reading is not None else "unknown",
            intensity=reading,
            pue=self.pue,
            path=path,
        )
        return last

    def bill_lookup(self, family: str, joules: float) -> None:
        """Charge the joules of finding a kept answer, which are part of the front end's: no row pays them again."""
        bill = self._front_end.get(family)
        if bill is not None:
            bill.take(joules)
        self.receipts_j[family] = self.receipts_j.get(family, 0.0) + joules

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

    def _bill_overhead(self, family: str, rows: int, now_ns: int) -> float:
        """Return the joules of idle power and of the front end that `rows` rows share, taken from what is still to be
        billed; `_overhead_g` becomes their grams."""
        self._overhead_g = 0.0
        known = self._rates.get(family)
        rate = known.per_s(now_ns) if known is not None else 0.0
        part_j = 0.0
        bill = self._idle.get(family)
        if bill is not None and rate > 0.0:
            before_g = bill.open_g
            part_j = bill.take(self._family_idle_w(family) / rate * rows)
            self._overhead_g = before_g - bill.open_g
        bill = self._front_end.get(family)
        if bill is not None:
            before_g = bill.open_g
            part_j += bill.take(bill.per_row_j * rows)
            self._overhead_g += before_g - bill.open_g
        return part_j

    def devices(self) -> dict[str, dict[str, float | str]]:
        """Return the lines of each device, by name; `grams_method` is how its grams are known.

        Joules sum up: `measured_j` = active, front end, control, idle, awake, unowned, foreign, unattributed and
        carried; so do grams, to `total_g`.  `rest_j` is all idle energy, in whichever lines.  `method` is how the
        joules are known, `intensity` how the intensities of the grams are.  `watts` are those of the last window
        (absent while the meter gives no new reading: `frozen` is 1), `idle_w` those at rest, `awake_w` what contexts
        add on a GPU; `shared` names others that compute on it, for `shared_s` so far; `ratio` is measured over modelled
        energy; `restarts` counts how often the meter began anew.  No reading came for `unmetered_s`; the energy of
        `unknown_s` will never be known.  Modelled joules may be off by `uncertainty_low` to `uncertainty_high`
        (relative, absent if no range is known), the active ones by `active_uncertainty_low` to
        `active_uncertainty_high`.
        """
        return {name: device.report() for name, device in self._devices.items()}

    def lines(self) -> Iterator[tuple[str, str, Method, Line]]:
        """Yield device, line, method of the joules, and the line itself; the front end is the machine's."""
        for name, device in self._devices.items():
            for line, sums in device.lines.items():
                if name == self.host_device or line != "front_end":
                    yield name, line, device.method, sums

    def totals(self, family: str | None = None) -> dict[str, float]:
        """Return joules and grams over all variants (of one family), with its part of the front end and of control.

        energy_j = joules in receipts + `idle_unbilled_j` + `front_end_unbilled_j` + `active_unbilled_j` + `control_j`.
        What receipts bill as active is an estimate, so that the difference may be negative.
        """
        idle = [bill for name, bill in self._idle.items() if family in (None, name)]
        front_end = [bill for name, bill in self._front_end.items() if family in (None, name)]
        picked = [share for (name, _, _), share in self.shares.items() if family in (None, name)]
        overheads = {
            line: [share for (name, of, _), share in self.overheads.items() if of == line and family in (None, name)]
            for line in ("front_end", "control")
        }
        every = [*picked, *overheads["front_end"], *overheads["control"]]
        active_j = sum(share.active_j for share in picked)
        receipts_j = sum(joules for name, joules in self.receipts_j.items() if family in (None, name))
        billed_j = sum(bill.billed_j for bill in (*idle, *front_end))
        return {
            "active_j": active_j,
            "idle_j": sum(share.idle_j for share in picked),
            "front_end_j": sum(share.total_j for share in overheads["front_end"]),
            "control_j": sum(share.total_j for share in overheads["control"]),
            "energy_j": sum(share.total_j for share in every),
            "carbon_g": sum(share.total_g for share in every),
            "active_unbilled_j": active_j - (receipts_j - billed_j),
            "idle_unbilled_j": sum(bill.accrued_j - bill.billed_j for bill in idle),
            "front_end_unbilled_j": sum(bill.accrued_j - bill.billed_j for bill in front_end),
        }

    def per_row(self) -> dict[tuple[str, str, Method], tuple[float, float]]:
        """Return expected and metered active joules a row by (family, variant, method), where metered."""
        return {
            key: (work.expected_j / work.rows, work.metered_j / work.rows)
            for key, work in self._work.items()
            if work.rows
        }
