"""SIGHUP: read the configuration again, validate it as a whole, and change what may change while serving.

The event loop serves meanwhile: a thread reads the configuration, and a process of its own checks it
(`clover.serve.checking`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import msgspec

from clover import settings
from clover.config import ServerConfig
from clover.errors import CloverError, ConfigError
from clover.serve.concealment import conceal
from clover.server import Server
from clover.settings import SETTINGS, Setting, Settings
from clover.telemetry import logs

log = logging.getLogger("clover.serve")

_T = TypeVar("_T")

LIVE = {
    "controller.mode": "mode",
    "controller.lam": "lambda",
    "controller.objective": "objective",
    "families.slo_ms": "slo_ms",
    "families.accuracy_floor": "accuracy_floor",
    "log.level": "log_level",
}
"""Settings that a reload may change, and the argument of the controller's command `set` that each becomes."""


TENANTS, TOKENS = "tenant", "token"
"""Tables of tenants and of tokens; a reload may change all that they say, add and remove some."""
OWN_TOKEN = "listen.token"
"""The token without a name, whose file is read again."""
_BEARERS = (TENANTS, TOKENS, OWN_TOKEN)


def differences(old: Settings, new: Settings) -> list[tuple[str, int | None, Any]]:
    """Return the settings that changed: key ("families.slo_ms"), index of the family or None, new value."""
    changes: list[tuple[str, int | None, Any]] = []
    if len(old.config.families) != len(new.config.families):
        changes.append(("families", None, None))
    for setting in SETTINGS:
        if setting.section == "families":
            pairs = zip(old.config.families, new.config.families, strict=False)
            for index, (before, after) in enumerate(pairs):
                if getattr(before, setting.leaf) != getattr(after, setting.leaf):
                    changes.append((setting.key, index, getattr(after, setting.leaf)))
            continue
        was, now = (_value(given.config, setting) for given in (old, new))
        if was != now:
            changes.append((setting.key, None, now))
    if old.config.tenants != new.config.tenants:
        changes.append((TENANTS, None, new.config.tenants))
    if old.config.tokens != new.config.tokens:
        changes.append((TOKENS, None, new.config.tokens))
    return changes


def _value(config: ServerConfig, setting: Setting) -> Any:
    return getattr(getattr(config, setting.section) if setting.section else config, setting.leaf)


async def apart(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, or raise what it raises, from a thread of its own: the loop turns meanwhile.

    No end of the server waits for it, as it would for a thread of the loop's executor.  `sys.exit` in it ends nothing:
    it is a ConfigError.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: _T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except SystemExit as ending:
            error = ConfigError(f"something in it called sys.exit({ending.code!r})")
        except Exception as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="clover-reload", daemon=True).start()
    return await done


class Reload:
    """Reads the configuration again on SIGHUP.  Nothing changes if it is not valid as a whole.

    `read` and `check` are called in a thread; `check` raises ConfigError for a configuration that cannot be used."""

    def __init__(
        self, read: Callable[[], Settings], check: Callable[[ServerConfig], object], current: Settings
    ) -> None:
        self.server: Server | None = None
        self._read = read
        self._check = check
        self._current = current
        self._new: Settings | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin a reload, unless one is running; the signal calls this on the loop."""
        if self._task is not None and not self._task.done():
            log.warning("SIGHUP: the last reload is still running")
            return
        self._task = asyncio.get_running_loop().create_task(self.run(), name="clover-reload")

    async def run(self) -> None:
        """Validate the new configuration, apply what may change while serving, and log what needs a restart."""
        try:
            new = await apart(self._read_and_check)
        except ConfigError as error:
            log.error("SIGHUP: nothing was changed: %s", error)
            return
        except Exception:
            log.exception("SIGHUP: nothing was changed: the configuration cannot be read")
            return
        try:
            await self._use(new)
        except Exception:
            log.exception("SIGHUP: not everything was changed")

    def _read_and_check(self) -> Settings:
        new = self._read()
        self._check(new.config)
        return new

    async def _use(self, new: Settings) -> None:
        """Apply what may change while serving, and log what needs a restart."""
        if self.server is None:
            log.warning("SIGHUP: nothing was changed: the server is still starting")
            return
        self._new = new
        self.server.engine.life.reloads += 1
        changes = differences(self._current, new)
        for key in sorted({key for key, _, _ in changes if key not in (*LIVE, *_BEARERS)}):
            log.warning("SIGHUP: %s changes at a restart only", key)
        live = [change for change in changes if change[0] in (*LIVE, *_BEARERS)]
        applied = [await self._apply(key, index, value) for key, index, value in live]
        certificate = self._reload_certificate(self.server)
        if settings.holds_secrets(new.config) and not settings.holds_secrets(self._current.config):
            conceal(settings.secrets_of(new.config))
        in_force = {(key, index) for (key, index, _), done in zip(live, applied, strict=True) if done}
        self._current = _with_live(self._current, new, in_force)
        log.info("SIGHUP: %d of %d changed settings are live", sum(applied), len(changes))
        changed = sorted({key for key, _, _ in changes})
        self.server.engine.operators.audit.record(
            "SIGHUP",
            "signal",
            "reload",
            arguments={"changed": changed, "live": sum(applied), "certificate": certificate},
            status=200 if all(applied) and certificate != "refused" else 409,
        )

    @staticmethod
    def _reload_certificate(server: Server) -> str:
        """Use certificate and key as their files are now; return what came of it, in a word."""
        frontend = server.engine.frontend
        try:
            if frontend is None or not frontend.reload_certificate():
                return "none"
        except ConfigError as error:
            log.error("SIGHUP: the TLS certificate was not changed: %s", error)
            return "refused"
        log.info("SIGHUP: new TLS handshakes use certificate and key as they are now")
        return "read"

    def _use_tokens(self) -> None:
        """Make the tokens of the new configuration the valid ones."""
        assert self.server is not None
        assert self._new is not None
        config = self._new.config
        self.server.engine.use_tokens(config.listen.token, config.tokens)
        named = [token.name for token in config.tokens]
        log.info("SIGHUP: tokens are now %s", ", ".join(["listen.token"] * bool(config.listen.token) + named) or "none")

    async def _apply(self, key: str, index: int | None, value: Any) -> bool:
        if key == "log.level":
            logs.set_level(value)
            return True
        if key == TENANTS:
            assert self.server is not None
            self.server.engine.use_tenants(value)
            log.info("SIGHUP: tenants are now %s", ", ".join(tenant.name for tenant in value) or "none")
            return True
        if key in (TOKENS, OWN_TOKEN):
            self._use_tokens()
            return True
        if value is None and key != "controller.lam":
            log.warning("SIGHUP: %s without a value is derived again at a restart only", key)
            return False
        arguments: dict[str, Any] = {LIVE[key]: value}
        assert self.server is not None
        engine = self.server.engine
        if index is not None:
            arguments["model"] = list(engine.served)[index]
        try:
            await engine.control().command("set", arguments, "SIGHUP")
        except CloverError as error:
            log.error("SIGHUP: %s was not changed: %s", key, error)
            return False
        return True


def _with_live(old: Settings, new: Settings, in_force: Collection[tuple[str, int | None]]) -> Settings:
    """Return `old` with what is in force now of `new` (keys, and the index of a family), so that the next reload is
    compared with that."""
    config = old.config
    for key in LIVE.keys() & {key for key, _ in in_force}:
        section, leaf = key.split(".")
        if section == "families":
            pairs = list(zip(config.families, new.config.families, strict=False))
            rest = config.families[len(pairs) :]
            changed = (
                msgspec.structs.replace(a, **{leaf: getattr(b, leaf)}) if (key, index) in in_force else a
                for index, (a, b) in enumerate(pairs)
            )
            config = msgspec.structs.replace(config, families=(*changed, *rest))
        else:
            value = getattr(getattr(new.config, section), leaf)
            part = msgspec.structs.replace(getattr(config, section), **{leaf: value})
            config = msgspec.structs.replace(config, **{section: part})
    listen = msgspec.structs.replace(config.listen, token=new.config.listen.token)
    config = msgspec.structs.replace(config, listen=listen, tenants=new.config.tenants, tokens=new.config.tokens)
    return Settings(config, old.origins, old.options, old.path)
