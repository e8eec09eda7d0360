"""CPU time that control takes in the server's own process, so that it is not counted as the front end's.

The controller and the energy account run on the event loop that serves requests, and the kernel's clock of the process
does not tell them apart.  So each task of control is measured by the clock of its thread while it runs.  These tasks
are the controller's looks and commands, and the work of each second: counting energy, checking workers, sampling for
the dashboard.  Callbacks, tasks that these start by themselves (transitions, a carbon source's request) and work in
threads (writing files) are not measured.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ControlTime:
    """CPU nanoseconds of the coroutines that were `timed`; `clock` reads those of the thread."""

    def __init__(self, clock: Callable[[], int] = time.thread_time_ns) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # programs may run servers in several threads
        self._used_ns = 0

    @property
    def used_ns(self) -> int:
        """What they used so far; of the step that is being taken nothing yet."""
        return self._used_ns

    def timed(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return a coroutine that does what `coroutine` does, and is counted."""
        return _Timed(coroutine, self)

    def step(self, take: Callable[..., T], *arguments: Any) -> T:
        """Return `take(*arguments)`, counted."""
        begun_ns = self._clock()
        try:
            return take(*arguments)
        finally:
            used_ns = self._clock() - begun_ns
            with self._lock:
                self._used_ns += used_ns


class _Timed(Coroutine[Any, Any, T], Generic[T]):
    def __init__(self, coroutine: Coroutine[Any, Any, T], counted: ControlTime) -> None:
        self._coroutine = coroutine
        self._counted = counted

    def send(self, value: Any, /) -> Any:
        return self._counted.step(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        return self._counted.step(self._coroutine.throw, *error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()  # of a task that is counted, or not, as a whole


CONTROL = ControlTime()
"""Of this process."""


def control_task(coroutine: Coroutine[Any, Any, T], *, name: str | None = None) -> asyncio.Task[T]:
    """Run `coroutine` as a task of the running loop whose CPU time is control's."""
    return asyncio.get_running_loop().create_task(CONTROL.timed(coroutine), name=name)
