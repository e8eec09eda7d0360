"""Questions to NVML about one GPU: its counter, its power, who is on it and how busy.

The methods of `Probe` run in the thread that owns the library and raise nothing of NVML's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

_T = TypeVar("_T")

_STEP_S, _STEPS = 0.005, 24
"""Between two readings of the counter, and how many there are at most: ticks are a tenth of a second apart."""

Source = Literal["counter", "power", "utilisation"]


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


def counted_others(gpu: MeteredGpu) -> int:
    """Return how many slices of `gpu` are not this server's although their work is in the GPU's one counter.  Of an
    emulated GPU it is none: only this server's work is in its counter."""
    return 0 if gpu.emulated else int(getattr(gpu, "others", 0))


class Value(NamedTuple):
    """Millijoules, milliwatts or percent, and when they were read."""

    at_ns: int
    number: int
    source: str


class Failure(NamedTuple):
    """NVML gave no value.  "unsupported": this driver, GPU or user will never get one."""

    kind: Literal["lost", "unsupported", "failed"]
    text: str


class BoardLook(NamedTuple):
    """One reading of a GPU.  `watts`: its power; `pids`: who computes on it; `busy`: by process, the part of the GPU
    that it kept busy lately (empty if it was not asked).  None: NVML does not say."""

    answer: Value | Failure
    watts: float | None
    pids: tuple[int, ...] | None
    busy: Mapping[int, float] | None


class Probe:
    """Asks about the GPU `uuid`; `clock` dates the answers, `pause` waits for a tick of the counter."""

    def __init__(self, uuid: str, clock: Callable[[], int], pause: Callable[[float], None] = time.sleep) -> None:
        self._uuid = uuid
        self._clock = clock
        self._pause = pause
        self._handle: Any = None
        self._busy_since_us = 0

    def counter(self) -> Value | Failure:
        """Return millijoules since the driver was loaded."""
        return self._ask(lambda nvml, gpu: (nvml.nvmlDeviceGetTotalEnergyConsumption(gpu), "energy counter"))

    def wait_tick(self) -> Value | Failure:
        """Return what the counter shows as soon as it has moved.  If it does not move within `_STEPS` readings (0.12
        s), return what it shows."""
        first = self.counter()
        if isinstance(first, Failure):
            return first
        for _ in range(_STEPS):
            self._pause(_STEP_S)
            answer = self.counter()
            if isinstance(answer, Failure):
                return first
            if answer.number != first.number:
                return answer
        return answer

    def power(self) -> Value | Failure:
        """Return milliwatts now: the instantaneous field if the GPU has it, or else the plain call (an average)."""
        return self._ask(_power_mw)

    def utilisation(self) -> Value | Failure:
        """Return the percent of the last moments in which anything ran on the GPU."""
        return self._ask(lambda nvml, gpu: (int(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu), "utilisation"))

    def now_ns(self) -> int:
        """Return the time by the clock that dates answers."""
        return self._clock()

    def limit_w(self) -> float | None:
        """Return the power limit in force, in watts; None if NVML does not say."""
        limit = self._ask(lambda nvml, gpu: (int(nvml.nvmlDeviceGetEnforcedPowerLimit(gpu)), "limit"))
        return limit.number / 1e3 if isinstance(limit, Value) else None

    def product(self) -> str:
        """Return the name of the product; the empty string if NVML does not say."""
        name = self._ask_or_none(lambda nvml, gpu: nvml.nvmlDeviceGetName(gpu))
        return name.decode() if isinstance(name, bytes) else str(name or "")

    def poll(self, source: Source, *, closely: bool, at_tick: bool = False) -> BoardLook:
        """Return the reading of `source`, and who is on the GPU.  `closely`: also its power and how busy each process
        is; `at_tick`: wait until a counter moves."""
        counter = self.wait_tick if at_tick else self.counter
        answer = {"counter": counter, "power": self.power, "utilisation": self.utilisation}[source]()
        if isinstance(answer, Failure):
            return BoardLook(answer, None, None, None)
        power = answer if source == "power" else self.power() if closely else None
        watts = power.number / 1e3 if isinstance(power, Value) else None
        return BoardLook(answer, watts, self.pids(), self.busy() if closely else {})

    def pids(self) -> tuple[int, ...] | None:
        """Return the processes that have a context on the GPU or on one of its instances; None if NVML does not say."""
        processes = self._ask_or_none(lambda nvml, gpu: nvml.nvmlDeviceGetComputeRunningProcesses(gpu))
        return None if processes is None else tuple(int(item.pid) for item in processes)

    def busy(self) -> dict[int, float] | None:
        """Return the part of the GPU that each process kept busy since this was last asked; None if NVML does not say,
        as with MIG on."""
        import pynvml

        try:
            samples = self._ask_or_raise(
                lambda nvml, gpu: nvml.nvmlDeviceGetProcessUtilization(gpu, self._busy_since_us), pynvml
            )
        except pynvml.NVMLError as error:
            return {} if error.value in (pynvml.NVML_ERROR_NOT_FOUND, pynvml.NVML_SUCCESS) else None
        parts: dict[int, float] = {}
        for item in samples:
            self._busy_since_us = max(self._busy_since_us, int(item.timeStamp))
            parts[int(item.pid)] = max(parts.get(int(item.pid), 0.0), int(item.smUtil) / 100.0)
        return parts

    def _ask_or_raise(self, question: Callable[[Any, Any], Any], nvml: Any) -> Any:
        if self._handle is None:
            self._handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        return question(nvml, self._handle)

    def _ask_or_none(self, question: Callable[[Any, Any], Any]) -> Any:
        """Return the answer to a question that is good to know; None if there is no answer."""
        import pynvml

        try:
            return self._ask_or_raise(question, pynvml)
        except pynvml.NVMLError:
            return None

    def _ask(self, question: Callable[[Any, Any], tuple[int, str]]) -> Value | Failure:
        import pynvml

        try:
            number, source = self._ask_or_raise(question, pynvml)
        except pynvml.NVMLError as error:
            unsupported = (
                pynvml.NVML_ERROR_NOT_SUPPORTED,
                pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
                pynvml.NVML_ERROR_NO_PERMISSION,
            )
            if error.value in unsupported:
                return Failure("unsupported", str(error))
            self._handle = None  # it may be stale: a GPU that comes back has another one
            return Failure("lost" if error.value in _lost(pynvml) else "failed", str(error))
        return Value(self._clock(), number, source)


def _lost(nvml: Any) -> tuple[int, ...]:
    return (
        nvml.NVML_ERROR_GPU_IS_LOST,
        nvml.NVML_ERROR_RESET_REQUIRED,
        nvml.NVML_ERROR_NOT_FOUND,
        nvml.NVML_ERROR_GPU_NOT_FOUND,
    )


def _power_mw(nvml: Any, gpu: Any) -> tuple[int, str]:
    try:
        field = nvml.nvmlDeviceGetFieldValues(gpu, [nvml.NVML_FI_DEV_POWER_INSTANT])[0]
        if field.nvmlReturn == nvml.NVML_SUCCESS:
            return int(field.value.uiVal), "instantaneous power"
    except nvml.NVMLError as error:
        # A driver that does not know the field may say so in any words.
        if error.value in _lost(nvml):
            raise
    return int(nvml.nvmlDeviceGetPowerUsage(gpu)), "power"
