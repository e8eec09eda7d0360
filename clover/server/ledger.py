"""The ledger of a server: takes what was counted each second, and hands it to the thread that writes it.

The intensity in force is taken every second, all other figures every `FLUSH_S` seconds and when a minute begins.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from clover._version import __version__
from clover.accounting import Account
from clover.accounting.embodied import Hardware
from clover.config import ServerConfig
from clover.runtime.served import Served
from clover.server.ledger_source import LedgerSource
from clover.telemetry.ledger.collector import Collector
from clover.telemetry.ledger.files import ledger_path, server_name
from clover.telemetry.ledger.rows import EventRow, KeptProfile
from clover.telemetry.ledger.schema import DAY_S, MINUTE_S
from clover.telemetry.ledger.store import RunStart
from clover.telemetry.ledger.writing import CLOSE_S, LedgerStatus, LedgerThread, Retention
from clover.types import FamilyProfile, Reading

log = logging.getLogger("clover.ledger")

FLUSH_S = 10.0
"""A kill loses what was counted in this time.  A write takes half a millisecond of the event loop."""
MINUTES_DAYS = 14.0
"""Minutes become hours after two weeks, when nobody looks for a single incident any more."""
HOURS_DAYS = 400.0
"""Hours become days, and events go, once the report of a whole year and the month after it can be written."""

_SECRETS = ("token", "password", "secret", "key", "user")


class ServerLedger:
    """Keeps the ledger of a server, if one is configured.  `start` opens the file, in the ledger's thread.  Call `tick`
    once energy was counted, and `close` when no more will be."""

    def __init__(
        self,
        config: ServerConfig,
        source: LedgerSource,
        account: Account,
        hardware: Sequence[Hardware],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        kept, listen = config.ledger, config.listen
        self._config = config
        self._source = source
        self._account = account
        self._hardware = hardware
        self._wall = wall
        self._monotonic = monotonic
        self._collector = Collector(wall(), monotonic(), config.carbon.pue)
        self._slot = self._slot_of(wall())
        self._profiles: dict[str, FamilyProfile] = {}
        self._started = False
        configuration = public(config)
        digest = hashlib.sha256(configuration.encode()).hexdigest()
        self._thread = LedgerThread(
            ledger_path(config.state_dir, server_name(kept.name, listen.host, listen.port)),
            RunStart(wall(), __version__, platform.node(), os.getpid(), digest, configuration, self._facts()),
            Retention(MINUTES_DAYS * DAY_S, HOURS_DAYS * DAY_S, kept.max_bytes),
            wall=wall,
            monotonic=monotonic,
        )
        text = f"Clover {__version__} started with configuration {digest[:12]}"
        self._collector.event(EventRow(wall(), "configuration", "", text))

    @property
    def status(self) -> LedgerStatus:
        """How writing does."""
        return self._thread.status

    def start(self) -> None:
        """Open the file, without waiting for it."""
        self._started = True
        self._thread.start()

    def begin(self, mono_s: float) -> None:
        """Count from `mono_s` (monotonic) on: until then another server's ledger does."""
        at_s = self._wall() - (self._monotonic() - mono_s)
        self._collector.begin(at_s, mono_s)
        self._slot = self._slot_of(at_s)

    def serve(self, served: Mapping[str, Served]) -> None:
        """Note the profiles that models are served with, and how energy is metered, now that this is known."""
        at_s = self._wall()
        for name, model in served.items():
            profile = model.profile
            if profile is not None and self._profiles.get(name) is not profile:
                self._profiles[name] = profile
                content = msgspec.json.encode(_brief(profile)).decode()
                digest = hashlib.sha256(msgspec.json.encode(profile)).hexdigest()
                self._collector.profile(KeptProfile(digest, name, at_s, content))
        self._collector.facts(self._facts())

    def tick(self, reading: Reading) -> None:
        """Take the intensity that the energy of now was priced at, and everything else if it is time to write.  Never
        raises: serving does not depend on it."""
        self._safely(lambda: self._tick(reading))

    def _tick(self, reading: Reading) -> None:
        at_s, mono_s = self._wall(), self._monotonic()
        self._collector.grid(self._source.moment(reading, at_s, mono_s))
        if (event := self._source.provider_event(reading, at_s)) is not None:
            self._collector.event(event)
        slot = self._slot_of(at_s)
        if slot != self._slot:
            self._slot = slot
            self._flush(at_s, mono_s)

    def forget(self, model: str) -> None:
        """Take what was counted until now, as a model is about to go: another one of that name begins at zero."""
        self._safely(lambda: self._flush(self._wall(), self._monotonic()))
        self._collector.forget(model)
        self._source.forget(model)

    async def close(self) -> None:
        """Write what is left and close the file; a disk that does not answer does not hold up the stop.  Nothing if it
        was never opened."""
        if not self._started:
            return
        self._collector.facts(self._facts())
        self._safely(lambda: self._flush(self._wall(), self._monotonic()))
        if not await asyncio.to_thread(self._thread.close):
            log.warning("the end of the ledger is not written: its disk did not answer within %g s", CLOSE_S)

    def report(self) -> dict[str, Any]:
        """Return how the ledger does and what it has of all runs, for the state."""
        status = self.status
        return {
            "path": str(status.path),
            "state": status.state,
            "reason": status.reason,
            "trouble": status.trouble,
            "since_s": status.since_s if status.since_s < float("inf") else None,
            "carbon_g": status.grams,
            "energy_j": status.joules,
            "saved_g": [
                {"model": model, "against": against, "grams": grams}
                for (model, against), grams in sorted(status.saved_g.items())
            ],
            "bytes": status.bytes,
            "written_rows": status.written_rows,
            "waiting_rows": status.waiting_rows,
            "dropped_rows": status.dropped_rows,
            "failures": dict(status.failures),
            "set_aside": status.set_aside,
        }

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            self.status.failures["failed"] += 1
            log.exception("the ledger failed to take what was counted")

    def _slot_of(self, at_s: float) -> tuple[int, int]:
        """Return the minute, and the interval between two writes."""
        return int(at_s // MINUTE_S), int(at_s // FLUSH_S)

    def _flush(self, at_s: float, mono_s: float) -> None:
        collector = self._collector
        collector.take(self._source.snapshot(at_s, mono_s))
        for event in self._source.events(at_s, mono_s):
            collector.event(event)
        self.status.dropped_rows += collector.left_out_events + self._source.take_left_out()
        collector.left_out_events = 0
        if not self._started:
            return  # all of it waits in the collector, as long as another server has the file
        batch = collector.flush(at_s)
        if batch is not None:
            self._thread.put(batch)

    def _facts(self) -> str:
        """Return what figures are made with, as JSON."""
        kept = ("method", "uncertainty_low", "uncertainty_high", "active_uncertainty_low", "active_uncertainty_high")
        devices = {
            name: {key: line[key] for key in kept if key in line} for name, line in self._account.devices().items()
        }
        facts = {
            "pue": self._config.carbon.pue,
            "life_years": self._config.embodied.life_years,
            "trace_speed": self._config.carbon.trace_speed,
            "carbon_source": self._config.carbon.source,
            "hardware": self._hardware,
            "devices": devices,
        }
        return msgspec.json.encode(facts).decode()


def public(config: ServerConfig) -> str:
    """Return a configuration as JSON, in an order of its own and without secrets."""
    return msgspec.json.encode(_mask(msgspec.to_builtins(config)), order="sorted").decode()


def _is_secret(key: str) -> bool:
    """Return whether a setting of that name may be a secret, or a digest of one."""
    return any(word in key for word in _SECRETS)


def _mask(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "***" if masked and isinstance(masked, str) and _is_secret(key) else _mask(masked)
            for key, masked in value.items()
        }
    return [_mask(item) for item in value] if isinstance(value, list | tuple) else value


def _brief(profile: FamilyProfile) -> dict[str, Any]:
    """Return what a report needs of a profile: accuracy of each variant, and joules a row where it was measured."""
    return {
        "family": profile.family,
        "variants": {
            item.variant: {"accuracy": item.value, "accuracy_method": item.method, "rows": item.samples}
            for item in profile.accuracy
            if item.backend == profile.backend.get(item.variant, item.backend)
        },
        "energy": [
            {
                "variant": item.variant,
                "slice": item.profile,
                "backend": item.backend,
                "batch": item.batch,
                "joules_per_row": item.energy_j_per_row,
                "method": item.energy_method,
            }
            for item in profile.latency
        ],
    }
