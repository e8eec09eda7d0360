"""What a server remembers of roll-outs over a restart: one small file a model in the state folder.

A trial that was under way is over after a restart, and the stable version serves; a version that was promoted is served
again, as long as its files are those that were promoted and the configuration names the family that it replaced.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from clover import families
from clover.cache import check_private, replace_file, state_folder
from clover.config import FamilyConfig, ServerConfig
from clover.errors import ConfigError
from clover.telemetry.ledger.files import server_name
from clover.types import FamilySpec

log = logging.getLogger("clover.server")

FOLDER = "rollouts"
TRIAL, PROMOTED = "trial", "promoted"


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is tried beside the family of the configuration, or was promoted in its place."""

    phase: str
    configured: str
    folder: str
    version: str
    digest: str


class RolloutFiles:
    """The files of one server; none if `folder` is None.  `notes` says what a start made of them, by model."""

    def __init__(self, folder: Path | None) -> None:
        self.notes: dict[str, str] = {}
        self._folder = folder

    @classmethod
    def of(cls, config: ServerConfig) -> RolloutFiles:
        """Return the files of a server that keeps a ledger, or was given a state folder."""
        if config.ledger.keep != "on" and not config.state_dir:
            return cls(None)
        name = server_name(config.ledger.name, config.listen.host, config.listen.port)
        return cls(state_folder(config.state_dir) / FOLDER / name)

    def write(self, model: str, record: RolloutRecord) -> None:
        """Keep a record; a disk that cannot be written is logged."""
        if self._folder is not None:
            try:
                replace_file(self._path(model), msgspec.json.format(msgspec.json.encode(record), indent=1))
            except OSError as error:
                log.warning("%s: the roll-out is not remembered over a restart: %s", model, error.strerror)

    def remove(self, model: str) -> None:
        """Forget a model's record."""
        if self._folder is not None:
            self._path(model).unlink(missing_ok=True)

    def promoted(self, model: str) -> RolloutRecord | None:
        """Return the record of the version that was promoted, if one was."""
        found = self._read(model)
        return found if found is not None and found.phase == PROMOTED else None

    def serve(self, item: FamilyConfig) -> FamilySpec:
        """Return the family to serve for `item`: the configured one, or the version that was promoted in its place.
        Raises ConfigError if the configured one cannot be read."""
        configured = families.load_family(item.family)
        model = item.name or configured.name
        found = self._read(model)
        if found is None:
            return configured
        if found.phase == TRIAL:
            self.remove(model)
            self._note(
                model, f"the server ended while version {found.version} was tried: version {configured.version} serves"
            )
            return configured
        if found.configured != item.family:
            self.remove(model)
            self._note(model, f"the configuration names another family than version {found.version} was promoted for")
            return configured
        try:
            check_private(Path(found.folder))
            spec = msgspec.structs.replace(families.load_family(found.folder), version=found.version)
        except ConfigError as error:
            self._note(model, f"version {found.version}, which was promoted, cannot be served: {error}")
            return configured
        if spec.digest != found.digest:
            self._note(model, f"the files of version {found.version} have changed since it was promoted: not served")
            return configured
        self._note(model, f"version {found.version} serves, which was promoted")
        return spec

    def _note(self, model: str, text: str) -> None:
        self.notes[model] = text
        log.warning("%s: %s", model, text)

    def _read(self, model: str) -> RolloutRecord | None:
        if self._folder is None:
            return None
        path = self._path(model)
        try:
            return msgspec.json.decode(path.read_bytes(), type=RolloutRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s: %s cannot be read, so the configured version serves: %s", model, path, error)
            return None

    def _path(self, model: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{model}.json"
