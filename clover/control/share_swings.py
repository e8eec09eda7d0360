"""Whether the shares of one family's rows swing around the plan's, and which way now.

Joules of variants that share a meter are told apart by what varies, and a quota keeps shares row by row
(`clover.planning.model.metered`).  So while the joules of a variant that has `LEAST_PART` of a meter's are known worse
than `KNOWN`, shares are moved on purpose: forwards for a block, backwards for as long, one move after the other
(`clover.planning.model.swings`).  After each move the mean shares are the plan's, and so are accuracy and load; within
a block they are not.  How far a move may go is asked for each round anew (`clover.planning.search.swings`), and at the
end of a move if the rate or the corrected profile is another by then.

It ends once all are known, and is not looked at again for `REST_S`; evidence fades, so errors grow with age.  If moves
of `LONGEST_S` together have not brought that, it is given up for `GIVEN_UP_S`.  Both are forgotten once a further
variant serves on the meter.  What bars it (a missed SLO, an alarm, an operator) ends it at once, in the middle of a
move; what only changes workers or the plan breaks the move off, and the next one begins after that.  A move that was
not finished has left shares a little off to its first side, so the next one begins with the other side; its time counts
as that of any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from clover.hints import duration
from clover.planning.model.metered import MixedVariant
from clover.planning.model.swings import Move
from clover.types import Assignment, Routing

BLOCK_S = 10.0
BLOCK_WINDOWS = 5.0
"""A block holds so many windows of a meter at least: those at its edges are of two blocks."""
KNOWN = 0.02
"""Standard error, relative, of joules a row that are known: 5 % is two and a half of it."""
LEAST_PART = 0.05
LEAST_ROWS = 50.0
"""Rows in a block, below which chance moves shares as much as a swing."""
LONGEST_S = 600.0
REST_S = 3600.0
GIVEN_UP_S = 6 * 3600.0
RETRY_S = 300.0
"""After something barred it, or there was no room for a move."""
SAME_RATE = 1.1


class FoundMoves(NamedTuple):
    """The `moves` that may be made, found for a rate and a correction of the profile; or why they are not known
    (`failed`)."""

    moves: tuple[Move, ...]
    rate: float
    learned: int
    failed: str = ""


Runs = tuple[tuple[Assignment, ...], Routing]
Turn = tuple[Move, float]
"""A move, and whether it is made forwards (1), backwards (-1), or not any more (0)."""

_STILL: Turn = ({}, 0.0)


@dataclass(frozen=True, kw_only=True)
class SwingSight:
    """What is known at one look: what `runs` by plan, the `variants` that share a meter, how long a block is, the rows
    a second to plan for, which correction of the profile holds (`learned`), why shares may not swing (`barred`) or not
    just now (`pauses`), and what was `found` for `runs` since the last look (None: nothing)."""

    now_s: float
    runs: Runs | None
    variants: Mapping[str, MixedVariant]
    block_s: float
    rate: float
    learned: int
    barred: str = ""
    pauses: str = ""
    found: FoundMoves | None = None


class ShareSwings:
    """The swings of one family.  `wants`: whether the moves of a round are to be found for what runs; `news`: what
    began or ended at the last look, in words, and `why` it did, or why shares stay."""

    def __init__(self) -> None:
        self.on = False
        self.wants = False
        self.news = ""
        self.why = "nothing was metered yet"
        self._runs: Runs | None = None
        self._moves: tuple[Move, ...] = ()
        self._made = 0
        """Moves so far: where the next round begins."""
        self._sign = 0.0
        self._first = 1.0
        """Which way moves begin: the other way after one that was broken off, so that what both lack evens out."""
        self._found_for = (0.0, 0)
        """Rate and correction of the profile that the moves were found for."""
        self._began_s = self._block_began_s = 0.0
        self._first_block_s = 0.0
        self._looked_s = -math.inf
        self._spent_s = 0.0
        self._again_s = -math.inf
        self._known: frozenset[str] = frozenset()
        """The variants that the rest is for."""

    def look(self, seen: SwingSight) -> Turn | None:
        """Follow what one look saw; return how shares are to be moved from now, None if as before."""
        tick_s, self._looked_s = seen.now_s - self._looked_s, seen.now_s
        self.news = ""
        if not self._known.issuperset(seen.variants):
            self._known, self._spent_s, self._again_s = frozenset(seen.variants), 0.0, -math.inf
        if self.on and (why := seen.barred or self._lacks(seen, LEAST_ROWS / 2.0)):
            return self._end(seen, why, RETRY_S)
        still: Turn | None = None
        if self._sign and (seen.pauses or seen.runs != self._runs or seen.rate > SAME_RATE * self._found_for[0]):
            self.drop(seen.now_s)
            still = _STILL
        if self._sign:
            return self._go_on(seen, tick_s)
        if self.on and self._finish(seen):
            return still
        self.wants = self._wanted(seen)
        found = seen.found
        if self.wants and still is None and found is not None and (found.failed or self._fits(found, seen)):
            return self._take(seen, found)
        return still

    def drop(self, now_s: float) -> bool:
        """End the move unfinished; return whether there was one, so that rows have to be routed by the plan's shares
        again."""
        if not self._sign:
            return False
        self._sign, self._first = 0.0, -self._first
        self._spent_s += now_s - self._began_s
        return True

    def _wanted(self, seen: SwingSight) -> bool:
        """Return whether moves are wanted now; else say why not."""
        unknown = _unknown(seen.variants)
        if self.on:
            return not seen.pauses
        if seen.barred or seen.pauses:
            self.why = seen.barred or seen.pauses
        elif len(seen.variants) > 1 and not unknown:
            self.why = f"joules a row of all that have {_percent(LEAST_PART)} of their meter's are known to {_KNOWN}"
            self._spent_s = 0.0
        elif why := self._lacks(seen, LEAST_ROWS):
            self.why = why
        else:
            return seen.now_s >= self._again_s
        return False

    def _lacks(self, seen: SwingSight, rows: float) -> str:
        """Return what moves of shares would lack to tell anything, in words: a shared meter, or so many rows a
        block."""
        if len(seen.variants) < 2:
            return "no two variants share a meter, or nothing of them was metered yet"
        few = seen.rate * seen.block_s < rows
        return f"fewer than {rows:.0f} rows arrive in {seen.block_s:.0f} s" if few else ""

    def _fits(self, found: FoundMoves, seen: SwingSight) -> bool:
        """Return whether moves that were found may still be made; else others are to be found."""
        return found.learned == seen.learned and seen.rate <= SAME_RATE * found.rate

    def _take(self, seen: SwingSight, found: FoundMoves) -> Turn | None:
        """Begin a round with the moves that were found."""
        unknown, self.wants = _unknown(seen.variants), False
        if not found.moves:
            lack = "no variant has room for more rows within SLO and utilisation limit"
            if found.failed:
                lack = f"how far shares may be moved is not known: {found.failed}"
            why = f"{_words(unknown)}, but {lack}"
            if self.on:
                return self._end(seen, why, RETRY_S)
            self.why, self._again_s = why, seen.now_s + RETRY_S
            return None
        if not self.on:
            self.on = True
            self.why = _words(unknown)
            self.news = (
                "rows are shared out differently for some minutes, and on average as planned, to tell apart what each "
                "variant takes of one meter"
            )
        self._moves, self._runs, self._found_for = found.moves, seen.runs, (found.rate, found.learned)
        return self._turn(seen, self._first)

    def _go_on(self, seen: SwingSight, tick_s: float) -> Turn | None:
        """Turn round in the middle of a move, and end it after as long."""
        block_s = seen.now_s - self._block_began_s
        if self._sign == self._first:
            if block_s < seen.block_s:
                return None
            self._first_block_s = block_s
            return self._turn(seen, -self._first)
        if block_s < self._first_block_s - tick_s / 2.0:
            return None
        self._spent_s += seen.now_s - self._began_s
        self._made += 1
        self._sign = 0.0
        if self._finish(seen):
            return _STILL
        rate, learned = self._found_for
        alike = learned == seen.learned and rate / SAME_RATE <= seen.rate
        if self._made % len(self._moves) and alike:
            return self._turn(seen, self._first)
        self.wants = True
        return _STILL

    def _finish(self, seen: SwingSight) -> bool:
        """End between two moves, if joules are known by now or were not told in the longest time; return whether."""
        unknown = _unknown(seen.variants)
        if unknown and self._spent_s < LONGEST_S:
            self.why = _words(unknown)
            return False
        after, self._spent_s = f"after swings of {duration(self._spent_s)}", 0.0
        if unknown:
            self._end(seen, f"{_words(unknown)} {after}", GIVEN_UP_S)
        else:
            self._end(seen, f"joules a row are known to {_KNOWN} {after}", REST_S)
        return True

    def _turn(self, seen: SwingSight, sign: float) -> Turn:
        if sign == self._first:
            self._began_s = seen.now_s
        self._sign, self._block_began_s = sign, seen.now_s
        return self._moves[self._made % len(self._moves)], sign

    def _end(self, seen: SwingSight, why: str, rest_s: float) -> Turn | None:
        """Stop for `rest_s`; return to the plan's shares if they are moved.  What ends moves again and again is given
        up like what they do not tell."""
        moved = self.drop(seen.now_s)
        if self._spent_s >= LONGEST_S:
            why = f"{why}; {_words(_unknown(seen.variants))} after swings of {duration(self._spent_s)}"
            rest_s, self._spent_s = GIVEN_UP_S, 0.0
        self.on = self.wants = False
        self.why, self._again_s = why, seen.now_s + rest_s
        self.news = "rows are shared out as planned again"
        return _STILL if moved else None

    def report(self) -> dict[str, Any]:
        """Return whether shares swing, why or why not, and for how long they did, for `state`."""
        return {"on": self.on, "why": self.why, "seconds": self._spent_s}


def _unknown(variants: Mapping[str, MixedVariant]) -> dict[str, MixedVariant]:
    """Return the variants that matter and whose joules are not known."""
    return {name: one for name, one in variants.items() if one.part >= LEAST_PART and one.error > KNOWN}


def _words(unknown: Mapping[str, MixedVariant]) -> str:
    """Return which joules are known worst, in words."""
    name = max(unknown, key=lambda variant: unknown[variant].error, default="")
    if not name:
        return "joules a row are known"
    one = unknown[name]
    part, error = _percent(one.part), _percent(one.error)
    return f"joules a row of {name}, which has {part} of its meter's, are only known to {error}"


def _percent(part: float) -> str:
    return f"{100.0 * part:.0f} %"


_KNOWN = _percent(KNOWN)
