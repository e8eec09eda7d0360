"""What would save most grams on this machine, for `clover doctor` and `clover report`.

The serving planner plans a family twice at its known load: as it is configured, and with one thing changed.  The saving
a day is the difference of the two predictions, which are modelled on the profile.  For cores and GPUs that the load
does not need, the saving is their part of the idle power.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec

from clover.accounting.boundaries import PARTS
from clover.config import ServerConfig
from clover.devices.cpu import CpuDevice
from clover.errors import PlanError
from clover.malformed import MALFORMED
from clover.planning.model.cores import row_of_cores
from clover.planning.model.objective import objective_of
from clover.planning.model.problem import problem_of
from clover.planning.search.best import fewest_cores
from clover.policies.objective import ObjectivePolicy
from clover.quantities import grams, rate
from clover.telemetry.ledger import LedgerReader
from clover.types import DeviceShape, FamilyProfile, ObjectiveConfig, Placement, Prediction, Reading, State

ROOM = 5.0
"""How many times as long an answer may take, in the advice of an SLO with room."""
DAY_S = 86_400.0


@dataclass(frozen=True)
class Advice:
    """Something to change, the setting for it, what it saves a day, and how that is known."""

    text: str
    setting: str
    grams_a_day: float
    how: str

    @property
    def words(self) -> str:
        """The advice as a line."""
        return f"{self.text}: {grams(self.grams_a_day)} a day less ({self.how})"


@dataclass(frozen=True)
class FamilyLoad:
    """A family at `rate` rows a second: the accuracy (percent) that its rows get in the mean, its SLO, and whether
    plans may have cascades and let rows wait.  `idle_g_a_day`: grams of the machine's idle power, `idle_how` how they
    are known; `grams_a_j`: of a joule."""

    profile: FamilyProfile
    rate: float
    slo_ms: float
    accuracy: float
    cascade: bool
    waits: bool
    idle_g_a_day: float
    idle_how: str
    grams_a_j: float

    @property
    def devices(self) -> tuple[DeviceShape, ...]:
        """The cores that the profile's BASE uses, or its GPUs, each as a whole."""
        base, cores = self.profile.base, self.profile.base.profile.removesuffix("c")
        if cores.isdecimal():
            many = int(cores)
            return (
                CpuDevice.from_cores(tuple(range(many if many < 3 else many + 1))).shape(),
            )  # one more is the front end's
        places = [Placement(device=f"gpu{n}", profile=base.profile, start=0, size=1) for n in range(base.count)]
        return tuple(
            DeviceShape(device=place.device, kind="mig", layouts=((place,),), slices=1, overlap=False)
            for place in places
        )

    def state(self) -> State:
        """Return what a plan for it is made from: of the least joules at that accuracy."""
        return State(
            family=self.profile.family,
            grid_s=0.0,
            intensity=Reading(g_per_kwh=1.0, at_s=0.0, provider="none"),
            arrival_rate=self.rate,
            p95_ms=None,
            queue_rows=0,
            objective=ObjectiveConfig(
                form="floor",
                slo_ms=self.slo_ms,
                accuracy_floor=self.accuracy,
                lam=None,
                reference_g_per_kwh=1.0,
                waits=self.waits,
                cascade=self.cascade,
            ),
            profile=self.profile,
            devices=self.devices,
            running=(),
            routing=None,
            resident=len(self.profile.backend),
        )


def advise(load: FamilyLoad) -> list[Advice]:
    """Return what would save most, the most grams first."""
    items = [item for item in _advice(load) if item.grams_a_day > 0.0]
    return sorted(items, key=lambda item: -item.grams_a_day)


def _advice(load: FamilyLoad) -> Iterator[Advice]:
    at = f"{rate(load.rate)} rows/s"
    if (fewer := _fewer(load)) is not None:
        needed, there, kind = fewer
        yield Advice(
            f"{needed} of {there} {kind} would do for {load.profile.family} at {at}",
            f"a machine with {needed}",
            load.idle_g_a_day * (1.0 - needed / there),
            f"the others' part of the idle power, {load.idle_how}",
        )
    now = predicted(load)
    if now is None:
        return
    for text, setting, other in _changes(load):
        then = predicted(other)
        if then is not None:
            spared_g = (now.joules - then.joules) * load.rate * DAY_S * load.grams_a_j
            yield Advice(f"{text}, at the same accuracy", setting, spared_g, f"workers and front end at {at}, modelled")


def _changes(load: FamilyLoad) -> Iterator[tuple[str, str, FamilyLoad]]:
    """Yield what may be changed, in words, by which setting, and the load with that change."""
    roomy = replace(load, slo_ms=ROOM * load.slo_ms, waits=True)
    yield f"an SLO of {roomy.slo_ms:.3g} ms, in which rows may wait", f"--slo-ms {roomy.slo_ms:.3g}", roomy
    if not load.cascade and load.profile.cascade is not None:
        yield "cascades, which are off", "leave out --no-cascade", replace(load, cascade=True)


def predicted(load: FamilyLoad) -> Prediction | None:
    """Return what the best plan for a load does; None if none keeps its targets."""
    try:
        plan = ObjectivePolicy().propose(load.state())
    except PlanError:
        return None
    return plan.prediction if plan.feasible else None


def _fewer(load: FamilyLoad) -> tuple[int, int, str] | None:
    """Return how many devices would do, of how many, and what they are; None if all are needed."""
    state = load.state()
    there = sum(device.slices for device in state.devices)
    try:
        if (row := row_of_cores(state.devices)) is not None:
            least = fewest_cores(problem_of(state), objective_of(state))
            needed = least[0] if least is not None else there
        else:
            parts = (msgspec.structs.replace(state, devices=state.devices[:count]) for count in range(1, there))
            needed = next((len(part.devices) for part in parts if ObjectivePolicy().propose(part).feasible), there)
    except PlanError:
        return None
    return (needed, there, "cores" if row is not None else "GPUs") if needed < there else None


# --- a load that a ledger knows ---------------------------------------------------------------------------------------


def recorded(ledger: LedgerReader, profiles: Iterable[FamilyProfile], start: float, end: float) -> FamilyLoad | None:
    """Return the load of the model that answered most rows from `start` to `end` (Unix seconds), if the profile that it
    was served with is among `profiles`; None if not, and if nothing was answered.  Raises LedgerError."""
    sums, lines = ledger.sums(start, end), ledger.lines(start, end)
    quality = [row for row in ledger.quality(start, end) if row.rows]
    rows: dict[str, int] = defaultdict(int)
    for row in quality:
        rows[row.model] += row.rows
    joules, emitted = sum(row.joules for row in lines), sum(row.grams for row in lines)
    if not rows or joules <= 0.0 or sums.seconds <= 0.0:
        return None
    model = max(rows, key=rows.__getitem__)
    own = [row for row in quality if row.model == model]
    digests = {item.digest for item in ledger.profiles() if item.model == model}
    served = (one for one in profiles if hashlib.sha256(msgspec.json.encode(one)).hexdigest() in digests)
    profile = next(served, None)
    if profile is None or not own[-1].slo_ms:
        return None
    config = _configure(ledger)
    given = any(item.slo_ms is not None for item in config.families if model in (item.name, item.family))
    idle = [row for row in lines if row.line in PARTS["idle power"]]
    return FamilyLoad(
        profile=profile,
        rate=rows[model] / sums.seconds,
        slo_ms=own[-1].slo_ms,
        accuracy=sum(row.accuracy_rows for row in own) / rows[model],
        cascade=config.controller.cascade is not False,
        waits=given if config.controller.waits is None else config.controller.waits,
        idle_g_a_day=sum(row.grams for row in idle) * DAY_S / sums.seconds,
        idle_how=" and ".join(sorted({row.label for row in idle})),
        grams_a_j=emitted / joules,
    )


def _configure(ledger: LedgerReader) -> ServerConfig:
    """Return the newest configuration in a ledger; the default one if it cannot be read."""
    try:
        return msgspec.json.decode(ledger.runs()[-1].configuration, type=ServerConfig)
    except (*MALFORMED, IndexError):
        return ServerConfig()
