"""Rolling out new versions of models: tried beside the stable one, then promoted or rolled back.

Inside the server, a version that is tried is a family of its own, `NAME@VERSION`, with its own workers, slab, profile
and account.  Its workers have the same places and the same routing as those of the stable version, whose plan is frozen
meanwhile, so that only the version differs.  To clients it has the name of the stable version: under that name the
front end finds a split (`clover.runtime.split`).  Once a second the tests of the release are evaluated
(`clover.runtime.guard.release`).

A promotion sends all requests to the trial's workers, replaces the stable version's workers by workers of the new
version, and then sends the requests to these.  The controller, the ledger and the metrics keep the same family.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from clover.config import RolloutConfig, ServerConfig
from clover.control.controller import Controller
from clover.control.state.decisions import DecisionEntry
from clover.control.wording import CANNOT_BE_PLANNED
from clover.errors import BadRequest, CloverError, Conflict, NotFound, Unavailable
from clover.runtime.guard.release import ReleaseLimits, ReleaseTests, ReleaseVerdict
from clover.runtime.served import Served
from clover.runtime.split import ServedVersion, VersionSplit
from clover.server.families import ServedFamilies
from clover.server.life import Life
from clover.server.loading import Loading
from clover.server.rollout_checks import (
    find_version,
    has_changed,
    mirrored,
    profile_for,
    settings_of,
    why_no_room,
)
from clover.server.rollout_files import RolloutFiles
from clover.types import Assignment, Declined, FamilySpec, Routing

log = logging.getLogger("clover.server")

OUTCOMES = ("promoted", "rolled back", "failed")
PAIRED = 0.1
"""The part of the stable version's requests that a new one answers too: enough pairs to compare, little energy."""
_SETTLE_STEP_S = 0.02
_OVER = "the roll-out is over"


@dataclass
class RollOut:
    """One roll-out.  `phase`: starting, trial, promoting, rolling back, or its outcome."""

    name: str
    spec: FamilySpec
    stable: FamilySpec
    settings: RolloutConfig
    operator: str
    phase: str = "starting"
    why: str = ""
    profile: str = ""
    served: Served | None = None
    split: VersionSplit | None = None
    deployment: tuple[Assignment, ...] = ()
    frozen: bool | None = None
    """Whether the stable version's plan was frozen before; None if it was left alone."""
    began_s: float = field(default_factory=time.time)
    last: dict[str, Any] = field(default_factory=dict)
    """What there is to report once it is over."""

    @property
    def key(self) -> str:
        """The name of the version inside."""
        return f"{self.name}@{self.spec.version}"

    def report(self, now_s: float) -> dict[str, Any]:
        """Return it for the state; `now_s` is monotonic."""
        if self.last:
            return self.last
        out: dict[str, Any] = {
            "model": self.name,
            "version": self.spec.version,
            "stable": self.stable.version,
            "phase": self.phase,
            "why": self.why,
            "profile": self.profile,
            "operator": self.operator,
            "began_s": self.began_s,
            "percent": self.settings.percent,
        }
        if self.split is not None:
            split = self.split
            out["waits_for"] = split.tests.waits_for(now_s) if self.phase == "trial" else ""
            out["tests"] = split.tests.report()
            out["pairs"] = split.pairs
            out["requests"] = {"new": split.new.requests, "stable": split.stable.requests}
            out["failed"] = {"new": split.new.failed, "stable": split.stable.failed}
        return out


class RollOuts:
    """The roll-outs of one server: at most one a model.  `forget` counts what a version used that is about to go."""

    def __init__(
        self,
        config: ServerConfig,
        files: RolloutFiles,
        families: ServedFamilies,
        controller: Controller,
        loading: Loading,
        life: Life,
        *,
        forget: Callable[[str], Awaitable[None]],
    ) -> None:
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self._config = config
        self._files = files
        self._families = families
        self._controller = controller
        self._loading = loading
        self._life = life
        self._forget = forget
        self._active: dict[str, RollOut] = {}
        self._last: dict[str, RollOut] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what others ask ----------------------------------------------------------------------------------------------

    def check_free(self, name: str) -> None:
        """Raise Conflict while a new version of a model is being rolled out."""
        release = self._active.get(name.partition("@")[0])
        if release is None:
            return
        if release.phase == "failed":
            raise Conflict(
                f"the roll-out of version {release.spec.version} of {release.name} has failed and cannot be ended "
                f"({release.why}): restart the server, which serves version {release.stable.version} then"
            )
        raise Conflict(
            f"version {release.spec.version} of {release.name} is being rolled out ({release.phase}): "
            "promote it or roll it back first"
        )

    def pick(self, name: str | None) -> Served:
        """Return the family of that name, or the only one for None; while NAME is being rolled out, NAME@VERSION is a
        name, too.  Raises NotFound or BadRequest."""
        families, trials = self._families.served, self.trials()
        if name is None:
            stable = [served for key, served in families.items() if key not in trials]
            if len(stable) != 1:
                raise BadRequest(f"say which model: {', '.join(served.name for served in stable)}")
            return stable[0]
        served = families.get(name)
        model, _, version = name.partition("@")
        if served is None and version and (release := self._active.get(model)) is not None:
            served = families.get(model if version == release.stable.version else name)
        if served is None:
            raise NotFound("Request for unknown model: no model of that name is served")
        return served

    def trials(self) -> set[str]:
        """Return the names inside of the versions that are tried: they are no models of their own."""
        return {release.key for release in self._active.values()}

    def involves(self, name: str) -> bool:
        """Return whether a model, or a version of it (NAME@VERSION), is being rolled out."""
        return name.partition("@")[0] in self._active

    def report(self) -> dict[str, dict[str, Any]]:
        """Return the roll-out of each model that is under way, or was the last."""
        now_s = time.monotonic()
        return {name: release.report(now_s) for name, release in {**self._last, **self._active}.items()}

    async def command(self, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """Start a roll-out (`folder`), or do what `action` says: status, promote, roll-back.  Raises BadRequest,
        Conflict or Unavailable."""
        given = dict(arguments)
        wanted = len({"action", "folder"} & given.keys())
        served = self.pick(_text(given, "model") or None)
        action, folder, dry_run = _text(given, "action"), _text(given, "folder"), given.pop("dry_run", False)
        if type(dry_run) is not bool:
            raise BadRequest("dry_run is true or false")
        if wanted != 1 or bool(action) == bool(folder) or action not in ("", "status", "promote", "roll-back"):
            raise BadRequest("roll-out takes folder, the new version, or action: status, promote or roll-back")
        if folder:
            return await self._begin(served, folder, _text(given, "version"), (given, operator, dry_run))
        if given:
            raise BadRequest(f"roll-out with an action takes no {', '.join(given)}")
        one = self._active.get(served.name)
        if action != "status" and not dry_run:
            if one is None or one.phase != "trial":
                raise Conflict(f"no version of {served.name} is being tried")
            verdict = ReleaseVerdict("promote" if action == "promote" else "roll back", f"by {operator or 'operator'}")
            await self._finish(one, verdict, operator or "operator")
        release = self._active.get(served.name) or self._last.get(served.name)
        report = release.report(time.monotonic()) if release is not None else {"model": served.name, "phase": "none"}
        return {**report, "dry_run": True} if dry_run else report

    # --- begin --------------------------------------------------------------------------------------------------------

    async def _begin(
        self, served: Served, folder: str, version: str, asked: tuple[dict[str, Any], str, bool]
    ) -> dict[str, Any]:
        """Start a roll-out; `asked` has its settings, the operator, and whether it is a dry run."""
        given, operator, dry_run = asked
        self.check_free(served.name)
        if self._life.draining:
            raise Unavailable("the server is shutting down")
        if served.state != "READY" or not served.ready:
            raise Conflict(f"{served.name} is not ready: there is nothing to compare a new version with")
        if served.unmeasured and not served.unmeasured.startswith(CANNOT_BE_PLANNED):
            raise Conflict(f"{served.name} {served.unmeasured}: try a new version once it is planned")
        settings = settings_of(self._config.rollout, given)
        listed, only = self._config.require_manifest, served.config.only
        spec = await asyncio.to_thread(find_version, served.spec, folder, version, settings.root, listed, only)
        self.check_free(served.name)
        if why := why_no_room(served, self._families.devices, self._deployment(served)[0]):
            raise Conflict(f"version {spec.version} cannot run beside version {served.spec.version}: {why}")
        release = RollOut(served.name, spec, served.spec, settings, operator or "operator")
        if dry_run:
            return {**release.report(time.monotonic()), "phase": "checked", "dry_run": True}
        self._active[served.name] = release
        try:
            async with self._loading.changing:
                await self._start(release, served)
        except BaseException as error:
            release.phase, release.why = "failed", str(error)
            await asyncio.shield(self._clear(release))
            self._over(release)
            if isinstance(error, CloverError) and not isinstance(error, Conflict):
                self._record(release, "failed", f"its workers did not start: {error}")
                text = f"version {spec.version} does not start; version {release.stable.version} serves"
                raise Unavailable(text) from error
            raise
        return release.report(time.monotonic())

    def _deployment(self, served: Served) -> tuple[tuple[Assignment, ...], Routing]:
        """Return what the stable version runs and how rows go to it."""
        family = self._controller.context.families.get(served.name)
        if family is not None and family.deployed is not None:
            return family.deployed.deployment, family.deployed.routing
        return served.fleet.routed, served.fleet.routing

    async def _start(self, one: RollOut, served: Served) -> None:
        """Start the workers of a new version and give it its share."""
        families, context, settings = self._families, self._controller.context, one.settings
        if served.state != "READY":  # it was unloaded while another change was awaited
            raise Conflict(f"{served.name} is not ready any more: there is nothing to compare a new version with")
        family = context.families.get(served.name)
        if family is not None:
            one.frozen, family.frozen, family.trial = family.frozen, True, one.spec.version
        await served.fleet.wake()
        async with context.lock:  # so that a plan that is being carried out is there
            deployment, routing = self._deployment(served)
        profile, one.profile = await profile_for(self._config, families.devices, families.pool, served, one.spec)
        config = msgspec.structs.replace(served.config, name=one.key, relief="", guard="off", audit=0.0)
        new = one.served = families.add(config, one.spec)
        new.memory_share = served.memory_share
        new.use(profile, served.drawn)
        families.account.add_family(new.name)
        one.deployment = mirrored(deployment, new.name)
        for item in one.deployment:
            await context.instances.hold(new.name, item.placement)
        await asyncio.gather(*(new.fleet.spawn(item) for item in one.deployment))
        new.fleet.route(one.deployment, routing)
        there = {item.variant for item in one.deployment}
        new.fleet.decline(
            {
                variant.name: Declined(why="the new version runs no worker of that variant while it is tried")
                for variant in one.spec.variants
                if variant.name not in there
            },
            lambda: None,
        )
        new.targets = dict(served.targets)
        new.state = "READY"
        tests = ReleaseTests(limits_of(settings), time.monotonic())
        split = one.split = VersionSplit(
            ServedVersion(served.router, served.slab), ServedVersion(new.router, new.slab), tests
        )
        split.share = settings.percent / 100.0
        split.paired = paired_part(split.share)
        versions = {f"{one.name}@{one.stable.version}": families.own_model(one.name)}
        families.lead({**versions, one.key: families.own_model(one.key), one.name: split})
        one.phase = "trial"
        self._files.record_trial(one.name, served.config.family, one.spec)
        words = f"version {one.spec.version} takes {settings.percent:g} % of the requests; its profile is {one.profile}"
        self._record(one, "applied", words)

    def announce(self) -> None:
        """Record what this start made of roll-outs before it."""
        context = self._controller.context
        for name, text in self._files.notes.items():
            context.decisions.record(
                DecisionEntry(
                    family=name,
                    trigger="start after a roll-out",
                    mode=context.mode,
                    action="kept",
                    grid_s=context.grid.now(),
                    detail=text,
                )
            )

    # --- each second --------------------------------------------------------------------------------------------------

    def evaluate(self) -> None:
        """Judge every version that is tried, and begin to do what follows."""
        now_s = time.monotonic()
        for release in list(self._active.values()):
            if release.phase != "trial" or release.split is None or self._life.draining:
                continue
            release.split.tests.evaluate(now_s)
            verdict = release.split.tests.verdict(now_s)
            if verdict.action:
                task = asyncio.get_running_loop().create_task(self._finish(release, verdict, ""), name="clover-rollout")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel what is under way, as the server stops."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- end ----------------------------------------------------------------------------------------------------------

    async def _finish(self, one: RollOut, verdict: ReleaseVerdict, operator: str) -> None:
        """Carry out a verdict: promote the version, or roll it back."""
        if one.phase != "trial":
            return
        promote = verdict.action == "promote"
        one.phase, one.why = "promoting" if promote else "rolling back", verdict.why
        one.operator = operator or one.operator
        began_s = time.monotonic()
        async with self._loading.changing:
            try:
                outcome, more = await self._promote(one) if promote else ("rolled back", "")
            except Exception as error:
                log.exception("%s: version %s could not be promoted", one.name, one.spec.version)
                self._report_stuck(one, f"an error that was not expected: {error!r}")
                return
            if outcome == "stuck":
                return
            self._restore(one)
            await self._settle(one)
            await self._clear(one)
        one.phase = outcome
        one.why = "; ".join(filter(None, (verdict.why, more)))
        self._over(one)
        if outcome == "promoted":
            self._files.record_promotion(one.name, self._families.served[one.name].config.family, one.spec)
        else:
            self._files.record_end(one.name)
        action = {"promoted": "applied", "rolled back": "rolled back"}.get(outcome, "failed")
        self._record(one, action, f"version {one.spec.version} {outcome}: {one.why}", time.monotonic() - began_s)

    async def _promote(self, release: RollOut) -> tuple[str, str]:
        """Serve the new version in the place of the stable one; return the outcome, and what went wrong."""
        split = release.split
        served, new = self._families.served[release.name], release.served
        assert split is not None
        assert new is not None
        if await asyncio.to_thread(has_changed, release.spec):
            return "failed", "its files have changed since its trial began: begin again"
        old_spec, old_profile = served.spec, served.profile
        split.share, split.paired = 1.0, 0.0
        await self._loading.wait_answered([served.router])
        split.alone = True
        try:
            await self._loading.replace(served, release.spec, new.profile)
        except CloverError as error:
            version = release.spec.version
            log.warning("%s: version %s could not start in place of the stable one: %s", release.name, version, error)
            try:
                await self._loading.replace(served, old_spec, old_profile)
            except CloverError as worse:
                self._report_stuck(release, f"{error}; the stable version did not start again either: {worse}")
                return "stuck", ""
            return "failed", f"its workers did not start in the place of the stable ones: {error}"
        return "promoted", ""

    def _report_stuck(self, one: RollOut, why: str) -> None:
        """Record that a promotion failed and could not be undone."""
        one.phase, one.why = "failed", why
        self.counts["failed"] += 1
        self._record(one, "failed", f"{why}: the workers that tried the new version go on serving it")

    def _restore(self, release: RollOut) -> None:
        """Have all requests go to the family's own workers again."""
        if release.split is not None:
            release.split.share = release.split.paired = 0.0
            release.split.closed_reason = _OVER
        versions = [f"{release.name}@{version}" for version in (release.stable.version, release.spec.version)]
        self._families.lead({release.name: self._families.own_model(release.name)}, nowhere=versions)
        self._thaw(release)

    def _thaw(self, release: RollOut) -> None:
        """Leave the plan of the family as free as it was."""
        family = self._controller.context.families.get(release.name)
        if family is not None and release.frozen is not None:
            family.frozen, family.trial = release.frozen, ""

    async def _settle(self, release: RollOut) -> None:
        """Wait until every request that came through the split has its answer, at most as long as a drain."""
        end_s = time.monotonic() + self._config.limits.drain_s
        while release.split is not None and release.split.waiting and time.monotonic() < end_s:
            await asyncio.sleep(_SETTLE_STEP_S)

    async def _clear(self, one: RollOut) -> None:
        """End the workers of the version that was tried, and free what it held."""
        new = one.served
        if one.split is None:
            self._thaw(one)
        if new is None:
            return
        new.fleet.closing = True
        await self._loading.retire(new, _OVER)
        for item in one.deployment:
            try:
                await self._controller.context.instances.release(new.name, item.placement)
            except CloverError as error:
                log.warning("%s: %s", new.name, error)
        await self._forget(new.name)
        self._families.drop(new)
        one.served = None

    def _over(self, release: RollOut) -> None:
        release.last, release.split = (
            release.report(time.monotonic()),
            None,
        )  # which holds the rows of both versions in memory
        self._active.pop(release.name, None)
        self._last[release.name] = release
        if release.phase in self.counts:
            self.counts[release.phase] += 1

    def _record(self, release: RollOut, action: str, detail: str, seconds: float = 0.0) -> None:
        """Record a decision about a roll-out; the ledger takes it from there."""
        context = self._controller.context
        family = context.families.get(release.name)
        context.decisions.record(
            DecisionEntry(
                family=release.name,
                trigger=f"roll-out of version {release.spec.version}",
                mode=context.mode_of(family) if family is not None else context.mode,
                action=action,
                grid_s=context.grid.now(),
                detail=detail,
                seconds=seconds,
                operator=release.operator,
            )
        )
        log.log(logging.INFO if action != "failed" else logging.WARNING, "%s: %s", release.name, detail)


def limits_of(settings: RolloutConfig) -> ReleaseLimits:
    """Return the limits of the tests, with those that `settings` give."""
    return ReleaseLimits(risk=settings.risk / 100.0, max_s=settings.max_s)


def paired_part(share: float) -> float:
    """Return the part of the stable version's requests that a new one with `share` of all requests answers too."""
    return min(PAIRED, (1.0 - 2.0 * share) / (1.0 - share))


def _text(given: dict[str, Any], key: str) -> str:
    """Take a text out of the arguments of a command; empty if it is not among them.  Raises BadRequest."""
    value = given.pop(key, "")
    if not isinstance(value, str):
        raise BadRequest(f"{key} is a string")
    return value
