"""Calls the driver's management library (NVML) over one session, from a thread for each GPU.

NVML is a blocking C library.  A call usually takes microseconds, but removing an instance takes a second, and under
load a mere listing can take ten.  So nothing of it runs on the event loop.  Every call about one GPU is made by that
GPU's thread, one after the other.  So changes of a GPU never race, and a GPU whose driver hangs holds up no other (the
driver has a lock for each).  Questions about no GPU in particular have one more thread.  The meter of each GPU has its
own, because a change takes seconds (`lane`).  The first call opens the session, once, since that costs more than a
thousand readings; it lives as long as its owner.

The bindings are the unmodified nvidia-ml-py, imported by that first call and not before.  They only ask the system for
`libnvidia-ml.so.1`; whichever library answers to that name is the one that Clover drives.

If NVML refuses, the error is a `DeviceError` that says what to do: `NvmlError` with NVML's own code, for callers that
tell one refusal from another, or `DeviceLost` for a GPU that is gone.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from clover.errors import DeviceError, DeviceLost

T = TypeVar("T")

# NVML's return codes, from nvml.h: part of its binary interface.
INVALID_ARGUMENT = 2
NOT_SUPPORTED = 3
NO_PERMISSION = 4
NOT_FOUND = 6
DRIVER_NOT_LOADED = 9
TIMEOUT = 10
LIBRARY_NOT_FOUND = 12
FUNCTION_NOT_FOUND = 13
GPU_IS_LOST = 15
RESET_REQUIRED = 16
OPERATING_SYSTEM = 17
MISMATCH = 18
IN_USE = 19
INSUFFICIENT_RESOURCES = 23
GPU_NOT_FOUND = 28
UNKNOWN = 999

LOST_CODES = frozenset({GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND})
"""What calls on a lost GPU answer.  The look-up of its handle may also answer UNKNOWN, again and again ("Unable to
determine the device handle" of nvidia-smi)."""

LOOK_UPS = 3
"""How often the look-up of a handle has to answer UNKNOWN until the GPU counts as lost."""

_LOOK_UP_WAIT_S = 0.2

_TEXTS = {
    NOT_SUPPORTED: "this GPU or its driver does not support that: for MIG, it must be turned on (nvidia-smi -mig 1)",
    NO_PERMISSION: (
        "not permitted: changing MIG instances needs root, or access to the driver's capability mig/config; "
        "run as root or hand the capability to this user or container"
    ),
    NOT_FOUND: "the driver knows no such GPU or instance",
    DRIVER_NOT_LOADED: (
        "the NVIDIA driver is not loaded: load it and check with nvidia-smi; in a container, pass the GPUs in"
    ),
    TIMEOUT: "the driver did not answer in time",
    LIBRARY_NOT_FOUND: (
        "there is no libnvidia-ml.so.1 here: install the NVIDIA driver (in a container, pass the GPUs in), or choose "
        "another device: cpu, or an emulated one as emulated:a100-40gb:1"
    ),
    FUNCTION_NOT_FOUND: "the NVIDIA driver is too old for this call: MIG by name and placement needs a newer one",
    OPERATING_SYSTEM: "the operating system blocked the call: see the limits and devices of this container or service",
    MISMATCH: "the NVIDIA driver was upgraded while loaded: reload its modules or reboot",
    IN_USE: "in use: an instance or a process still holds it",
    INSUFFICIENT_RESOURCES: "what stands on the GPU leaves no room for it",
}

LOST = (
    "the GPU is lost (it fell off the bus, its driver gave it up, or it must be reset): stop what runs on it, then "
    "nvidia-smi --gpu-reset, or reboot; the kernel log says why; other devices serve as before"
)


class NvmlError(DeviceError):
    """NVML refused a call; `code` is its return code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def describe_refusal(code: int, text: str = "") -> str:
    """Return a refusal in words that say what to do; `text` is NVML's own, for codes without."""
    return _TEXTS.get(code) or f"the driver refused: {text or 'no reason given'} (NVML code {code})"


class Nvml:
    """One session.  `library` is the bindings, or anything that behaves like them; None imports pynvml.  Everything
    that `call` and `call_sync` run is run in one thread, one after the other, with the session open."""

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._open = False
        self._closed = False
        self._opening = threading.Lock()
        self._lanes: dict[str, _LaneSession] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="clover-nvml")

    def of_gpu(self, index: int) -> Nvml:
        """Return this session with a thread of its own, for what is about GPU number `index`.  Closing either closes
        both."""
        return self.lane(str(index))

    def lane(self, name: str) -> Nvml:
        """Return this session with a thread of its own, for calls that must not wait for those of others (NVML takes
        calls from any thread).  Closing either closes both."""
        if name not in self._lanes:
            self._lanes[name] = _LaneSession(self, name)
        return self._lanes[name]

    @property
    def library(self) -> Any:
        """The bindings.  Raises DeviceError if they are not installed."""
        if self._library is None:
            try:
                self._library = importlib.import_module("pynvml")
            except ImportError as error:
                raise DeviceError("nvidia-ml-py is not installed: pip install nvidia-ml-py") from error
        return self._library

    async def call(self, function: str | Callable[..., T], *arguments: Any) -> T:
        """Return the result of `function(*arguments)`; a string names a function of the bindings.  Raises
        DeviceError."""
        return await asyncio.wrap_future(self._submit(function, arguments))

    def call_sync(self, function: str | Callable[..., T], *arguments: Any) -> T:
        """Call as `call` does and wait: for command lines and starts, never on an event loop that serves."""
        return self._submit(function, arguments).result()

    def close(self) -> None:
        """End the session and the thread, after what was asked before; later calls raise DeviceError."""
        if self._closed:
            return
        self._closed = True
        for session in self._lanes.values():
            session.end()
        self._thread.submit(self._end)
        self._thread.shutdown(wait=True)

    def _submit(self, function: str | Callable[..., T], arguments: tuple[Any, ...]) -> Future[T]:
        if self._closed:
            raise DeviceError("the connection to the NVIDIA driver is closed")
        return self._thread.submit(functools.partial(self._run, function, arguments))

    def _run(self, function: str | Callable[..., T], arguments: tuple[Any, ...]) -> T:
        library = self.library
        try:
            self._begin()
            called: Callable[..., T] = getattr(library, function) if isinstance(function, str) else function
            return called(*arguments)
        except library.NVMLError as error:
            raise _map_error(error) from error
        except getattr(library, "NVMLLibraryMismatchError", ()) as error:
            raise NvmlError(describe_refusal(FUNCTION_NOT_FOUND), FUNCTION_NOT_FOUND) from error

    def _begin(self) -> None:
        with self._opening:
            if not self._open:
                self.library.nvmlInit()
                self._open = True

    def _end(self) -> None:
        if self._open:
            self._open = False
            self._library.nvmlShutdown()


class _LaneSession(Nvml):
    """The session `of` in the thread of one lane."""

    def __init__(self, of: Nvml, name: str) -> None:
        super().__init__()
        self._of = of
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"clover-nvml-{name}")

    @property
    def library(self) -> Any:
        """The bindings.  Raises DeviceError if they are not installed."""
        return self._of.library

    def lane(self, name: str) -> Nvml:
        """Return another lane of the same session, or this one."""
        return self._of.lane(name)

    def close(self) -> None:
        """End the session for all lanes."""
        self._of.close()

    def end(self) -> None:
        """End the thread, after what was asked before."""
        self._closed = True
        self._thread.shutdown(wait=True)

    def _begin(self) -> None:
        self._of._begin()


def _map_error(error: Any) -> DeviceError:
    code = int(getattr(error, "value", 0))
    return DeviceLost(LOST) if code in LOST_CODES else NvmlError(describe_refusal(code, str(error)), code)


def look_up(library: Any, find: Callable[[], T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Return the handle that `find` looks up, in the session's thread.  If the answer is UNKNOWN it is asked again, and
    if it stays UNKNOWN, GPU_IS_LOST is raised."""
    for attempt in range(LOOK_UPS):
        if attempt:
            sleep(_LOOK_UP_WAIT_S)
        try:
            return find()
        except library.NVMLError as error:
            if error.value != UNKNOWN:
                raise
    raise library.NVMLError(GPU_IS_LOST)


class DriverWork:
    """Work with a driver that must not be left half done.  It is finished even if its caller is cancelled, and tried
    again if the driver refuses it as in use.  `back_off_s`: seconds to wait before each further try."""

    def __init__(self, back_off_s: Sequence[float], sleep: Callable[[float], Awaitable[None]]) -> None:
        self._back_off_s = tuple(back_off_s)
        self._sleep = sleep
        self._tasks: set[asyncio.Future[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Finish `work` even if its caller is cancelled."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def wait_for_all(self) -> None:
        """Wait for all work that has begun."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def retry(self, work: Callable[[], Awaitable[T]], *, anything: bool = False) -> T:
        """Return the result of `work`.  It is tried again after each wait if it was refused as in use; with `anything`,
        after any refusal except for want of permission."""
        for wait_s in self._back_off_s:
            try:
                return await work()
            except NvmlError as error:
                if error.code == NO_PERMISSION or not (anything or error.code == IN_USE):
                    raise
            await self._sleep(wait_s)
        return await work()
