"""When a call is tried again.

Inference changes nothing, so a call whose answer was lost may be sent again.  Tried again are: no answer (refused or
broken connections), 429, 502 of a proxy, and 503 if it says when to come back; any other status would come again.

Retry-After is never undercut: a refused request has a place in the server's queue at that time, which it finds by the
request's `x-request-id` (the same for all tries), up to 2 s later.  Without Retry-After pauses double from `first_s`.
Jitter makes pauses longer, by up to half, and by no more than `_JITTER_S` after a Retry-After.  A pause that would end
past the caller's deadline is not begun: the error is raised at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from clover.client.errors import retry_after_s
from clover.client.messages import Reply

_JITTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a call is tried again at most, and how long the first pause is (seconds) if the server names none.
    `uniform(low, high)` draws the jitter."""

    most: int = 3
    first_s: float = 0.1
    longest_s: float = 10.0
    uniform: Callable[[float, float], float] = random.uniform

    def pause_s(self, done: int, reply: Reply, left_s: float) -> float | None:
        """Return the pause before the next try after `done` tries, of which the last was answered with `reply` and
        `left_s` seconds before the deadline; None to give up."""
        after_s = retry_after_s(reply)
        if done > self.most or reply.late:
            return None
        if reply.status not in (0, 429, 502) and not (reply.status == 503 and after_s is not None):
            return None
        if after_s is not None:
            pause_s = after_s + self.uniform(0.0, min(_JITTER_S, 0.5 * after_s))
        else:
            pause_s = min(self.first_s * 2.0 ** (done - 1), self.longest_s) * self.uniform(1.0, 1.5)
        return pause_s if pause_s < left_s else None
