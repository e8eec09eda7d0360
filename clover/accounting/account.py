"""The account of a server: its devices and workers, what was attributed to them, and what an answer is billed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from clover.accounting.devices import IDLE, BookKey, ClosedWindow, DeviceAccount, Line
from clover.accounting.feedback import ProfileFeedback
from clover.accounting.host import HostCpu
from clover.accounting.meters import WorkerMeter
from clover.accounting.prices import Prices
from clover.accounting.spans import Spans, Work
from clover.accounting.usage import UsageBook, add_waiting, attribute_active, count_rows, count_waiting
from clover.types import EnergySample, Method, Reading, Receipt, WorkReport

_SECOND_NS = 1_000_000_000
_JOULES_PER_KWH = 3.6e6
_EARLIER = 4.0
"""How many times the rows of a window the rows before it count at most in what a row takes of the front end: a row of a
light load takes several times what one of a heavy load does, and loads change."""
_QUIET = 20


class Account:
    """Attribution over all devices, families and variants of a server.

    `booked` holds every joule and gram once, `usage` rows and active energy by variant, slice and tenant.  Grams
    include the overhead of the data centre, `pue`; a busy core draws `core_w` watts if no profile knows better.
    """

    def __init__(self, *, pue: float, core_w: float = 8.0) -> None:
        self.pue = pue
        self.core_w = core_w
        self.reading: Reading | None = None
        self.host: HostCpu | None = None
        """The CPU times of the machine, whose account is that of the device `host_device`."""
        self.host_device = ""
        self.booked: dict[BookKey, Line] = {}
        """Every joule and gram of the devices once, but for the line `carried`.  No sum ever falls."""
        self.usage: UsageBook = {}
        self.receipts_j: dict[tuple[str, str], float] = {}
        """Joules that receipts say, by (family, tenant); the empty tenant is whoever is none."""
        self._devices: dict[str, DeviceAccount] = {}
        self._meters: list[WorkerMeter] = []
        self._gone: list[WorkerMeter] = []
        self._places: dict[str, set[str]] = {}
        self._kept_j: dict[str, float] = {}
        """By family, idle joules of slices while its workers computed."""
        self._front_end: dict[str, float] = {}
        """By family, joules that a row takes of the front end, as of the last windows."""
        self._front_end_rows: dict[str, float] = {}
        """By family, the rows of which that is known."""
        self._front_end_w: deque[float] = deque(maxlen=_QUIET)
        """What the front end drew in the last windows without an answer: the least of it is no row's."""
        self._looked_up: dict[str, float] = {}
        """By family, joules of finding kept answers in the window under way."""
        self._work: dict[tuple[str, str, Method], Work] = {}
        self._answered: dict[str, int] = {}
        """Rows of each family that were answered since the front end's energy was last split by them."""
        self._waiting: dict[str, int] = {}
        """Those of them that are rows of batch jobs."""
        self._prices = Prices(pue)
        self._spans = Spans()
        self._feedback = ProfileFeedback()
        self._retired_cpu_ns = 0
        self._receipt_method: dict[str, Method] = {}
        """Answers of `method_of` by family, kept until devices or workers change."""
        self._last_j = -1.0
        self._last_accuracy = -1.0
        self._last_variant = ""
        self._last_method: Method = "modelled"
        self._last_reading: Reading | None = None
        self._last_path: tuple[str, ...] = ()
        self._last_receipt: Receipt | None = None

    # --- who is there -------------------------------------------------------------------------------------------------

    def add_device(self, device: str, slices: int, foreign: float = 0.0) -> None:
        """Add a device with `slices` compute slices (including cores that workers may not use), and `foreign` ones that
        its meter covers and that are not the server's; its idle energy is split over all of them.  A known device (a
        GPU that was lost and is back) keeps its account."""
        known = self._devices.setdefault(device, DeviceAccount(slices=1))
        known.slices, known.foreign = max(slices, 1), foreign
        self._forget()

    def add_host(self, device: str, host: HostCpu) -> None:
        """Split the active energy of `device`, the machine, by the CPU times of `host`."""
        self.host_device, self.host = device, host
        for meter in self._meters:
            host.add(meter)

    def add_family(self, family: str, front_end_j: float = 0.0) -> None:
        """Give a family its part of what the front end and control use, from now on.  Until some of its rows were
        answered, each is taken to need `front_end_j` joules of the front end."""
        self._answered.setdefault(family, 0)
        self._front_end[family] = front_end_j

    def attach(self, meter: WorkerMeter) -> WorkerMeter:
        """Record that a worker now holds its slices; return its meter."""
        self._meters.append(meter)
        self._places.setdefault(meter.family, set()).add(meter.device)
        self._forget()
        self._feedback.attach(meter)
        device = self._devices.get(meter.device)
        if device is not None:
            meter.ratio, meter.idle_w = device.ratio_of(meter), device.idle_w_of(meter)
        if self.host is not None:
            self.host.add(meter)
        return meter

    def detach(self, meter: WorkerMeter) -> None:
        """Record that a worker has ended; its work in the window under way still counts."""
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

    def count_answered(self, family: str, rows: int) -> None:
        """Count answered rows, by which the energy of the front end is split."""
        self._answered[family] = self._answered.get(family, 0) + rows

    def count_waiting(self, meter: WorkerMeter, tenant: str, rows: int) -> None:
        """Count rows of batch jobs that a worker answered.  They take the front end as others do."""
        self.count_answered(meter.family, rows)
        self._waiting[meter.family] = self._waiting.get(meter.family, 0) + rows
        count_waiting(self.usage, meter, tenant, rows)

    def close_window(self, sample: EnergySample, reading: Reading, now_ns: int = 0) -> None:
        """Close the window of `sample.device` at `sample.at_ns`.

        `reading` was in force until `now_ns` (default: until the sample).  Energy that comes late is priced at the
        readings of its own time.  The first sample of a device or of an epoch only opens a window; one no newer than
        the last leaves it open.
        """
        self.reading = reading
        self._prices.record(reading, now_ns or sample.at_ns)
        device = self._devices.setdefault(sample.device, DeviceAccount(slices=1))
        host = self.host if sample.device == self.host_device else None
        everywhere = host is not None and not any(meter.device == sample.device for meter in self._meters)
        here = [meter for meter in self._meters if everywhere or meter.device == sample.device]
        gone = [meter for meter in self._gone if meter.device == sample.device]
        count_rows(self.usage, (meter for meter in (*here, *gone) if meter.device == sample.device))
        closed = device.close_window(sample, here, gone, self._prices, host.parts if host is not None else None)
        self._forget()
        if closed is None:
            return
        self._gone = [meter for meter in self._gone if meter.device != sample.device]
        self._retired_cpu_ns += sum(meter.cpu_ns for meter in gone)
        device.retired_busy_ns += sum(meter.busy_ns for meter in gone)
        if host is not None:
            host.close()
        self._attribute(sample, closed)
        self._feedback.record(sample.device, closed)

    def _attribute(self, sample: EnergySample, closed: ClosedWindow) -> None:
        spans, prices = self._spans, closed.prices
        attribute_active(self.usage, sample, closed.active, prices)
        spans.seconds = max(spans.seconds, closed.seconds)
        for meter, part_j in closed.active:
            spans.for_family(meter.family).share.add_active(part_j, prices)
            self._line(sample, "active", meter.family, meter).add(part_j, prices)
        for meter, part_j in closed.audits:
            spans.for_family(meter.family).control.add_active(part_j, prices)
            self._line(sample, "control", meter.family).add(part_j, prices)
        for meter, tenant, part_j in closed.waiting:
            self._line(sample, "waiting", meter.family, meter).add(part_j, prices)
            add_waiting(self.usage, sample, meter, tenant, part_j, prices)
        waiting = [(meter, part_j) for meter, _, part_j in closed.waiting]
        for meter, part_j in (*closed.active, *closed.audits, *waiting):
            if meter.device == sample.device:  # and not what a worker of a GPU uses of its host
                self._work.setdefault((meter.family, meter.variant, sample.method), Work()).metered_j += part_j
        for meter, rows, gone_on, right, expected_j, computed in closed.rows:
            span = spans.for_family(meter.family)
            span.gone_on += gone_on
            span.right += right
            span.rows[meter.variant] = span.rows.get(meter.variant, 0) + rows
            span.methods.add(sample.method)
            work = self._work.setdefault((meter.family, meter.variant, sample.method), Work())
            work.rows += computed
            work.expected_j += expected_j
        for meter, part_j in closed.idle:
            spans.for_family(meter.family).share.add_idle(part_j, prices)
        for meter, line, part_j in closed.idle_lines():
            self._line(sample, line, meter.family, meter).add(part_j, prices)
        for line, part_j in (
            ("unowned", closed.unowned_j),
            ("foreign", closed.foreign_j),
            ("unattributed", closed.unattributed_j),
        ):
            self._line(sample, line).add(part_j, prices)
        for meter, part_j in closed.kept:
            self._kept_j[meter.family] = self._kept_j.get(meter.family, 0.0) + part_j
        spans.add_unowned(sample.device, closed.unowned_j, sum(price.part * price.grams_per_j for price in prices))
        if sample.device == self.host_device:
            self._attribute_overheads(sample, closed)
        for span in spans.families.values():
            span.grids.update(price.method for price in prices)

    def _attribute_overheads(self, sample: EnergySample, closed: ClosedWindow) -> None:
        """Split what the front end and control used over the families by rows answered; evenly, if none were."""
        answered, self._answered = self._answered, dict.fromkeys(self._answered, 0)
        looked_up, self._looked_up = self._looked_up, {}
        waiting, self._waiting = self._waiting, {}
        if not closed.seconds:  # what these rows took is unknown
            return
        if not answered:  # before the first family is served
            self._line(sample, "front_end").add(closed.front_end_j, closed.prices)
            self._line(sample, "control").add(closed.control_j, closed.prices)
        total = sum(answered.values())
        if not total and not looked_up:
            self._front_end_w.append(closed.front_end_j / closed.seconds)
        caused_j = max(closed.front_end_j - min(self._front_end_w, default=0.0) * closed.seconds, 0.0)
        for family, rows in answered.items():
            part = rows / total if total else 1.0 / len(answered)
            span = self._spans.for_family(family)
            live = 1.0 - waiting.get(family, 0) / rows if rows else 1.0
            for line, share, active_j in (
                ("front_end", span.front_end, closed.front_end_j),
                ("control", span.control, closed.control_j),
            ):
                share.add_active(live * part * active_j, closed.prices)
                self._line(sample, line, family).add(part * active_j, closed.prices)
            if rows:
                own_j = max(part * caused_j - looked_up.get(family, 0.0), 0.0)
                earlier = min(self._front_end_rows.get(family, 0.0), _EARLIER * rows)
                own_j += earlier * self._front_end.get(family, 0.0)
                self._front_end[family] = own_j / (earlier + rows)
                self._front_end_rows[family] = earlier + rows

    def count_unmetered(self, device: str, seconds: float) -> None:
        """Count time in which the meter of `device` gave no reading; the device is shown as not metered."""
        account = self._devices.setdefault(device, DeviceAccount(slices=1))
        account.unmetered_s += seconds
        account.frozen = True

    def work_report(self, family: str) -> WorkReport:
        """See `clover.interfaces.Fleet.work_report`."""
        return self._feedback.collect(family, (*self._meters, *self._gone))

    def correct(self, family: str, factors: Mapping[tuple[str, str], float]) -> None:
        """See `clover.interfaces.Fleet.correct_energy`."""
        self._feedback.correct(family, factors, self._meters, self._devices)

    def collect_spans(self) -> Spans:
        """Return the spans of the windows that were closed since the last call."""
        taken, self._spans = self._spans, Spans()
        return taken

    def _line(self, sample: EnergySample, line: str, family: str = "", meter: WorkerMeter | None = None) -> Line:
        variant, placement = (meter.variant, meter.placement) if meter is not None else ("", "")
        return self.booked.setdefault(BookKey(sample.device, line, family, variant, placement, sample.method), Line())

    def by_variant(self, *lines: str) -> dict[tuple[str, str, Method], Line]:
        """Return the joules and grams of `lines` together, by (family, variant, method)."""
        sums: dict[tuple[str, str, Method], Line] = {}
        for key, booked in self.booked.items():
            if key.family and key.line in lines:
                total = sums.setdefault((key.family, key.variant, key.method), Line())
                total.joules += booked.joules
                total.grams += booked.grams
        return sums

    # --- receipts and totals ------------------------------------------------------------------------------------------

    def receipt(
        self,
        family: str,
        variant: str,
        accuracy: float,
        rows: int,
        computed_j: float,
        tenant: str = "",
        path: tuple[str, ...] = (),
    ) -> Receipt:
        """Bill a tenant's `rows` rows with `computed_j` joules (as their workers' meters gave them) and return their
        receipt.  Call it once for each ticket.  Energy includes what rows take of the front end, carbon also the PUE.
        The rows of a batch share one object."""
        energy_j = computed_j + self._front_end.get(family, 0.0) * rows
        key = (family, tenant)
        self.receipts_j[key] = self.receipts_j.get(key, 0.0) + energy_j
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
        self._last_j, self._last_accuracy = energy_j, accuracy
        self._last_variant, self._last_reading, self._last_method, self._last_path = variant, reading, method, path
        self._last_receipt = last = Receipt(
            variant=variant,
            accuracy=accuracy,
            energy_j=energy_j,
            carbon_mg=energy_j / _JOULES_PER_KWH * intensity * self.pue * 1e3,
            intensity_g_per_kwh=intensity,
            method=method,
            intensity_state=reading.state if reading is not None else "unknown",
            intensity=reading,
            pue=self.pue,
            path=path,
        )
        return last

    def bill_lookup(self, family: str, joules: float, tenant: str = "") -> None:
        """Charge the joules of finding a kept answer.  They are part of the front end's, so no row pays them again."""
        self._looked_up[family] = self._looked_up.get(family, 0.0) + joules
        key = (family, tenant)
        self.receipts_j[key] = self.receipts_j.get(key, 0.0) + joules

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
        self._receipt_method.clear()

    def devices(self) -> dict[str, dict[str, float | str]]:
        """Return the lines of each device, by name; `grams_method` is how its grams are known.

        Joules sum up: `measured_j` = active, waiting (rows of batch jobs), front end, control, idle, idle_no_request,
        awake, unowned, foreign, unattributed and carried; so do grams, to `total_g`. `rest_j` is all idle energy, in
        whichever lines. `method` is how the joules are known, `intensity` how the intensities of the grams are. `watts`
        are those of the last window (absent while the meter gives no new reading: `frozen` is 1), `idle_w` those at
        rest, `awake_w` what contexts add on a GPU; `shared` names others that compute on it, for `shared_s` so far;
        `ratio` is measured over modelled energy; `restarts` counts how often the meter began anew. No reading came for
        `unmetered_s`; the energy of `unknown_s` will never be known. Modelled joules may be off by `uncertainty_low` to
        `uncertainty_high` (relative, absent if no range is known), the active ones by `active_uncertainty_low` to
        `active_uncertainty_high`.
        """
        return {name: device.report() for name, device in self._devices.items()}

    def grams(self, device: str) -> dict[str, float]:
        """Return the grams of a device by how the intensity was known."""
        return dict(self._devices[device].total.grids)

    def lines(self) -> Iterator[tuple[str, str, Method, Line]]:
        """Yield device, line, method of the joules, and the line itself; the front end is the machine's."""
        for name, device in self._devices.items():
            for line, sums in device.lines.items():
                if name == self.host_device or line != "front_end":
                    yield name, line, device.method, sums

    def totals(self, family: str | None = None) -> dict[str, float]:
        """Return joules and grams over all variants (of one family), with its part of the front end and of control.
        `energy_j` = `receipts_j` + `idle_no_request_j` + `control_j` + `unbilled_j`.  `unbilled_j` is what the front
        end did while nobody asked, what rows without an answer took, and by how much receipts fell short of the meter;
        it may be negative."""
        by_line: dict[str, list[Line]] = {}
        for key, booked in self.booked.items():
            if key.family and family in (None, key.family):
                by_line.setdefault(key.line, []).append(booked)
        joules = {line: sum(part.joules for part in parts) for line, parts in by_line.items()}
        active_j, idle_j = joules.get("active", 0.0), sum(joules.get(line, 0.0) for line in IDLE)
        waiting_j = joules.get("waiting", 0.0)
        front_end_j, control_j = joules.get("front_end", 0.0), joules.get("control", 0.0)
        receipts_j = sum(joules for (name, _), joules in self.receipts_j.items() if family in (None, name))
        kept_j = sum(joules for name, joules in self._kept_j.items() if family in (None, name))
        return {
            "active_j": active_j,
            "idle_j": idle_j,
            "front_end_j": front_end_j,
            "control_j": control_j,
            "waiting_j": waiting_j,
            "energy_j": active_j + waiting_j + idle_j + front_end_j + control_j,
            "carbon_g": sum(part.grams for parts in by_line.values() for part in parts),
            "receipts_j": receipts_j,
            "idle_no_request_j": idle_j - kept_j,
            "unbilled_j": active_j + waiting_j + kept_j + front_end_j - receipts_j,
        }

    def per_row(self) -> dict[tuple[str, str, Method], tuple[float, float]]:
        """Return expected and metered active joules a row by (family, variant, method), where metered."""
        return {
            key: (work.expected_j / work.rows, work.metered_j / work.rows)
            for key, work in self._work.items()
            if work.rows
        }
