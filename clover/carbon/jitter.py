"""Random parts of the times at which remote sources are asked: servers that began, or failed, together must not go on
asking a provider together."""

from __future__ import annotations

import random
from collections.abc import Callable

LONGEST_S = 30.0
"""Of a wait of `wait_s` seconds the random part is `wait_s / 4` at most, and no more than this."""
DUE_S = 3.0
"""By how many seconds the question for a new value is put off at most."""
_RANDOM = random.Random()  # not the module's, which a program may have seeded


class Jitter:
    """`draw` gives 0 to 1; `due_s` is by how many seconds the next question for a new value is put off."""

    def __init__(self, draw: Callable[[], float] = _RANDOM.random) -> None:
        self._draw = draw
        self.due_s = 0.0

    def redraw(self) -> None:
        """Choose another `due_s`."""
        self.due_s = DUE_S * self._draw()

    def beyond(self, wait_s: float) -> float:
        """Return how many seconds to wait beyond `wait_s`."""
        return self._draw() * min(LONGEST_S, wait_s / 4.0)


def no_jitter() -> Jitter:
    """Return what puts nothing off: local sources are asked by the clock."""
    return Jitter(lambda: 0.0)
