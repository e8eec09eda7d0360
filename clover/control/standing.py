"""What operators have changed and what still holds, as the commands that make another controller hold it too."""

from __future__ import annotations

from typing import Any

import msgspec

from clover.control.context import Context
from clover.control.family import Family, default_targets
from clover.control.request import Pin
from clover.types import Record


class StandingCommand(Record, frozen=True, kw_only=True):
    """A command of `Control.command`, with its arguments."""

    verb: str
    arguments: dict[str, Any]


def standing_commands(context: Context) -> tuple[StandingCommand, ...]:
    """Return the commands that lead from the configuration to what is in force: modes, targets, pins, freezes."""
    found: list[StandingCommand] = []
    if context.mode != context.config.mode:
        found.append(StandingCommand(verb="set", arguments={"mode": context.mode}))
    for family in context.families.values():
        if changed := _changed(family, context):
            found.append(StandingCommand(verb="set", arguments={"model": family.name, **changed, "force": True}))
    for family in context.families.values():
        if (command := _pinned(family)) is not None:
            found.append(command)
    for family in context.families.values():
        if family.frozen:
            found.append(StandingCommand(verb="freeze", arguments={"model": family.name, "on": True}))
    if context.frozen:
        found.append(StandingCommand(verb="freeze", arguments={"on": True}))
    return tuple(found)


def _changed(family: Family, context: Context) -> dict[str, Any]:
    """Return the targets and the mode of a family that its configuration does not give."""
    own, given = family.targets, default_targets(family.profile, family.config, context.config)
    pairs = {
        "accuracy_floor": (own.accuracy_floor, given.accuracy_floor),
        "slo_ms": (own.slo_ms, given.slo_ms),
        "objective": (own.form, given.form),
        "lambda": (own.lam, given.lam),
    }
    found: dict[str, Any] = {key: now for key, (now, before) in pairs.items() if now != before}
    if family.mode is not None and family.mode != ("off" if family.config.variant else None):
        found["mode"] = family.mode
    return found


def _pinned(family: Family) -> StandingCommand | None:
    """Return the command that pins a family as it is, or lifts the pin of its configuration; None if neither."""
    pin, variant = family.pin, family.config.variant
    given = Pin(policy=f"static:{variant}") if variant else None
    if (pin is None) == (given is None) and (pin is None or given is None or pin.policy == given.policy):
        return None
    arguments: dict[str, Any] = {"model": family.name}
    if pin is not None and pin.policy == "base":
        return StandingCommand(verb="base", arguments=arguments)
    if pin is None:
        return StandingCommand(verb="pin", arguments={**arguments, "variant": None})
    if pin.configuration is not None:
        groups = msgspec.to_builtins(pin.configuration)
        return StandingCommand(verb="pin", arguments={**arguments, "configuration": groups, "force": True})
    name = pin.policy.removeprefix("static:")
    return StandingCommand(verb="pin", arguments={**arguments, "variant": name, "force": True})
