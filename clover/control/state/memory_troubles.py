"""Starts that failed for want of memory, so that none is tried the same way again.

If a worker found no room beside another one, it is planned as an exchange from then on: the old worker leaves first.
If both were to stay, no plan has them on one placement of that profile any more (`apart`).  If a worker does not even
fit alone, no plan has its variant on that profile until the devices or the profile of the family change.  Without this
record the same plan would be tried for ever, each time after a longer pause.

If nothing is left that may run, another program may have had the memory for a while.  Then everything is tried anew,
after a minute, and after twice as long each time.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import structs

from clover.errors import says_out_of_memory
from clover.types import Assignment, FamilyProfile

log = logging.getLogger("clover.control")

FIRST_WAIT_S = 60.0
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class FailedStart:
    """A worker that did not start, those that were at its placement then, and the reason."""

    assignment: Assignment
    stood: tuple[Assignment, ...]
    reason: str


class MemoryTroubles:
    """What one family's workers found no room for.  `refused`: reasons by (variant, profile of the slice)."""

    def __init__(self, name: str) -> None:
        self.refused: dict[tuple[str, str], str] = {}
        self._name = name
        self.apart: set[tuple[str, str, str]] = set()
        """Profiles, each with two variants by name, of which one found no room when both were to be there."""
        self._beside: set[tuple[str, str, str, str]] = set()
        self._under: Hashable = None
        self._wait_s = FIRST_WAIT_S
        self._anew_s: float | None = None

    def observe(self, under: Hashable) -> None:
        """Forget everything if the devices or the profile (`under`) have changed."""
        if under != self._under:
            if self.refused:
                log.info("%s: devices or profile changed: what did not fit into memory may run again", self._name)
            self.refused.clear()
            self._beside.clear()
            self.apart.clear()
            self._under = under
            self._wait_s, self._anew_s = FIRST_WAIT_S, None

    def record_deadlock(self, now_s: float) -> None:
        """Record at `now_s` (monotonic) that nothing can run without what is refused: forget that once it was so for
        long enough."""
        if self._anew_s is None:
            self._anew_s = now_s + self._wait_s
        elif now_s >= self._anew_s:
            log.warning("%s: nothing else can run: what did not fit into memory is tried again", self._name)
            self.refused.clear()
            self._wait_s, self._anew_s = min(2.0 * self._wait_s, LONGEST_WAIT_S), None

    def record(self, failed: FailedStart, target: Collection[Assignment] = ()) -> str:
        """Record a start that failed on the way to `target`; return what follows from it, empty if memory was not
        the reason."""
        if not says_out_of_memory(failed.reason):
            return ""
        item, profile = failed.assignment, failed.assignment.placement.profile
        if together := sorted({other.variant for other in failed.stood if other in target}):
            # No exchange helps, as what is there is to stay.
            for name in together:
                first, second = sorted((item.variant, name))
                self.apart.add((profile, first, second))
            return f"{item.variant} and {', '.join(together)} are not planned together on {profile} any more"
        if failed.stood:
            self._beside.update((item.variant, item.backend, profile, other.variant) for other in failed.stood)
            names = ", ".join(sorted({other.variant for other in failed.stood}))
            return f"{item.variant} is not loaded beside {names} on {profile} any more, but in exchange for it"
        known = (item.variant, profile) in self.refused
        self.refused[item.variant, profile] = failed.reason
        words = f"{item.variant} is refused on {profile} until the devices or the profile change"
        if not known:
            log.error("%s: %s: it does not fit there alone: %s", self._name, words, failed.reason)
        return words

    def failed(self, one: Assignment, other: Assignment) -> bool:
        """Return whether a worker like `other` found no room beside one like `one`."""
        return (other.variant, other.backend, other.placement.profile, one.variant) in self._beside

    def without_refused(self, profile: FamilyProfile, running: tuple[Assignment, ...]) -> FamilyProfile:
        """Return `profile` without the measurements of what is refused, so that no plan has it.  What is `running`
        stays in, because plans are compared with it."""
        runs = {(item.variant, item.placement.profile) for item in running}
        gone = self.refused.keys() - runs
        if not gone:
            return profile
        left = tuple(item for item in profile.latency if (item.variant, item.profile) not in gone)
        return structs.replace(profile, latency=left)

    @property
    def words(self) -> str:
        """What is refused, and why."""
        profiles: dict[tuple[str, str], list[str]] = {}
        for (variant, profile), why in sorted(self.refused.items()):
            profiles.setdefault((variant, why), []).append(profile)
        return "; ".join(
            f"{variant} is refused on {', '.join(names)}: {why}" for (variant, why), names in profiles.items()
        )

    def apart_report(self, alone: Mapping[tuple[str, str], str]) -> list[dict[str, Any]]:
        """Return which variants no worker holds together, for people; `alone`: why some are not held beside any other,
        by (variant, profile)."""
        why = "one found no room when both were to be there"
        pairs = [{"profile": name, "variants": both, "reason": why} for name, *both in sorted(self.apart)]
        return pairs + [
            {"profile": name, "variants": [variant], "reason": reason} for (variant, name), reason in alone.items()
        ]

    def report(self) -> list[dict[str, str]]:
        """Return what is refused for people."""
        return [
            {"variant": variant, "profile": profile, "reason": why}
            for (variant, profile), why in sorted(self.refused.items())
        ]
