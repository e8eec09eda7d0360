"""Energy of a GPU through NVML: the counter of the whole board, read between requests and never for one.

NVML has one counter a GPU (millijoules since the driver was loaded, updated about ten times a second) and its power.  A
MIG slice has neither, so a meter belongs to the GPU, and `clover.accounting` calculates what a slice used.  Windows
last a second or more because the resolution of the counter is a tenth of a second.  While our work runs, a reading
waits for the counter to move, so that the reading is new.  If readings were up to a tenth of a second old, windows of a
second would differ by more than what ran in them (`planning.model.metered`).

    counter   total += counter now - counter before.  Exact as long as the counter runs.
    power     only if the counter is not supported:  total += (P0 + P1) / 2 x (t1 - t0)  between two readings.

Three things can happen to a reading, and none may become joules that were not measured:

* The counter cannot be read, or stands still.  The sample stays as it is, time included, so that the unmetered time
  gets no idle energy either.  When the counter runs again, it includes the joules of the unmetered time.
* The counter goes back (the driver was loaded anew) or leaps further than any GPU could.  What was used since the last
  reading is unknown.  The total stays, and the sample's `epoch` is one higher: differences across epochs mean nothing.
* Power cannot be read, or only too late to draw a line between two values.  This begins a new epoch, too.

A GPU that is lost keeps its last total, says so (`state`, `why`), and is read again when it is back.

**Idle power** is known of a bare GPU, and of a GPU with a context (`clover.energy.board_idle`).  Both are lowered to
the least average seen over ten seconds: a GPU cannot idle at more than it ever drew.  (Windows with work in them draw
more, so they need not be excluded.  Shorter windows would be biased: with a resolution of 0.1 s, a second's average can
read a tenth too low, and the least of many does.)  `awake_j` of a sample is what being awake cost, in joules, beyond
bare idle power.

**Others.**  The counter is that of the whole GPU.  If processes that are not ours compute on it, or may do so, samples
name them (`shared`): how much of the energy is theirs is unknown.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from clover.energy.board_idle import SETTLE_S, BoardIdle
from clover.energy.foreign_work import ForeignWork, OurWork
from clover.energy.gpu_probe import BoardLook, Failure, MeteredGpu, NvmlSession, Probe, Value
from clover.errors import DeviceError
from clover.types import EnergySample, Method

log = logging.getLogger("clover.energy")

State = Literal["reading", "failing", "stuck", "lost"]

LONGEST_STEP_S = 10.0
"""Energy is not integrated between two readings of power that are further apart."""
IDLE_WINDOW_S = 10.0
STUCK_S = 10.0
_MOST_W = 5000.0  # more than any GPU draws
_GRAIN_S = 1.0  # allowed for the counter's own update interval when a leap is judged
_FIRST_LOOK_S = 2.0
_START_LOOKS, _START_STEP_S = 13, 0.25
"""Looks at the power of a GPU at rest: over three seconds, since the driver's own waking up is in the first."""

Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class IdleSettings:
    """Watts of a GPU that the operator sets: bare, and with a context.  None: they are measured."""

    bare_w: float | None = None
    resident_w: float | None = None


_MEASURED = IdleSettings()


class FirstReading(NamedTuple):
    """What a meter begins with: a value of its source, the idle power, and why it is these."""

    source: Literal["counter", "power"]
    value: Value
    idle: BoardIdle
    why: str


class GpuUnmetered(DeviceError):
    """The GPU shows neither its energy nor its power."""


class NvmlMeter:
    """Joules of one GPU since the meter was made.  `start` makes one; `refresh` reads the GPU, `sample` does not.

    `source` is "counter" or "power"; `state` is "reading", "failing" (no answer), "stuck" (the same answer for too
    long) or "lost".  Counted are `resets` (of the counter), `failed_reads` and `gaps` (over which power was not
    integrated).
    """

    def __init__(
        self,
        nvml: NvmlSession,
        gpu: MeteredGpu,
        probe: Probe,
        first: FirstReading,
        *,
        work: OurWork | None,
        patience_s: float,
    ) -> None:
        self.device = gpu.name
        self.method: Method = "emulated" if gpu.emulated else "measured"
        self.source = first.source
        self.state: State = "reading"
        self.idle = first.idle
        self.epoch = 0
        self.resets = 0
        self.failed_reads = 0
        self.gaps = 0
        self._why = first.why
        self._trouble = ""
        self._nvml = nvml
        self._probe = probe
        self._pending: asyncio.Future[BoardLook] | None = None
        self._patience_s = patience_s
        self._total_mj = 0.0
        self._last = first.value
        self._awake_mj = 0.0
        self._work = work
        self._busy_ns = work.busy_ns() if work is not None else 0
        self._foreign = ForeignWork(gpu.name, work)
        self._closely = work is not None
        self._window: tuple[int, float] | None = (first.value.at_ns, 0.0)
        self._awake_in_window: set[bool] = set()
        self._hung = _Hung(first.value, work.busy_ns) if first.source == "power" and work is not None else None

    @classmethod
    async def start(
        cls,
        nvml: NvmlSession,
        gpu: MeteredGpu,
        *,
        idle: IdleSettings = _MEASURED,
        work: OurWork | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Sleep = asyncio.sleep,
        pause: Callable[[float], None] = time.sleep,
        patience_s: float = 2.0,
    ) -> NvmlMeter:
        """Return a meter of `gpu`.  Raises GpuUnmetered if the GPU shows neither energy nor power, DeviceError if it
        cannot be read.  Unless `idle` sets bare power, it is what the GPU draws now: call this before there are
        workers.  `work` is what the server does on this GPU; without `work` no time counts as rest.  `pause` holds the
        session's thread between two readings of the counter.  If a reading takes longer than `patience_s`, it is left
        to the next `refresh`."""
        if not gpu.uuid.startswith("GPU-"):
            raise DeviceError(f"{gpu.name}: only a whole GPU has an energy counter, and {gpu.uuid} is none")
        probe = Probe(gpu.uuid, clock, pause)
        counter, power = await nvml.call(probe.counter), await nvml.call(probe.power)
        for answer in (counter, power):
            if isinstance(answer, Failure) and answer.kind != "unsupported":
                raise DeviceError(f"the energy of {gpu.name} cannot be read: {answer.text}")
        source: Literal["counter", "power"] = "counter"
        if isinstance(counter, Value):
            value, why = counter, "NVML energy counter"
        elif isinstance(power, Value):
            value, source = power, "power"
            why = f"NVML {power.source} integrated between readings, since the energy counter gives {counter.text!r}"
            log.warning("%s: %s", gpu.name, why)
        else:
            raise GpuUnmetered(
                f"{gpu.name} shows neither its energy (NVML: {counter.text}) nor its power (NVML: {power.text}): use a "
                'driver that shows them, energy.gpu_meter = "modelled", or workers.device = cpu'
            )
        if idle.bare_w is not None:
            idle_w = idle.bare_w
            why += f"; idle {idle_w:g} W as configured"
        elif isinstance(power, Value):
            idle_w = await _at_rest(nvml, probe, power, sleep, 1 if gpu.emulated else _START_LOOKS)
            why += f"; idle {idle_w:g} W at start"
            if isinstance(counter, Value):
                counter = await nvml.call(probe.counter)
                value = counter if isinstance(counter, Value) else value
        else:
            await sleep(_FIRST_LOOK_S)
            later = await nvml.call(probe.counter)
            if isinstance(later, Failure) or not value.number < later.number or not value.at_ns < later.at_ns:
                raise DeviceError(
                    f"{gpu.name} shows no power (NVML: {power.text}) and its energy counter stands still, so that its "
                    "idle power is unknown: set energy.gpu_idle_w"
                )
            idle_w = (later.number - value.number) * 1e6 / (later.at_ns - value.at_ns)
            why += f"; idle {idle_w:.1f} W over the first {_FIRST_LOOK_S:g} s"
        known = BoardIdle(idle_w, bare_by="start" if idle.bare_w is None else "configured", resident_w=idle.resident_w)
        return cls(nvml, gpu, probe, FirstReading(source, value, known, why), work=work, patience_s=patience_s)

    @property
    def why(self) -> str:
        """What is read, why this, and what is wrong with it now."""
        return "; ".join(filter(None, (self._why, self.idle.why, self._foreign.why, self._trouble)))

    @property
    def idle_w(self) -> float:
        """Watts at rest without a context."""
        return self.idle.bare_w

    @property
    def kept_awake(self) -> bool:
        """Whether others were on the GPU at the last reading: it does not fall asleep without our contexts."""
        return bool(self._foreign.pids or self._foreign.names)

    @property
    def lost(self) -> bool:
        """Whether the GPU was gone at the last reading."""
        return self.state == "lost"

    def sample(self, now_ns: int) -> EnergySample:
        """Return what the last good reading found; its time is that of the reading, not `now_ns`."""
        return EnergySample(
            device=self.device,
            at_ns=self._last.at_ns,
            total_j=self._total_mj / 1e3,
            idle_w=self.idle_w,
            method=self.method,
            epoch=self.epoch,
            awake_w=self.idle.awake_w,
            awake_j=self._awake_mj / 1e3,
            shared=self._foreign.names,
            strangers=self.kept_awake,
        )

    async def measure_resident(self, sleep: Sleep = asyncio.sleep) -> None:
        """Measure idle power with a context on the GPU: call it while a worker is there and nothing is asked of it.

        It takes six seconds; an emulated GPU needs one reading.  Nothing happens if the watts are configured, or if the
        GPU shows no power.
        """
        if self.idle.resident_by == "configured":
            return
        if self.method != "emulated":
            await sleep(SETTLE_S)
        power = await self._nvml.call(self._probe.power)
        if isinstance(power, Value):
            looks = 1 if self.method == "emulated" else _START_LOOKS
            self.idle.set_resident(await _at_rest(self._nvml, self._probe, power, sleep, looks))

    async def refresh(self) -> None:
        """Read the GPU.  Failures are counted and logged once, and not raised: the next reading may be better."""
        pending = self._pending
        if pending is None:
            pending = self._pending = asyncio.ensure_future(self._nvml.call(self._poll))
            pending.add_done_callback(_consume)  # the server may stop before the next refresh
        await asyncio.wait((pending,), timeout=self._patience_s)
        if not pending.done():
            self._miss("failing", f"NVML has not answered for {self._patience_s:g} s")
            return
        if self._pending is not pending:
            return  # another caller waited for the same reading
        self._pending = None
        try:
            look = pending.result()
        except DeviceError as error:
            look = BoardLook(Failure("failed", str(error)), None, None, None)
        answer = look.answer
        if isinstance(answer, Failure):
            self.failed_reads += 1
            if answer.kind == "lost":
                self._miss("lost", f"the GPU is lost ({answer.text})")
            else:
                self._miss("failing", f"NVML: {answer.text}")
        elif answer.at_ns > self._last.at_ns:
            self._follow(answer, look)

    def _poll(self) -> BoardLook:
        """Read the GPU; runs in the NVML thread."""
        at_tick = self._work is not None and not self._closely
        return self._probe.poll(self.source, closely=self._closely, at_tick=at_tick)

    # --- readings -----------------------------------------------------------------------------------------------------

    def _follow(self, answer: Value, look: BoardLook) -> None:
        before = self._last
        if self.source == "counter":
            if answer.number == self._last.number:
                self._window = None
                if answer.at_ns - self._last.at_ns >= STUCK_S * 1e9:
                    self._miss("stuck", f"the energy counter has stood still for {STUCK_S:g} s or more")
                return
            self._count(answer)
        else:
            if self._hung is not None and self._hung.observe(answer):
                self._miss("stuck", f"power has read {answer.number / 1e3:g} W whatever the workers did")
                return
            self._integrate(answer)
        if self.state != "reading":
            log.info("%s: energy is read again", self.device)
        self.state, self._trouble = "reading", ""
        self._last = answer
        self._rest(before, look)
        self._close_window(answer.at_ns)

    def _rest(self, before: Value, look: BoardLook) -> None:
        """Record whether the GPU was awake since `before`, by whom, and what it draws if nobody works."""
        at_ns, idle = self._last.at_ns, self.idle
        seconds = (at_ns - before.at_ns) / 1e9
        workers = self._work.workers() if self._work is not None else frozenset()
        was_w, idle.awake = idle.awake_w, bool(look.pids or workers)
        self._awake_mj += (was_w + idle.awake_w) / 2 * seconds * 1e3
        self._awake_in_window.add(idle.awake)
        self._foreign.observe(look.pids, look.busy)
        if self._work is None:
            return
        busy_ns = self._work.busy_ns()
        worked_ns, self._busy_ns = busy_ns - self._busy_ns, busy_ns
        self._closely = worked_ns <= 0 or bool(self._foreign.pids)
        if worked_ns > 0:
            idle.record_work(at_ns, worked_ns)
        elif self._foreign.names or (look.pids is None and not idle.awake) or self._loading(look.pids, workers):
            idle.record_disturbance()
        else:
            watts = look.watts
            if watts is None and self.source == "counter":
                watts = (self._last.number - before.number) / seconds / 1e3
            if watts is not None and watts >= 0.0:
                idle.observe(at_ns, watts, (look.pids, workers))

    def _count(self, answer: Value) -> None:
        step_mj = answer.number - self._last.number
        elapsed_s = (answer.at_ns - self._last.at_ns) / 1e9
        if 0 < step_mj <= _MOST_W * 1e3 * (elapsed_s + _GRAIN_S):
            self._total_mj += step_mj
            return
        self.resets += 1
        self._begin_anew()
        how = "went back" if step_mj < 0 else f"leapt by {step_mj / 1e3:.0f} J in {elapsed_s:.1f} s"
        log.warning("%s: the energy counter %s; what was used since the last reading is unknown", self.device, how)

    def _integrate(self, answer: Value) -> None:
        elapsed_s = (answer.at_ns - self._last.at_ns) / 1e9
        if self.state not in ("lost", "stuck") and elapsed_s <= LONGEST_STEP_S:
            self._total_mj += (self._last.number + answer.number) / 2 * elapsed_s
            return
        self.gaps += 1
        self._begin_anew()
        log.warning("%s: the energy of %.1f s is unknown: power was not read", self.device, elapsed_s)

    def _begin_anew(self) -> None:
        self.epoch += 1
        self._window = None

    def _miss(self, state: State, trouble: str) -> None:
        if state != self.state:
            log.warning("%s: energy is not read: %s", self.device, trouble)
        self.state, self._trouble = state, trouble
        self._window = None  # an average over a gap says nothing about idle power
        self.idle.record_disturbance()

    def _loading(self, pids: tuple[int, ...] | None, ready: frozenset[int]) -> bool:
        """Return whether a process of ours is on the GPU that is no worker yet: what it does is counted nowhere."""
        work = self._work
        return work is not None and any(pid not in ready and work.owns(pid) for pid in pids or ())

    def _close_window(self, at_ns: int) -> None:
        """Count the average of ten seconds once they are over: idle power is not above it."""
        if self._window is not None:
            since_ns, since_mj = self._window
            if at_ns - since_ns < IDLE_WINDOW_S * 1e9:
                return
            awake = self._awake_in_window.pop() if len(self._awake_in_window) == 1 else None
            self.idle.record_window(awake, (self._total_mj - since_mj) * 1e6 / (at_ns - since_ns))
        self._window = (at_ns, self._total_mj)
        self._awake_in_window.clear()


async def _at_rest(nvml: NvmlSession, probe: Probe, first: Value, sleep: Sleep, looks: int) -> float:
    """Return the median watts of `looks` readings of a GPU at rest, the `first` of them included if there is no
    other."""
    watts = []
    for _ in range(looks - 1):
        await sleep(_START_STEP_S)
        power = await nvml.call(probe.power)
        if isinstance(power, Value):
            watts.append(power.number / 1e3)
    return statistics.median(watts or [first.number / 1e3])


def _consume(look: asyncio.Future[BoardLook]) -> None:
    if not look.cancelled():
        look.exception()


class _Hung:
    """Distinguishes a sensor that hangs from a GPU that draws steadily: only a hung sensor reads the same, to the
    milliwatt, through both rest and work."""

    def __init__(self, first: Value, busy_ns: Callable[[], int]) -> None:
        self._last = first
        self._busy_ns = busy_ns
        self._before_ns = busy_ns()
        self._work_ns = 0
        self._rest_ns = 0

    def observe(self, answer: Value) -> bool:
        """Return whether the value has been the same through `STUCK_S` / 2 of rest and as much of work."""
        before, self._last = self._last, answer
        busy_ns = self._busy_ns()
        worked_ns, self._before_ns = busy_ns - self._before_ns, busy_ns
        if answer.number != before.number:
            self._work_ns = self._rest_ns = 0
            return False
        elapsed_ns = answer.at_ns - before.at_ns
        if worked_ns > 0:
            self._work_ns += min(worked_ns, elapsed_ns)
        else:
            self._rest_ns += elapsed_ns
        return min(self._work_ns, self._rest_ns) >= STUCK_S / 2 * 1e9
