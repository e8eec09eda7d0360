"""What a server remembers of roll-outs over a restart: one small file a model in the state folder.

A restart ends a trial, and the stable version serves.  A promoted version is served again as long as its files have not
changed since and the configuration names the family that it replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from clover import families
from clover.cache import check_files, replace_file, state_folder
from clover.config import FamilyConfig, ServerConfig
from clover.errors import ConfigError
from clover.malformed import MALFORMED
from clover.telemetry.ledger.files import server_name
from clover.types import FamilySpec

log = logging.getLogger("clover.server")

FOLDER = "rollouts"


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a model, and the digest of its files."""

    folder: str
    version: str
    digest: str

    @classmethod
    def from_family(cls, spec: FamilySpec) -> VersionRecord:
        """Return the record of a family."""
        return cls(folder=spec.folder, version=spec.version, digest=spec.digest)


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was rolled out of the family `configured`: the version that was promoted last, and the one that is tried."""

    configured: str
    promoted: VersionRecord | None = None
    trial: VersionRecord | None = None


class RolloutFiles:
    """The files of one server; none if `folder` is None.  `notes` says what a start made of them, by model."""

    def __init__(self, folder: Path | None) -> None:
        self.notes: dict[str, str] = {}
        self._folder = folder

    @classmethod
    def from_config(cls, config: ServerConfig) -> RolloutFiles:
        """Return the files of a server that keeps a ledger, or was given a state folder."""
        if config.ledger.keep != "on" and not config.state_dir:
            return cls(None)
        name = server_name(config.ledger.name, config.listen.host, config.listen.port)
        return cls(state_folder(config.state_dir) / FOLDER / name)

    def record_trial(self, model: str, configured: str, spec: FamilySpec) -> None:
        """Note that a version is being tried."""
        record = self._read(model) or RolloutRecord(configured=configured)
        self._write(model, msgspec.structs.replace(record, trial=VersionRecord.from_family(spec)))

    def record_promotion(self, model: str, configured: str, spec: FamilySpec) -> None:
        """Note that a version was promoted."""
        self._write(model, RolloutRecord(configured=configured, promoted=VersionRecord.from_family(spec)))

    def record_end(self, model: str) -> None:
        """Note that the version that was tried is no more; the one that was promoted before it still is."""
        record = self._read(model)
        if record is not None:
            self._write(model, msgspec.structs.replace(record, trial=None))

    def _write(self, model: str, record: RolloutRecord) -> None:
        """Keep a record, or remove the file if it says nothing; a disk that cannot be written is logged."""
        if self._folder is None:
            return
        path = self._path(model)
        try:
            if record.promoted is None and record.trial is None:
                path.unlink(missing_ok=True)
            else:
                replace_file(path, msgspec.json.format(msgspec.json.encode(record), indent=1))
        except OSError as error:
            log.warning("%s: the roll-out is not remembered over a restart: %s", model, error.strerror)

    def serve(self, item: FamilyConfig) -> FamilySpec:
        """Return the family to serve for `item`: the configured one, or the version that was promoted in its place.
        Raises ConfigError if the configured one cannot be read."""
        configured = families.chosen(families.load_family(item.family), item.only)
        model = item.name or configured.name
        record = self._read(model)
        if record is None:
            return configured
        if record.configured != item.family:
            self._write(model, RolloutRecord(configured=item.family))
            self._record(model, "the configuration names another family than before, which serves")
            return configured
        spec = self._promoted(model, record.promoted, item.only) or configured
        if record.trial is not None:
            self.record_end(model)
            text = f"the server ended while version {record.trial.version} was tried: version {spec.version} serves"
            self._record(model, text)
        return spec

    def _promoted(self, model: str, record: VersionRecord | None, only: Sequence[str]) -> FamilySpec | None:
        """Return the version that was promoted, with the variants `only`; None if there is none, or it cannot be served
        any more."""
        if record is None:
            return None
        try:
            check_files(Path(record.folder))
            there = families.chosen(families.load_family(record.folder), only)
            spec = msgspec.structs.replace(there, version=record.version)
        except ConfigError as error:
            self._record(model, f"version {record.version}, which was promoted, cannot be served: {error}")
            return None
        if spec.digest != record.digest:
            changed = f"the files of version {record.version}, or the setting only, have changed since it was promoted"
            self._record(model, f"{changed}: not served")
            return None
        self._record(model, f"version {record.version} serves, which was promoted")
        return spec

    def _record(self, model: str, text: str) -> None:
        self.notes[model] = "; ".join(filter(None, (self.notes.get(model, ""), text)))
        log.warning("%s: %s", model, text)

    def _read(self, model: str) -> RolloutRecord | None:
        if self._folder is None:
            return None
        path = self._path(model)
        try:
            return msgspec.json.decode(path.read_bytes(), type=RolloutRecord)
        except FileNotFoundError:
            return None
        except (OSError, *MALFORMED) as error:
            log.warning("%s: %s cannot be read, so the configured version serves: %s", model, path, error)
            return None

    def _path(self, model: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{model}.json"
