"""Carries out the commands of an operator (`clover.verbs`) and records each as a decision.

An operator's change is applied in every mode.  Two changes are refused, and a refused command changes nothing:

- a loss of capacity that the configuration does not allow;
- without `force: true`, a plan that is predicted to break the accuracy floor or the SLO (`clover.control.plan.gate`).

The second rule is for what the operator chose: a pin, or an `apply` or `set` that says what to plan with.  It never
refuses what an operator has left when something goes wrong: BASE (the answer says what it breaks), lifting a pin, an
`apply` without arguments (the controller's own plan), and a `set` that makes no limit stricter.

A command that is answered is in force; a command that raises an error is not.  If no plan can be made yet for what
`set` changed, the change is in force all the same: `warnings` say why, and the controller keeps trying.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from clover.control.plan.executor import Executor
from clover.control.plan.gate import FORCE, breaches, is_stricter, stricter
from clover.control.plan.planner import Planner
from clover.control.state.context import Context
from clover.control.state.decisions import NOT_DONE, DecisionEntry
from clover.control.state.family import Family, Mode
from clover.control.state.request import Pin, PlanRequest, Targets
from clover.control.state.sleep import spared_w
from clover.control.watch.devices import DeviceWatch
from clover.errors import BadRequest, CloverError, Conflict, PlanError, PolicyFault
from clover.hints import did_you_mean
from clover.planning.model.cores import holding
from clover.planning.model.problem import accuracies, services_of
from clover.planning.transition.layout import lay_out_shared
from clover.runtime.guard.guard import ALARM_LEVELS
from clover.types import Configuration, Decision, GroupCount, Plan, State, words_of
from clover.verbs import (
    TARGETS,
    ApplyCommand,
    BaseCommand,
    FreezeCommand,
    GuardCommand,
    PinCommand,
    PlanCommand,
    SetCommand,
    given,
    read,
)

log = logging.getLogger("clover.control")

_TARGET_NAMES = {"accuracy_floor": "accuracy_floor", "slo_ms": "slo_ms", "lam": "lambda", "form": "objective"}
_MOVING = (FreezeCommand, PinCommand, BaseCommand, ApplyCommand)
"""Commands after which a family may run another plan, or keeps the one that it has."""


class Review:
    """Judges the plan that an operator's change leads to.  A plan that is predicted to break `targets` is refused,
    unless `force` is given or the change is `harmless`; a dry run only says so.  Afterwards `refused` or `forced` is
    true."""

    def __init__(self, targets: Targets, *, force: bool, dry_run: bool, harmless: bool = False) -> None:
        self.refused = False
        self.forced = False
        self._targets = targets
        self._force = force
        self._dry_run = dry_run
        self._harmless = harmless

    def __call__(self, state: State, plan: Plan) -> tuple[bool, str]:
        """Return whether the plan is refused, and why, or what to note of it."""
        why = breaches(plan, self._targets, state.objective.max_utilisation)
        if not why:
            return False, ""
        if self._harmless:
            return False, f"BASE does not hold the targets either: {why}"
        if self._force:
            self.forced = True
            return False, f"forced: {why}"
        if self._dry_run:
            return False, f"would be refused: {why}; {FORCE}"
        self.refused = True
        return True, f"{why}; nothing was changed; {FORCE}"


class Commands:
    """Carries out the commands of operators, one at a time and never during a poll."""

    def __init__(self, context: Context, planner: Planner, executor: Executor, device_watch: DeviceWatch) -> None:
        self._context = context
        self._planner = planner
        self._executor = executor
        self._device_watch = device_watch

    async def run(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """Carry out the command `verb` and return its answer.  BadRequest if the arguments make no sense, PlanError if
        it cannot be done, Conflict if it would break the targets and is not forced."""
        asked = read(verb, arguments)
        operator = operator or "operator"
        async with self._context.lock:
            await self._context.read_grid()
            await self._device_watch.poll()
            everything = isinstance(asked, FreezeCommand) and asked.on is True and asked.model is UNSET
            if isinstance(asked, _MOVING) and not asked.dry_run and not everything:
                self._check_trials(asked.model)
            match asked:
                case FreezeCommand():
                    return self._freeze(asked, operator)
                case GuardCommand():
                    return self._guard(asked, operator)
                case SetCommand():
                    return await self._set(asked, operator)
                case PinCommand():
                    family = self._family(asked.model)
                    pin = self._pin_of(family, asked)
                    return await self._pin(verb, family, pin, operator, force=asked.force, dry_run=asked.dry_run)
                case BaseCommand():
                    family = self._family(asked.model)
                    return await self._pin(verb, family, Pin(policy="base"), operator, dry_run=asked.dry_run)
                case PlanCommand():
                    return await self._plan(verb, asked, operator)
            raise AssertionError(verb)

    # --- verbs --------------------------------------------------------------------------------------------------------

    async def _pin(
        self, verb: str, family: Family, pin: Pin | None, operator: str, *, force: bool = False, dry_run: bool
    ) -> dict[str, Any]:
        before = family.pin
        review = None
        if pin is not None:
            review = Review(family.targets, force=force, dry_run=dry_run, harmless=verb == "base")
        request = PlanRequest(
            trigger=f"operator: {verb}",
            operator=operator,
            force=True,
            dry_run=dry_run,
            pin=pin or Pin(policy=self._context.config.policy),
            review=review,
        )
        decision = await self._request(family, request, review)
        if not dry_run and decision.action not in NOT_DONE:
            family.pin = replace(pin, forced=review is not None and review.forced) if pin is not None else None
            log.info("%s: pin from %s to %s by %s", family.name, _pin_name(before), _pin_name(family.pin), operator)
            if pin is None and before is not None and family.config.variant:
                family.mode = None  # a family pinned by its configuration comes under control when the pin is lifted
        return self._answer(family, decision)

    async def _plan(self, verb: str, asked: PlanCommand, operator: str) -> dict[str, Any]:
        family = self._family(asked.model)
        dry_run = asked.dry_run or not isinstance(asked, ApplyCommand)
        pin = review = None
        if asked.configuration not in (UNSET, None):
            pin = Pin(configuration=self._configuration(family, asked.configuration))
        targets = _targets(family, asked)
        if asked.chooses:
            # What is given holds for one plan only, so that what is promised meanwhile counts too.
            force = isinstance(asked, ApplyCommand) and asked.force
            review = Review(stricter(targets, family.targets), force=force, dry_run=dry_run)
        request = PlanRequest(
            trigger=f"operator: {verb}",
            operator=operator,
            force=True,
            dry_run=dry_run,
            pin=pin,
            targets=targets,
            g_per_kwh=_number(asked.intensity_g_per_kwh),
            rate=_number(asked.arrival_rate),
            review=review,
        )
        return self._answer(family, await self._request(family, request, review))

    def _freeze(self, asked: FreezeCommand, operator: str) -> dict[str, Any]:
        on, families = asked.on is True, self._families(asked.model)
        if not asked.dry_run:
            if asked.model is UNSET:
                self._context.frozen = on
            for family in families:
                if asked.model is not UNSET or not on:
                    family.frozen = on
                if not on:
                    family.triggers.again(self._context.monotonic())
        self._record("freeze", families, f"on: {str(on).lower()}", operator, _done(asked.dry_run))
        return {"frozen": on, "models": [family.name for family in families], "dry_run": asked.dry_run}

    def _guard(self, asked: GuardCommand, operator: str) -> dict[str, Any]:
        if not (families := self._families(asked.model)):
            self._refuse_unplanned(self._context.unplanned)
        before = {family.name: ALARM_LEVELS[family.alarm_level] for family in families}
        if not asked.dry_run:
            for family in families:
                family.fleet.reset_guard()
                family.observe(self._context.monotonic())
                family.triggers.again(self._context.monotonic())
        self._record("guard", families, "reset; it was " + ", ".join(before.values()), operator, _done(asked.dry_run))
        return {"reset": True, "before": before, "dry_run": asked.dry_run}

    async def _set(self, asked: SetCommand, operator: str) -> dict[str, Any]:
        families = self._families(asked.model)
        force, dry_run, mode = asked.force, asked.dry_run, asked.mode or None
        every, some = asked.model is UNSET, given(asked, TARGETS)
        if some and not families:
            self._refuse_unplanned(self._context.unplanned)
        targets = {family.name: _targets(family, asked) for family in families}
        changed = ", ".join(f"{key}: {value}" for key, value in given(asked, asked.changes).items())
        reviews = {
            family.name: Review(targets[family.name], force=force, dry_run=dry_run)
            for family in families
            if is_stricter(family.targets, targets[family.name])
        }
        if not dry_run:
            if not force:
                await self._foresee(families, targets, reviews, operator)
            for family in families:
                self._log_targets(family, targets[family.name], mode, operator)
                family.targets = targets[family.name]
                if mode is not None and not every:
                    family.mode = mode
            if mode is not None and every:
                self._context.mode = mode
                for family in families:
                    family.mode = None
        noted = f"{changed} (forced)" if force else changed
        self._record("set", families, noted, operator, _done(dry_run))
        answers, warnings = {}, []
        for family in families:
            held = self._context.frozen_of(family) or self._context.mode_of(family) == "off"
            if dry_run or (not held and some):
                review = reviews.get(family.name) if dry_run or force else None  # else it was reviewed above
                request = PlanRequest(
                    trigger="operator: set",
                    operator=operator,
                    # In mode observe the new plan is recorded, as that mode asks for; every other command acts.
                    force=not dry_run and self._context.mode_of(family) != "observe",
                    dry_run=dry_run,
                    targets=targets[family.name],
                    review=review,
                )
                try:
                    answers[family.name] = self._answer(family, await self._request(family, request, review))
                except CloverError as error:
                    if dry_run:
                        raise
                    warnings.append(f"{family.name}: it is in force, but no plan for it runs yet: {error}")
            elif not held:
                family.triggers.again(self._context.monotonic())
        return {"set": changed, "dry_run": dry_run, "models": answers, "warnings": warnings}

    # --- helpers ------------------------------------------------------------------------------------------------------

    async def _foresee(
        self, families: list[Family], targets: dict[str, Targets], reviews: dict[str, Review], operator: str
    ) -> None:
        """Raise Conflict if one of `families` could not keep its new targets.  It is asked before any of them has
        changed, and also in modes that make no plan."""
        for family in families:
            review = reviews.get(family.name)
            if review is None:
                continue
            family.observe(self._context.monotonic())
            try:
                request = PlanRequest(trigger="operator: set", targets=targets[family.name])
                state, plan = await self._planner.propose(family, request)
            except CloverError as error:
                self._record("set", [family], str(error), operator, "refused")
                raise
            refused, why = review(state, plan)
            if refused:
                self._record("set", [family], why, operator, "refused")
                raise Conflict(f"{family.name}: {why}")

    async def _request(self, family: Family, request: PlanRequest, review: Review | None) -> Decision:
        """Have a request planned and carried out.  Conflict if its review refused the plan, PlanError if it failed."""
        decision = await self._planner.plan_and_apply(family, request)
        if review is not None and review.refused:
            raise Conflict(f"{family.name}: {decision.detail}")
        if decision.action in NOT_DONE:
            kind = PolicyFault if decision.action == "fault" else PlanError
            raise kind(f"{decision.action}: {decision.detail}")
        return decision

    def _answer(self, family: Family, decision: Decision) -> dict[str, Any]:
        out: dict[str, Any] = {"model": family.name, "decision": msgspec.to_builtins(decision)}
        if decision.plan is not None:
            out["plan"] = msgspec.to_builtins(decision.plan)
            if decision.action == "dry run":
                transition = family.transition = self._executor.transition(family, decision.plan.deployment)
                out["transition"] = {**msgspec.to_builtins(transition), "holds": transition.holds}
        out["dry_run"] = decision.action == "dry run"
        return out

    def _record(self, verb: str, families: Iterable[Family], detail: str, operator: str, action: str) -> None:
        """Record a command that makes no plan of its own."""
        context = self._context
        for family in families:
            entry = DecisionEntry(
                family=family.name,
                trigger=f"operator: {verb}",
                mode=context.mode_of(family),
                action=action,
                grid_s=context.grid.now(),
                detail=detail,
                operator=operator,
            )
            context.decisions.record(entry)
            log.info("%s: %s %s by %s: %s", family.name, verb, action, operator, detail)

    def _log_targets(self, family: Family, targets: Targets, mode: Mode | None, operator: str) -> None:
        """Log what `set` changes, with the old and the new value."""
        old, new = vars(family.targets), vars(targets)
        changed = [f"{_TARGET_NAMES[key]} from {old[key]} to {new[key]}" for key in old if old[key] != new[key]]
        if mode is not None and mode != self._context.mode_of(family):
            changed.append(f"mode from {self._context.mode_of(family)} to {mode}")
        if changed:
            log.info("%s: %s by %s", family.name, ", ".join(changed), operator)

    def _check_trials(self, model: str | UnsetType) -> None:
        """Raise Conflict if another plan would move a family beside which a new version is being tried."""
        for family in self._families(model):
            if family.trial:
                raise Conflict(
                    f"version {family.trial} of {family.name} is being rolled out, and the plan stays meanwhile, so "
                    "that nothing but the version differs: promote it or roll it back first"
                )

    def _family(self, model: str | UnsetType) -> Family:
        families = self._families(model)
        if not families:
            self._refuse_unplanned(self._context.unplanned)
        if len(families) != 1:
            raise BadRequest(f"say which model: {', '.join(self._context.families)}")
        return families[0]

    def _families(self, model: str | UnsetType) -> list[Family]:
        known = self._context.families
        if model is UNSET:
            return list(known.values())
        if isinstance(model, str) and model in self._context.unplanned and model not in known:
            self._refuse_unplanned([model])
        if not isinstance(model, str) or model not in known:
            hint = did_you_mean(model, known) if isinstance(model, str) else ""
            raise BadRequest(f"unknown model {model!r}, known: {', '.join(known)}{hint}")
        return [known[model]]

    @staticmethod
    def _refuse_unplanned(names: Iterable[str]) -> None:
        """Raise Conflict for models that have no plan which a command could change."""
        if listed := ", ".join(names):
            raise Conflict(f"{listed}: served without a plan, as there is no profile; `ctl state` says why")
        raise Conflict("no model is loaded")

    def _pin_of(self, family: Family, asked: PinCommand) -> Pin | None:
        if asked.configuration is not UNSET:
            return Pin(configuration=self._configuration(family, asked.configuration))
        variant = asked.variant
        if variant is None:
            return None
        known = accuracies(family.profile)
        if not known:
            raise BadRequest(f"{family.name} has no profile, so nothing but its configured variant can be pinned")
        if not isinstance(variant, str) or variant not in known:
            hint = did_you_mean(variant, known) if isinstance(variant, str) else ""
            raise BadRequest(f"unknown variant {variant!r}, known: {', '.join(known)}{hint}")
        return Pin(policy=f"static:{variant}")

    def _configuration(self, family: Family, asked: Any) -> Configuration:
        measured = services_of(family.profile)
        variants, profiles = sorted({v for v, _ in measured}), sorted({p for _, p in measured})
        most = family.config.most_resident(len(family.spec.variants))
        counts: dict[tuple[str, str, tuple[str, ...]], int] = {}
        for group in _groups(asked):
            profile = group.profile
            for variant in group.variants:
                if variant not in variants:
                    hint = did_you_mean(variant, variants)
                    raise BadRequest(f"unknown variant {variant!r}, known: {', '.join(variants)}{hint}")
                if (variant, profile) not in measured:
                    known = ", ".join(profiles)
                    raise BadRequest(f"{variant} was not measured on {profile!r}, known profiles: {known}")
            first, *others = sorted(set(group.variants))
            if len(others) >= most:
                bound = f"{most} variants at most" if most > 1 else "one variant"
                raise BadRequest(f"a worker of {family.name} holds {bound} (its setting resident), not {group.words}")
            key = (first, profile, tuple(others))
            counts[key] = counts.get(key, 0) + group.count
        configuration = tuple(
            GroupCount(variant=v, profile=p, beside=b, count=n) for (v, p, b), n in sorted(counts.items())
        )
        devices = holding(self._context.devices_of(family.name), configuration)
        least = 1 if spared_w(devices) is not None else len(devices)  # GPUs that may be parked need not be filled
        why = ""
        for number in range(least, len(devices) + 1):
            try:
                placed = devices[:number]
                lay_out_shared(configuration, family=family.name, backend=family.profile.backend, devices=placed)
                return configuration
            except PlanError as error:
                why = str(error)
        raise BadRequest(why or f"no device is left for {family.name}{self._context.lost_suffix()}")


def _pin_name(pin: Pin | None) -> str:
    """Return what a family is pinned to, in words for the log."""
    if pin is None:
        return "none"
    return pin.policy or words_of(pin.configuration or ())


def _done(dry_run: bool) -> str:
    return "dry run" if dry_run else "applied"


def _groups(configuration: Any) -> list[GroupCount]:
    form = (
        'a configuration is {"small@1c": 2} or [{"variant": "small", "profile": "1c", "count": 2}], of workers that '
        'share their time {"large/small@1c": 2}'
    )
    groups: list[GroupCount] = []
    if isinstance(configuration, dict):
        for key, count in configuration.items():
            variant, at, profile = str(key).rpartition("@")
            if not at or type(count) is not int:
                raise BadRequest(form)
            first, *others = variant.split("/")
            groups.append(GroupCount(variant=first, profile=profile, count=count, beside=tuple(others)))
    else:
        try:
            groups = msgspec.convert(configuration, list[GroupCount])
        except msgspec.ValidationError as error:
            raise BadRequest(f"{form}: {error}") from error
    if not groups or not all(1 <= group.count <= 100_000 for group in groups):
        raise BadRequest(f"{form}, with counts of at least 1")
    return groups


def _targets(family: Family, asked: PlanCommand | SetCommand) -> Targets:
    """Return the targets of a family, with those that the command sets."""
    targets = family.targets
    floor, slo_ms = _number(asked.accuracy_floor), _number(asked.slo_ms)
    best = max(accuracies(family.profile).values(), default=0.0)
    if floor is not None and floor > best:
        raise BadRequest(f"accuracy_floor {floor:g} is above the best variant's {best:.2f} %")
    if floor is not None:
        targets = replace(targets, accuracy_floor=floor)
    if slo_ms is not None:
        targets = replace(targets, slo_ms=slo_ms)
    if asked.objective:
        targets = replace(targets, form=asked.objective)
    if asked.lam is not UNSET:
        targets = replace(targets, lam=_number(asked.lam))
    return targets


def _number(value: float | UnsetType | None) -> float | None:
    """Return a number that is given as a float; None if it is not given."""
    return None if value is None or value is UNSET else float(value)
