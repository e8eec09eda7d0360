"""Critical errors: what they mean, and the thread that waits for them."""

from __future__ import annotations

import logging
import queue
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from clover.devices import xids
from clover.devices.xids import GpuReports, XidWatch


class Library:
    """Bindings with two GPUs, the second without events.  `events`: what waiting gives, an error by its code."""

    NVMLError = pynvml.NVMLError
    nvmlEventTypeXidCriticalError = 8

    def __init__(self) -> None:
        self.events: queue.Queue[Any] = queue.Queue()
        self.open = 0
        self.sets = 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlEventSetCreate(self) -> str:
        self.sets += 1
        return "set"

    def nvmlEventSetFree(self, events: str) -> None:
        self.sets -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return 100 + index

    def nvmlDeviceRegisterEvents(self, handle: int, kinds: int, events: str) -> None:
        if handle == 101:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlEventSetWait_v2(self, events: str, milliseconds: int) -> Any:
        found = self.events.get(timeout=20)
        if isinstance(found, int):
            raise pynvml.NVMLError(found)
        return found


def event(device: int, number: int, gi: int = xids.NO_INSTANCE) -> Any:
    return SimpleNamespace(device=device, eventData=number, gpuInstanceId=gi)


def test_errors_are_passed_on_with_their_gpu_and_instance(caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    seen: list[Any] = []

    def on_xid(index: int, number: int, gi: int | None) -> None:
        seen.append((index, number, gi))
        if number == 79:
            watch.close()

    watch = XidWatch(library, (0, 1), on_xid)
    for item in (pynvml.NVML_ERROR_TIMEOUT, event(100, 94, 3), event(999, 48), event(100, 79)):
        library.events.put(item)
    with caplog.at_level(logging.INFO):
        watch.start()
        watch.join()
    assert seen == [(0, 94, 3), (0, 79, None)]
    assert (library.open, library.sets) == (0, 0)
    assert "gpu1: its errors (Xid) are not watched: Not Supported" in caplog.text


@pytest.mark.parametrize(
    ("action", "passed_on"),
    [(0, False), (3, False), (4, False), (1, True), (2, True), ("not supported", True), ("unknown field", True)],
)
def test_xid_154_is_a_loss_unless_the_driver_lets_programs_run_on(
    action: int | str, passed_on: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes as well when a GPU has recovered, and after an error that one slice alone met."""
    library = Library()

    def fields(handle: int, asked: list[int]) -> list[Any]:
        assert (handle, asked) == (100, [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
        if action == "not supported":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        known = isinstance(action, int)
        return [SimpleNamespace(nvmlReturn=0 if known else 3, value=SimpleNamespace(uiVal=action if known else 0))]

    library.nvmlDeviceGetFieldValues = fields  # type: ignore[attr-defined]
    seen: list[int] = []

    def on_xid(index: int, number: int, gi: int | None) -> None:
        seen.append(number)
        if number == 31:
            watch.close()

    watch = XidWatch(library, (0,), on_xid)
    for item in (event(100, 154), event(100, 31)):
        library.events.put(item)
    watch.start()
    watch.join()
    assert seen == ([154, 31] if passed_on else [31])
    assert ("Xid 154, and it is used on" in caplog.text) is not passed_on


def test_a_driver_without_events_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    library = Library()
    library.nvmlEventSetCreate = lambda: (_ for _ in ()).throw(pynvml.NVMLError(13))  # type: ignore[method-assign]
    watch = XidWatch(library, (0,), lambda *_: None)
    watch.start()
    watch.join()
    assert "errors of the GPUs (Xid) are not watched" in caplog.text
    assert library.open == 0


@pytest.mark.parametrize(
    ("number", "gi", "verdict"),
    [
        *[(number, gi, "lost") for number in (79, 95, 119, 154) for gi in (None, 2)],
        *[(number, 2, "slice") for number in (48, 94)],
        *[(number, None, "suspect") for number in (46, 48, 63, 64, 94)],
        (31, None, ""),
    ],
)
def test_what_an_error_means(number: int, gi: int | None, verdict: str) -> None:
    reports = GpuReports()
    found, text = reports.take(number, gi)
    assert found == verdict
    assert text.startswith(f"Xid {number}")
    assert ("reset of the GPU is due" in text) is (verdict == "suspect")
    assert reports.condemned is (verdict == "lost")
    reports.record_loss()
    assert not reports.condemned


def test_errors_are_listed_once_each() -> None:
    reports = GpuReports()
    for number in (63, 31, 63):
        reports.take(number, None)
    assert reports.errors() == ["Xid 31", "Xid 63: memory that failed will be replaced by the next reset (2 times)"]


def test_a_gpu_that_stays_unknown_is_lost() -> None:
    reports = GpuReports()
    assert [reports.record_failure(unknown=True) for _ in range(2)] == [False, False]
    reports.record_answer()
    assert [reports.record_failure(unknown=True) for _ in range(2)] == [False, False]
    assert not reports.record_failure(unknown=False)
    assert [reports.record_failure(unknown=True) for _ in range(3)] == [False, False, True]
