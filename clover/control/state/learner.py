"""Collects what families learn of their profiles, and keeps it beside the profiles in the cache folder.

A file whose content has changed is written at most every `SAVE_S`, and when the server stops.  A thread writes it,
because a disk may be slow.  If a file is damaged, or belongs to another profile or version, it is logged and left
as it is until replaced.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from clover.cache import replace_file
from clover.control.state.context import Context
from clover.control.state.family import Family
from clover.control.state.learning import SavedCorrection
from clover.control_time import control_task
from clover.errors import ProfileError
from clover.malformed import MALFORMED
from clover.profiles import ProfileStore
from clover.types import FrontLag

log = logging.getLogger("clover.control")

SAVE_S = 300.0


class Learner:
    """What the families of `context` learn; lost with the server unless the `store` of profiles is given.  `front_lag`
    returns how long requests now wait for the front end's event loop; None if unknown."""

    def __init__(
        self,
        context: Context,
        *,
        store: ProfileStore | None = None,
        front_lag: Callable[[], FrontLag | None] = lambda: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.front_lag = front_lag
        self._context = context
        self._wall = wall
        self._changes = 0
        self._saved_s = -math.inf
        self._saved: dict[str, int] = {}
        """By family, `Learning.collected` when it was last written."""
        self._writing: asyncio.Task[None] | None = None

    def add(self, family: Family) -> None:
        """Restore what was learned of the profile of `family` before."""
        path = self._path(family)
        if path is not None:
            try:
                saved = msgspec.json.decode(path.read_bytes(), type=SavedCorrection)
                family.learned.restore(saved, self._context.monotonic(), self._wall())
                if words := family.learned.words():
                    log.info("%s: profile corrected as learned before: %s", family.name, words)
            except FileNotFoundError:
                pass
            except (OSError, *MALFORMED) as error:
                log.warning("%s: what was learned of its profile, %s, is not used: %s", family.name, path, error)
        self._saved[family.name] = family.learned.collected
        self._tell(family)

    def poll(self, family: Family) -> None:
        """Collect what the workers of `family` did, and give its fleet what follows from it."""
        families, now_s = self._context.families.values(), self._context.monotonic()
        changes = sum(of.changes for of in families)
        if changes != self._changes:
            self._changes = changes
            for of in families:
                of.learned.unsettle(now_s)
        learned, report = family.learned, family.fleet.work_report()
        learned.observe_front(self.front_lag(), now_s)
        if learned.observe(report, self._context.share_of(family), now_s):
            log.debug("%s: profile corrected: %s", family.name, learned.words() or "as it was measured")
            self._tell(family)

    @staticmethod
    def _tell(family: Family) -> None:
        """Give the fleet what was learned and is in force."""
        family.fleet.correct_energy(family.learned.energy)
        family.fleet.correct_front(family.learned.front.ms)

    def save(self) -> None:
        """Write what changed, if it is time."""
        now_s = self._context.monotonic()
        if now_s < self._saved_s + SAVE_S or (self._writing is not None and not self._writing.done()):
            return
        self._saved_s = now_s
        due = self._due(self._context.families.values())
        if due:
            self._writing = control_task(self._write(due), name="clover-learned")

    async def finish(self, families: Iterable[Family]) -> None:
        """Write what `families`, which end, have learned since the last write."""
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._write(self._due(families))

    def _due(self, families: Iterable[Family]) -> list[tuple[Path, SavedCorrection]]:
        now_s, wall_s = self._context.monotonic(), self._wall()
        due = []
        for family in families:
            path, learned = self._path(family), family.learned
            if path is not None and learned.collected != self._saved.get(family.name, 0):
                self._saved[family.name] = learned.collected
                due.append((path, learned.save(now_s, wall_s)))
        return due

    async def _write(self, due: list[tuple[Path, SavedCorrection]]) -> None:
        for path, saved in due:
            try:
                await asyncio.to_thread(replace_file, path, msgspec.json.encode(saved))
            except OSError as error:
                log.warning("%s: what was learned of its profile cannot be kept: %s: %s", saved.family, path, error)

    def _path(self, family: Family) -> Path | None:
        try:
            return self.store.correction_path(family.name, family.profile.key) if self.store is not None else None
        except ProfileError:  # served under a name that no file can have
            return None
