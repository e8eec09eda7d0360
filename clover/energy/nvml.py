"""Energy of a GPU through NVML: the counter of the whole board, read between requests and never for one.

What NVML has is one counter a GPU (millijoules since the driver was loaded; it is updated about ten times a second) and
its power.  A MIG slice has neither, so a meter belongs to the GPU, and `clover.accounting` calculates from it what a
slice used.  Windows last a second or more because the resolution of the counter is a tenth of a second.

    counter   total += counter now - counter before.  Exact as long as the counter runs.
    power     only if the counter is not supported:  total += (P0 + P1) / 2 x (t1 - t0)  between two readings.

Three things can happen to a reading, and none may become joules that were not measured:

* The counter cannot be read, or stands still: the sample stays as it is, time included, so that no idle energy is
  counted for a time that was not metered either.  When the counter runs again, it includes the joules of that time.
* The counter goes back (the driver was loaded anew) or leaps further than any GPU could: what was used since the last
  reading is unknown.  The total stays, and the sample's `epoch` is one higher: differences across epochs mean nothing.
* Power cannot be read, or only too late to draw a line between two values: this begins a new epoch, too.

A GPU that is lost keeps its last total, says so (`state`, `why`), and is read again when it is back.

Idle power is `energy.gpu_idle_w`, or if that is not set, what the GPU drew when the meter was made, before there were
workers.  Either way it is lowered to the least average seen over ten seconds since: a GPU cannot idle at more than it
ever drew.  (Windows with work in them draw more, so they need not be excluded.  Shorter windows would be biased: with a
resolution of 0.1 s, a second's average can read a tenth too low, and the least of many does.)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

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

_T = TypeVar("_T")


class NvmlSession(Protocol):
    """Runs NVML calls in the one thread that owns the library."""

    async def call(self, function: Callable[..., _T], /, *arguments: Any) -> _T:
        """Return the result of `function(*arguments)`; raises DeviceError."""


class BlockingSession(Protocol):
    """Runs NVML calls in that thread, and waits for them."""

    def call_sync(self, function: Callable[..., _T], /, *arguments: Any) -> _T:
        """Return the result of `function(*arguments)`; raises DeviceError."""


class MeteredGpu(Protocol):
    """The GPU that is metered: `uuid` is the whole GPU's ("GPU-..."), never a slice's."""

    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> str: ...
    @property
    def emulated(self) -> bool: ...


class Value(NamedTuple):
    """Millijoules or milliwatts, and when they were read."""

    at_ns: int
    number: int
    source: str


class Failure(NamedTuple):
    """NVML gave no value.  "unsupported": this driver, GPU or user will never get one."""

    kind: Literal["lost", "unsupported", "failed"]
    text: str


class Probe:
    """The NVML calls about one GPU.  Its methods run in the NVML thread and raise nothing of NVML's."""

    def __init__(self, uuid: str, clock: Callable[[], int]) -> None:
        self._uuid = uuid
        self._clock = clock
        self._handle: Any = None

    def counter(self) -> Value | Failure:
        """Return millijoules since the driver was loaded."""
        return self._ask(lambda nvml, gpu: (nvml.nvmlDeviceGetTotalEnergyConsumption(gpu), "energy counter"))

    def power(self) -> Value | Failure:
        """Return milliwatts now: the instantaneous field if the GPU has it, or else the plain call (an average)."""
        return self._ask(_power_mw)

    def _ask(self, question: Callable[[Any, Any], tuple[int, str]]) -> Value | Failure:
        import pynvml

        try:
            if self._handle is None:
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(self._uuid)
            number, source = question(pynvml, self._handle)
        except pynvml.NVMLError as error:
            unsupported = (
                pynvml.NVML_ERROR_NOT_SUPPORTED,
                pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                pynvml.NVML_ERROR_NO_PERMISSION,
            )
            lost = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_ERROR_GPU_NOT_FOUND)
            if error.value in unsupported:
                return Failure("unsupported", str(error))
            self._handle = None  # it may be stale: a GPU that comes back has another one
            return Failure("lost" if error.value in lost else "failed", str(error))
        return Value(self._clock(), number, source)


def _power_mw(nvml: Any, gpu: Any) -> tuple[int, str]:
    try:
        field = nvml.nvmlDeviceGetFieldValues(gpu, [nvml.NVML_FI_DEV_POWER_INSTANT])[0]
        if field.nvmlReturn == nvml.NVML_SUCCESS:
            return int(field.value.uiVal), "instantaneous power"
    except nvml.NVMLError as error:
        if error.value not in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            raise
    return int(nvml.nvmlDeviceGetPowerUsage(gpu)), "power"


class FirstReading(NamedTuple):
    """What a meter begins with: a value of its source, the idle power, and why it is these."""

    source: Literal["counter", "power"]
    value: Value
    idle_w: float
    why: str


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
        busy_ns: Callable[[], int] | None,
        patience_s: float,
    ) -> None:
        self.device = gpu.name
        self.method: Method = "emulated" if gpu.emulated else "measured"
        self.source = first.source
        self.state: State = "reading"
        self.idle_w = first.idle_w
        self.epoch = 0
        self.resets = 0
        self.failed_reads = 0
        self.gaps = 0
        self._why = first.why
        self._trouble = ""
        self._nvml = nvml
        self._read = probe.counter if first.source == "counter" else probe.power
        self._pending: asyncio.Future[Value | Failure] | None = None
        self._patience_s = patience_s
        self._total_mj = 0.0
        self._last = first.value
        self._window: tuple[int, float] | None = (first.value.at_ns, 0.0)
        self._hung = _Hung(first.value, busy_ns) if first.source == "power" and busy_ns is not None else None

    @classmethod
    async def start(
        cls,
        nvml: NvmlSession,
        gpu: MeteredGpu,
        *,
        idle_w: float | None = None,
        busy_ns: Callable[[], int] | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        patience_s: float = 2.0,
    ) -> NvmlMeter:
        """Return a meter of `gpu`.  Raises DeviceError if its energy cannot be read at all.

        `idle_w` None: what it draws now, so call this before there are workers.  `busy_ns` returns the time that
        workers of this GPU were busy so far; it shows whether power stays the same whatever they do.  A reading that
        takes longer than `patience_s` is left to the next `refresh`.
        """
        if not gpu.uuid.startswith("GPU-"):
            raise DeviceError(f"{gpu.name}: only a whole GPU has an energy counter, and {gpu.uuid} is none")
        probe = Probe(gpu.uuid, clock)
        counter, power = await nvml.call(probe.counter), await nvml.call(probe.power)
        for answer in (counter, power):
            if isinstance(answer, Failure) and answer.kind != "unsupported":
                raise DeviceError(f"the energy of {gpu.name} cannot be read: {answer.text}")
        source: Literal["counter", "power"] = "counter"
        if isinstance(counter, Value):
            value, why = counter, "NVML energy counter"
        elif isinstance(power, Value):
            value, source = power, "power"
            why = f"NVML {power.source} integrated between looks, since the energy counter gives {counter.text!r}"
            log.warning("%s: %s", gpu.name, why)
        else:
            raise DeviceError(
                f"{gpu.name} shows neither its energy (NVML: {counter.text}) nor its power (NVML: {power.text}): "
                "Clover does not guess a GPU's joules; use a driver that shows them, or workers.device = cpu"
            )
        if idle_w is not None:
            why += f"; idle {idle_w:g} W as configured"
        elif isinstance(power, Value):
            idle_w = power.number / 1e3
            why += f"; idle {idle_w:g} W at start"
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
        first = FirstReading(source, value, idle_w, why)
        return cls(nvml, gpu, probe, first, busy_ns=busy_ns, patience_s=patience_s)

    @property
    def why(self) -> str:
        """What is read, why this, and what is wrong with it now."""
        return f"{self._why}; {self._trouble}" if self._trouble else self._why

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
        )

    async def refresh(self) -> None:
        """Read the GPU.  Failures are counted and logged once, and not raised: the next reading may be better."""
        pending = self._pending
        if pending is None:
            pending = self._pending = asyncio.ensure_future(self._nvml.call(self._read))
            pending.add_done_callback(_seen)  # the server may stop before the next refresh
        await asyncio.wait((pending,), timeout=self._patience_s)
        if not pending.done():
            self._miss("failing", f"NVML has not answered for {self._patience_s:g} s")
            return
        if self._pending is not pending:
            return  # another caller waited for the same reading
        self._pending = None
        try:
            answer = pending.result()
        except DeviceError as error:
            answer = Failure("failed", str(error))
        if isinstance(answer, Failure):
            self.failed_reads += 1
            if answer.kind == "lost":
                self._miss("lost", f"the GPU is lost ({answer.text})")
            else:
                self._miss("failing", f"NVML: {answer.text}")
        elif answer.at_ns > self._last.at_ns:
            self._follow(answer)

    # --- readings -----------------------------------------------------------------------------------------------------

    def _follow(self, answer: Value) -> None:
        if self.source == "counter":
            if answer.number == self._last.number:
                self._window = None
                if answer.at_ns - self._last.at_ns >= STUCK_S * 1e9:
                    self._miss("stuck", f"the energy counter has stood still for {STUCK_S:g} s or more")
                return
            self._count(answer)
        else:
            if self._hung is not None and self._hung.look(answer):
                self._miss("stuck", f"power has read {answer.number / 1e3:g} W whatever the workers did")
                return
            self._integrate(answer)
        if self.state != "reading":
            log.info("%s: energy is read again", self.device)
        self.state, self._trouble = "reading", ""
        self._last = answer
        self._lower_idle(answer.at_ns)

    def _count(self, answer: Value) -> None:
        step_mj = answer.number - self._last.number
        elapsed_s = (answer.at_ns - self._last.at_ns) / 1e9
        if 0 < step_mj <= _MOST_W * 1e3 * (elapsed_s + _GRAIN_S):
            self._total_mj += step_mj
            return
        self.resets += 1
        self._begin_anew()
        how = "went back" if step_mj < 0 else f"leapt by {step_mj / 1e3:.0f} J in {elapsed_s:.1f} s"
        log.warning("%s: the energy counter %s; what was used since the last look is unknown", self.device, how)

    def _integrate(self, answer: Value) -> None:
        elapsed_s = (answer.at_ns - self._last.at_ns) / 1e9
        if self.state not in ("lost", "stuck") and elapsed_s <= LONGEST_STEP_S:
            self._total_mj += (self._last.number + answer.number) / 2 * elapsed_s
            return
        self.gaps += 1
        self._begin_anew()
        log.warning("%s: power was not read for %.1f s; its energy is unknown", self.device, elapsed_s)

    def _begin_anew(self) -> None:
        self.epoch += 1
        self._window = None

    def _miss(self, state: State, trouble: str) -> None:
        if state != self.state:
            log.warning("%s: energy is not read: %s", self.device, trouble)
        self.state, self._trouble = state, trouble
        self._window = None  # an average over a gap says nothing about idle power

    def _lower_idle(self, at_ns: int) -> None:
        if self._window is None:
            self._window = (at_ns, self._total_mj)
            return
        since_ns, since_mj = self._window
        if at_ns - since_ns >= IDLE_WINDOW_S * 1e9:
            self.idle_w = min(self.idle_w, (self._total_mj - since_mj) * 1e6 / (at_ns - since_ns))
            self._window = (at_ns, self._total_mj)


def _seen(look: asyncio.Future[Value | Failure]) -> None:
    if not look.cancelled():
        look.exception()


class _Hung:
    """Distinguishes a sensor that hangs from a GPU that draws steadily: only the former reads the same, to the
    milliwatt, through both rest and work."""

    def __init__(self, first: Value, busy_ns: Callable[[], int]) -> None:
        self._last = first
        self._busy_ns = busy_ns
        self._before_ns = busy_ns()
        self._work_ns = 0
        self._rest_ns = 0

    def look(self, answer: Value) -> bool:
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
