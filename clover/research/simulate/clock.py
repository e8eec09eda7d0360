"""Virtual time: an event loop whose clock leaps to the next timer instead of waiting for it.

The controller sleeps and times out on the loop's clock as it would in a server, and a day takes as long as its
arithmetic.  Nothing else may be waited for: a loop that has neither work nor a timer would hang for ever in a server,
and raises here.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_RESOLUTION_S = 2.0**-20
"""A microsecond.  asyncio calls timers that are due within the clock's resolution, and the machine's, a nanosecond, is
less than the distance of two floats from 2**24 s on: 194 days into a run its timer would be due and never called."""


class _Leap(selectors.SelectSelector):
    """A selector that never blocks: the time that it would have waited passes at once."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("the simulation waits for something that never comes")
        self.now_s += max(0.0, timeout)
        return super().select(0.0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual seconds, from 0."""

    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)
        self._clock_resolution = _RESOLUTION_S

    def time(self) -> float:
        """Return virtual seconds since the loop was made."""
        return self._leap.now_s


def now_s() -> float:
    """Return virtual seconds of the running loop, which the controller takes for the monotonic clock."""
    return asyncio.get_running_loop().time()


def run(story: Coroutine[Any, Any, T]) -> T:
    """Run `story` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story)
