"""Keeps what budgets have spent over a restart: one file for each family and horizon.

The files lie in a folder of the server below the cache folder, which is named as its ledger and locked.

**Writing.**  A file is written every `SAVE_S` at most, in a thread, and once more when the controller stops; it is
replaced atomically.

**Reading.**  At a start a file is taken up if it has the same version of the family, the same accuracies and the same
budget, and if its horizon has not ended.  Otherwise, or if it is damaged, a new horizon begins, and the log says why.
What the file says of the load still holds in the new horizon.

**The lock.**  If another server of the same name holds the lock, this one reads and writes nothing and tries again
every `SAVE_S`.  Its budgets hold while it runs; the log and the state (`Ledger.unkept`) say that a restart begins them
anew.  A server that is to take over from the other one reads the files but writes none until the other has ended
(`LedgerFiles.take_over`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from clover.cache import cache_folder, make_private, replace_file
from clover.config import ServerConfig
from clover.control.state.counted import counted
from clover.control.state.family import Family
from clover.control.state.ledger import SavedLedger
from clover.control_time import control_task
from clover.errors import LedgerError
from clover.malformed import MALFORMED
from clover.planning.model.problem import accuracies
from clover.telemetry.ledger.files import LedgerLock, server_name
from clover.types import Record

SAVE_S = 60.0
FORMAT = 1
_LARGEST = 4 << 20
_SAFE = re.compile(r"[^A-Za-z0-9._-]")

log = logging.getLogger("clover.control")


def budgets_folder(config: ServerConfig) -> Path:
    """Return the folder of a server's files; raises ConfigError."""
    listen = config.listen
    return cache_folder(config.cache_dir) / "budgets" / server_name(config.ledger.name, listen.host, listen.port)


class SavedBudget(Record, frozen=True, kw_only=True):
    """A file: whose ledger it is (`key`: a digest of what its figures depend on), when it was written (grid time), and
    the ledger."""

    format: int
    family: str
    key: str
    horizon_s: float
    at_s: float
    ledger: SavedLedger


class LedgerFiles:
    """The files in `folder`, which is locked from the first call to `release`.  Without a folder nothing is kept.
    `beside`: the files are another server's until `take_over`."""

    def __init__(self, folder: Path | None = None, *, beside: bool = False) -> None:
        self.folder = folder
        self._beside = beside
        self._lock: LedgerLock | None = None
        self._unkept = ""
        self._due_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def load(self, family: Family, grid_s: float, *, spends: bool = True) -> bool:
        """Take up the saved ledger of `family`, if there is one that holds at `grid_s`; return whether what was spent
        is taken up.  `spends`: whether the policy in force has a budget that continues with it."""
        path = self.path(family)
        if path is None or not (self._beside or self._locked([family])):
            return False
        level = logging.INFO  # of a horizon that is over there is nothing to warn of
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError("it is too large")
            saved_budget = msgspec.json.decode(path.read_bytes(), type=SavedBudget)
            why = restore(saved_budget, family, grid_s)
            if saved_budget.family != family.name:
                level = logging.WARNING
        except FileNotFoundError:
            return False
        except OSError as error:
            level, why = logging.WARNING, error.strerror or str(error)
        except MALFORMED as error:
            level, why = logging.WARNING, f"it is damaged ({error})"
        if why:
            log.log(level, "%s: what the budget spent before is not taken up from %s: %s", family.name, path, why)
        elif spends:
            log.info("%s: the budget continues after %.0f rows", family.name, family.ledger.rows)
        return not why

    def take_over(self, families: Iterable[Family], grid_s: float) -> None:
        """Take up what another server left, which has ended, and add what this one has answered since its start."""
        self._beside = False
        for family in families:
            if self.load(family, grid_s):
                family.ledger.add(*(counted(family.fleet.observe()) or (0.0, 0.0)))

    def poll(self, families: Iterable[Family], now_s: float, grid_s: float) -> None:
        """Write what changed, at most every `SAVE_S`, without waiting for it."""
        if self.folder is None or self._beside or now_s < self._due_s:
            return
        if self._task is not None and not self._task.done():
            return
        self._due_s = now_s + SAVE_S
        if self._locked(families):
            self._task = control_task(self._write(self._files(families, grid_s)))

    async def close(self, families: Iterable[Family], grid_s: float) -> None:
        """Write everything of `families` a last time."""
        await self.settle()
        if self._lock is not None:
            await self._write(self._files(families, grid_s))

    def release(self) -> None:
        """Let another server have the files.  Idempotent."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _locked(self, families: Iterable[Family]) -> bool:
        """Return whether the files are this server's, and have the state of `families` say if they are not."""
        if self._lock is None and self.folder is not None:
            before, self._unkept = self._unkept, ""
            try:
                make_private(self.folder.parent)
                self._lock = LedgerLock(self.folder)
            except (LedgerError, OSError) as error:
                self._unkept = str(error)
                if not before:
                    log.warning("what budgets spend is not kept over a restart in %s: %s", self.folder, error)
        for family in families:
            family.ledger.unkept = self._unkept
        return self._lock is not None

    async def settle(self) -> None:
        """Wait until all writing under way is done."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def path(self, family: Family) -> Path | None:
        """Return the file of `family` with its horizon, whether it exists or not; None if nothing is kept."""
        if self.folder is None:
            return None
        plain = _SAFE.sub("_", family.name)[:80]
        unique = hashlib.sha256(family.name.encode()).hexdigest()[:8]
        return self.folder / f"{plain}-{unique}-{family.config.budget_horizon_s:.0f}.json"

    def _files(self, families: Iterable[Family], grid_s: float) -> list[tuple[Path, bytes]]:
        files = []
        for family in families:
            path, content = self.path(family), saved(family, grid_s)
            if path is not None and content is not None:
                files.append((path, msgspec.json.encode(content)))
        return files

    async def _write(self, files: list[tuple[Path, bytes]]) -> None:
        for path, data in files:
            try:
                await asyncio.to_thread(replace_file, path, data)
            except OSError as error:
                log.warning("what budgets spent cannot be written to %s: %s", path, error.strerror)


def saved(family: Family, grid_s: float) -> SavedBudget | None:
    """Return what is kept of `family` at `grid_s`; None before anything was observed."""
    if math.isnan(family.ledger.since_s):
        return None
    return SavedBudget(
        format=FORMAT,
        family=family.name,
        key=_key(family),
        horizon_s=family.config.budget_horizon_s,
        at_s=grid_s,
        ledger=family.ledger.saved(),
    )


def restore(found: SavedBudget, family: Family, grid_s: float) -> str:
    """Continue the ledger of `family` from `found`.  Return why it does not continue, or not with what was spent; else
    empty.  ValueError if the figures are invalid."""
    if why := _foreign(found, family, grid_s):
        return why
    why = _over(found, family, grid_s)
    family.ledger.restore(found.ledger, spent=not why)
    family.ledger.skip(family.fleet.observe())
    return why


def _foreign(found: SavedBudget, family: Family, grid_s: float) -> str:
    """Return why nothing of `found` is taken up, empty if something is."""
    if found.format != FORMAT:
        return f"it is of format {found.format}, and {FORMAT} is read"
    if found.family != family.name or found.horizon_s != family.config.budget_horizon_s:
        return "it belongs to another family or horizon"
    return "the clock of the carbon data was set back" if grid_s < found.at_s else ""


def _over(found: SavedBudget, family: Family, grid_s: float) -> str:
    """Return why what `found` has spent is not taken up, empty if it is."""
    if found.key != _key(family):
        return "the family, its accuracies or its budget have changed since"
    if grid_s >= found.ledger.since_s + family.config.budget_horizon_s:
        return "its horizon has ended"
    return ""


def _key(family: Family) -> str:
    """Return a digest of what the figures of a ledger depend on."""
    known = sorted(accuracies(family.profile).items())
    parts = (family.spec.name, family.spec.version, family.spec.digest, family.config.accuracy_budget, known)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
