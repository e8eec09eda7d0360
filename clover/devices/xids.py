"""Watches for critical errors of GPUs (Xid), which the driver reports as events, and says what they mean.

NVML gives an event with the number of the error and, on a GPU that is split, the GPU instance that it concerns.  NVIDIA
documents the numbers (Xid Errors, docs.nvidia.com/deploy/xid-errors).  After some the GPU is of no use until it was
reset, some concern one instance, others only say that a reset is due.

Waiting for an event blocks, so it has a thread and a session of its own: the sessions of a process are counted.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal

from clover.devices import nvml
from clover.types import Record

log = logging.getLogger("clover.devices")

Verdict = Literal["lost", "slice", "suspect"]
"""What an error means: the GPU is lost, an instance is of no use until it was made anew, or a reset is due."""

WAIT_MS = 1000
"""The longest wait for one event, after which the thread checks whether it should end."""

NO_INSTANCE = 0xFFFFFFFF
"""NVML's number of an instance if there is none."""


class Xid(Record, frozen=True, kw_only=True):
    """One kind of error."""

    verdict: Verdict
    text: str


XIDS: Mapping[int, Xid] = {
    46: Xid(verdict="suspect", text="it stopped processing"),
    48: Xid(verdict="slice", text="an uncorrectable memory error"),
    63: Xid(verdict="suspect", text="memory that failed will be replaced by the next reset"),
    64: Xid(verdict="suspect", text="memory that failed could not be replaced"),
    79: Xid(verdict="lost", text="it has fallen off the bus"),
    94: Xid(verdict="slice", text="a memory error that ended the programs it met"),
    95: Xid(verdict="lost", text="a memory error that may have met any program"),
    119: Xid(verdict="lost", text="its firmware (GSP) does not answer"),
    154: Xid(verdict="lost", text="the driver asks for a reset or a reboot"),
}
"""The errors that mean something here, by number; the others are logged."""

_RECOVERY, _RECOVERY_FIELD = 154, 230
_GOES_ON = (0, 3, 4)
"""Values of NVML's field of the recovery action with which programs run on: none (it has recovered), without peers, and
a reset once all have ended.  After a contained memory error the driver asks for the latter."""


def meaning(number: int, gi: int | None) -> Xid | None:
    """Return what error `number` means, of the GPU instance `gi` if that is given; None if nothing follows from it.  An
    error that concerns a slice, on a GPU that is not split, has ended the programs it met: others run as before, and a
    reset is due."""
    xid = XIDS.get(number)
    if xid is not None and xid.verdict == "slice" and gi is None:
        return Xid(verdict="suspect", text=xid.text)
    return xid


class GpuReports:
    """What was reported about one GPU besides its answers: critical errors (Xid), and look-ups of it that failed.
    After some errors the GPU is of no use, even if it still answers (`condemned`).  It is used again once it was gone
    and came back, as after a reset, or by a new start of the server."""

    def __init__(self) -> None:
        self.condemned = False
        self._counts: Counter[str] = Counter()
        self._unknown = 0

    def take(self, number: int, gi: int | None) -> tuple[Verdict | Literal[""], str]:
        """Record error `number`, of the GPU instance `gi` if that is given; return what it means ("" nothing),
        and that in words."""
        xid = meaning(number, gi)
        where = f" of GPU instance {gi}" if gi is not None else ""
        text = f"Xid {number}{where}{f': {xid.text}' if xid is not None else ''}"
        self._counts[text] += 1
        if xid is None:
            return "", text
        self.condemned = self.condemned or xid.verdict == "lost"
        return xid.verdict, f"{text}{'; a reset of the GPU is due' if xid.verdict == 'suspect' else ''}"

    def errors(self) -> list[str]:
        """Return the errors so far in words, each once with how often it came."""
        return [f"{text} ({count} times)" if count > 1 else text for text, count in sorted(self._counts.items())]

    def record_answer(self) -> None:
        """Record that the GPU answers."""
        self._unknown = 0

    def record_loss(self) -> None:
        """Record that the GPU is lost: once it answers again, it is another one, or was reset."""
        self.condemned = False
        self._unknown = 0

    def record_failure(self, *, unknown: bool) -> bool:
        """Record that the GPU did not answer; `unknown`: not even its handle was found.  Return whether it is lost by
        that."""
        self._unknown = self._unknown + 1 if unknown else 0
        return self._unknown >= nvml.LOOK_UPS


OnXid = Callable[[int, int, int | None], None]
"""Called with the number of the GPU, that of the error, and the GPU instance, None for the whole GPU."""


class XidWatch:
    """Waits for errors of the GPUs of these numbers in a thread; `on_xid` is called there.

    Without support for events (in some virtual machines, or of an old driver) nothing is watched, and the log says so.
    """

    def __init__(self, library: Any, indices: tuple[int, ...], on_xid: OnXid) -> None:
        self._nvml = library
        self._indices = indices
        self._on_xid = on_xid
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="clover-xid", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching; the thread ends by itself after `WAIT_MS` at most."""
        self._closing.set()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            self._nvml.nvmlInit()
            try:
                self._watch()
            finally:
                self._nvml.nvmlShutdown()
        except self._nvml.NVMLError as error:
            log.warning("errors of the GPUs (Xid) are not watched: %s", error)

    def _watch(self) -> None:
        events = self._nvml.nvmlEventSetCreate()
        try:
            known = {_address(handle): index for index, handle in self._register(events)}
            while known and not self._closing.is_set():
                self._wait(events, known)
        finally:
            self._nvml.nvmlEventSetFree(events)

    def _register(self, events: Any) -> list[tuple[int, Any]]:
        """Add the GPUs to the set; return those that were added."""
        added = []
        for index in self._indices:
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, events)
            except self._nvml.NVMLError as error:
                log.info("gpu%d: its errors (Xid) are not watched: %s", index, error)
            else:
                added.append((index, handle))
        return added

    def _wait(self, events: Any, known: Mapping[int, int]) -> None:
        try:
            data = self._nvml.nvmlEventSetWait_v2(events, WAIT_MS)
        except self._nvml.NVMLError as error:
            if error.value != nvml.TIMEOUT:
                # A GPU of the set is lost: the others may still report, but this answer comes at once.
                self._closing.wait(WAIT_MS / 1000)
            return
        index = known.get(_address(data.device))
        if index is not None and not self._closing.is_set():
            if data.eventData == _RECOVERY and (asked := self._recovery(data.device)) in _GOES_ON:
                log.warning("gpu%d: Xid 154, and it is used on: recovery action %d", index, asked)
                return
            gi = int(data.gpuInstanceId)
            self._on_xid(index, int(data.eventData), None if gi == NO_INSTANCE else gi)

    def _recovery(self, handle: Any) -> int | None:
        """Return what the driver says that a GPU needs now; None if it does not say."""
        try:
            (field,) = self._nvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_FIELD])
        except self._nvml.NVMLError:
            return None
        return int(field.value.uiVal) if field.nvmlReturn == 0 else None


def _address(handle: Any) -> int:
    """Return what tells handles apart: bindings give a pointer, a new object each time."""
    return handle if isinstance(handle, int) else int(ctypes.cast(handle, ctypes.c_void_p).value or 0)
