"""When refused clients should come back, and the room that is kept for them until then.

A Retry-After that only says how long the queue is does not hold: a client that comes back meets all requests that have
come since.  So each refusal books a *place*: the first time at which earlier places leave enough capacity for the
request's rows.  `Retry-After` is the time until then.  At that time the request goes before new ones (`Admission`),
which meanwhile find only half as much room in the queue.

A request that comes back is known by the `x-request-id` that its client gave, or by its connection if it gave none.  A
place holds from `_EARLY_NS` before its time to `_LATE_S` after it.  Later it is worth nothing: its capacity has served
others.

Retry-After is in whole seconds, so a place lies a whole number of seconds after the refusal.  Clients that were refused
within one second would all come back within another one.  Places are booked in bins of `BIN_NS`, which spreads the
clients evenly.  If many are refused in one instant, as many of them come back together as the queue holds (`together`).

`_BOOKED` of the capacity is booked; the rest evens out how irregularly clients come.  If lately not all of the booked
rows came, more are booked.

Requests for which a worker had no memory come back by other rules (`MemoryRefusals`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from clover.runtime.memory.rows import InputDigests

SECOND_NS = 1_000_000_000
HORIZON_S = 600
"""Places are booked so far ahead at most."""
BIN_NS = 20_000_000
_BINS = SECOND_NS // BIN_NS
_BOOKED = 0.7
_EARLY_NS = 50_000_000
_LATE_S = 2
_LEAST_SHARE = 0.7
"""Of the booked rows, at least so many are expected to come: no more than the whole capacity is booked."""
_MOST = 1024
_MOST_EMBEDDED = 64
"""Places that one connection may have for requests with an id, and the callers in this process together."""
_MOST_PLACES = 250_000
"""Places of all connections: some 60 MB."""
WAITS_S = (1.0, 4.0)
"""When a request shall come back after its first refusal for want of memory, and after its second; the next is its
last."""
_KEPT_NS = 60_000_000_000
_MOST_KEPT = 1024
"""So many requests are remembered, those that were refused last."""


class Place:
    """The room booked for `rows` rows of a connection (`flow`) at `due_ns`; `key` says who may use it.  `refused`: how
    often in a row its request was, this time included; 1 if the request has no name, since whatever comes next on its
    connection, which several clients may share, uses the place."""

    __slots__ = ("came", "due_ns", "flow", "key", "refused", "rows")

    def __init__(self, key: int, flow: int, rows: int, due_ns: int, refused: int) -> None:
        self.key = key
        self.flow = flow
        self.rows = rows
        self.due_ns = due_ns
        self.refused = refused
        self.came = False


class RetryBook:
    """The places of one family.  `served` returns the rows served so far; `capacity` estimates the rows a second that
    can be served, 0 if that is not known.

    `places` has those that were not used yet, by key; it is empty while nobody was refused lately.  `together`: so many
    bins' worth of rows may come at once."""

    def __init__(self, served: Callable[[], int], capacity: Callable[[int], float]) -> None:
        self.places: dict[int, list[Place]] = {}
        self.together = 1
        self._served = served
        self._capacity = capacity
        self._of_flow: dict[int, int] = {}
        self._kept = 0  # places in `places`
        self._seconds: dict[int, list[Place]] = {}
        self._rows: dict[int, float] = {}  # booked rows by bin
        self._next = [0] * _BINS  # by position within a second: the first bin at which a place may begin
        self._full = [0] * _BINS  # and the first one from there on that may have room, while a bin has `_room`
        self._room = 0.0
        self._last_ns = 0  # when the latest place is
        self._second_ns = SECOND_NS  # read with each request: an attribute has its C type
        self._second = -1
        self._expecting = False  # whether a place falls due within `_second`
        self._begun_ns = 0  # when `_second` was entered, and the rows served until then
        self._rows_before = 0
        self._refused_in = -1  # the second of the last refusal
        self._share = 1.0  # of booked rows, how many came lately
        self._rate = 0.0

    def book(self, request: int, flow: int, rows: int, now_ns: int, before: int = 0) -> int:
        """Return the seconds after which `rows` rows of `flow` shall come back (at least 1), and keep room for them
        then.  `request` names the request; 0 or less if its client did not, and then its connection has one place.  It
        was refused `before` so many times, each time that it came when it had been asked to, which counts if it has a
        name.  No room is kept if one connection, or all of them, have too many places, or beyond the horizon."""
        self._advance(now_ns)
        self._refused_in = self._second
        if self._rate <= 0.0:
            return 1  # nothing was served yet that would tell
        if request or flow:
            for place in self.places.get(request or flow, ()):
                if place.due_ns > now_ns:  # it came too early
                    return -(-(place.due_ns - now_ns) // SECOND_NS)
        held = self._of_flow.get(flow, 0)
        if held >= (_MOST if flow else _MOST_EMBEDDED) or self._kept >= _MOST_PLACES:
            return max(1, -(-(self._last_ns - now_ns) // SECOND_NS))
        at = self._find(now_ns // BIN_NS, rows)
        if at < 0:
            return HORIZON_S
        due_ns = now_ns + (at - now_ns // BIN_NS) * BIN_NS
        place = Place(request or flow, flow, rows, due_ns, before + 1 if request > 0 else 1)
        self.places.setdefault(place.key, []).append(place)
        self._seconds.setdefault(due_ns // SECOND_NS, []).append(place)
        self._of_flow[flow] = held + 1
        self._kept += 1
        self._last_ns = max(self._last_ns, due_ns)
        return (due_ns - now_ns) // SECOND_NS

    def _find(self, now_bin: int, rows: int) -> int:
        """Enter `rows` rows, and return the bin at which their place begins; -1 if there is none."""
        position = now_bin % _BINS
        room = _BOOKED * self._rate * BIN_NS / SECOND_NS / self._share
        if room > self._room:
            self._full = [0] * _BINS
        self._room = room
        at = max(self._next[position], now_bin + _BINS)
        last = now_bin + HORIZON_S * _BINS
        bin_ = max(at, self._full[position])
        while bin_ - at >= self.together:
            at += _BINS
        bin_ = max(bin_, at)
        while bin_ <= last and self._rows.get(bin_, 0.0) >= room:
            bin_ += 1
            if bin_ - at >= self.together:
                at += _BINS
                bin_ = max(bin_, at)  # those before are full
        self._next[position], self._full[position] = at, bin_
        if bin_ > last:
            return -1
        left = float(rows)
        while left > 0.0 and bin_ <= last:
            here = self._rows.get(bin_, 0.0)
            if here < room:
                self._rows[bin_] = min(here + left, room)
                left -= room - here
            bin_ += 1
        return at

    def due(self, key: int, now_ns: int) -> bool:
        """Return whether a place of `key` is to be used now."""
        self._advance(now_ns)
        return self._due(key, now_ns) is not None

    def expecting(self, now_ns: int) -> bool:
        """Return whether any place falls due within this second."""
        self._advance(now_ns)
        return self._expecting  # places are booked for later seconds only

    def use(self, key: int, now_ns: int) -> int:
        """Take the place of `key` that is to be used now out of the book; return how often its request was refused
        before, 0 if there is no such place."""
        self._advance(now_ns)
        place = self._due(key, now_ns)
        if place is None:
            return 0
        place.came = True
        self._remove(place)
        return place.refused

    def _due(self, key: int, now_ns: int) -> Place | None:
        places = self.places.get(key)
        for place in places or ():
            if place.due_ns - _EARLY_NS <= now_ns <= place.due_ns + _LATE_S * SECOND_NS:
                return place
        return None

    def _remove(self, place: Place) -> None:
        left = self.places[place.key]
        left.remove(place)
        self._kept -= 1
        if not left:
            del self.places[place.key]
        held = self._of_flow[place.flow] - 1
        if held:
            self._of_flow[place.flow] = held
        else:
            del self._of_flow[place.flow]

    def _advance(self, now_ns: int) -> None:
        """Measure the rate and close the seconds that are over, once a second."""
        second = now_ns // self._second_ns
        if second == self._second:
            return
        rows = self._served()
        passed_ns = now_ns - self._begun_ns
        if self._refused_in == self._second and SECOND_NS // 2 < passed_ns < 2 * SECOND_NS:
            rate = (rows - self._rows_before) * SECOND_NS / passed_ns  # more came, so that is what can be served
            self._rate = self._rate + (rate - self._rate) / 4 if self._rate > 0.0 else rate
        elif self._rate <= 0.0 or self._refused_in != self._second:
            self._rate = self._capacity(now_ns) or self._rate
        self._second, self._begun_ns, self._rows_before = second, now_ns, rows
        for over in [begun for begun in self._seconds if begun + _LATE_S < second]:
            self._close(self._seconds.pop(over))
        self._expecting = second in self._seconds
        if not self._seconds:
            self._rows.clear()
            self._full = [0] * _BINS
        elif len(self._rows) > 2 * HORIZON_S * _BINS:
            self._rows = {at: booked for at, booked in self._rows.items() if at >= now_ns // BIN_NS}

    def _close(self, places: list[Place]) -> None:
        """Forget places that were not used, and learn how many were."""
        rows = came = 0
        for place in places:
            rows += place.rows
            if place.came:
                came += place.rows
            else:
                self._remove(place)
        self._share = max(_LEAST_SHARE, self._share + (came / rows - self._share) / 4)


class _Refusal:
    """How often a request was refused, and when the last time was."""

    __slots__ = ("at_ns", "times")

    def __init__(self, times: int, at_ns: int) -> None:
        self.times = times
        self.at_ns = at_ns


class MemoryRefusals:
    """The requests of one family for which workers had no memory lately: whether they should come again or not.

    A lack of memory may pass, so a request that met one is answered 503 with a Retry-After.  If its rows are too large
    for the memory of a worker, it fails every time, and an obedient client would ask without end.  So refused rows are
    remembered by a digest: a client need not name its requests or keep its connection.  Only a request that came when
    it had been asked to counts as another try, so that many equal ones at a time do not condemn each other.  A digest
    is forgotten `_KEPT_NS` after the last refusal: a lack of memory so much later has another cause, and equal rows
    that meet it do not pay for the first.
    """

    def __init__(self, digests: InputDigests) -> None:
        self._digests = digests
        self._refusals: OrderedDict[tuple[int, int], _Refusal] = OrderedDict()

    def retry_after_s(self, slots: list[int], arrival_ns: int, now_ns: int) -> float | None:
        """Count a request whose rows are in `slots`, which arrived at `arrival_ns` and found no memory; return the
        seconds after which it shall come back, None if it was refused too often."""
        while self._refusals and now_ns - next(iter(self._refusals.values())).at_ns > _KEPT_NS:
            self._refusals.popitem(last=False)
        key = self._digests.digest(slots[0]), len(slots)  # the first row tells requests apart well enough
        refusal = self._refusals.get(key)
        if refusal is None:
            refusal = self._refusals[key] = _Refusal(1, now_ns)
            if len(self._refusals) > _MOST_KEPT:
                self._refusals.popitem(last=False)
        elif refusal.times > len(WAITS_S) or arrival_ns >= refusal.at_ns + WAITS_S[refusal.times - 1] * 1e9:
            refusal.times, refusal.at_ns = refusal.times + 1, now_ns
            self._refusals.move_to_end(key)
        return WAITS_S[refusal.times - 1] if refusal.times <= len(WAITS_S) else None
