"""The commands of an operator as structs: what a server, `/openapi.json` and `ctl` take follows from them."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from clover import verbs
from clover.config import ControllerConfig
from clover.control.state.family import Mode
from clover.errors import BadRequest


def test_a_command_has_what_was_given_as_it_was_given() -> None:
    asked = verbs.read("set", {"slo_ms": 20, "lambda": None, "model": "toy"})
    assert isinstance(asked, verbs.SetCommand)
    assert (asked.slo_ms, asked.lam, asked.accuracy_floor) == (20, None, msgspec.UNSET)
    assert verbs.given(asked, asked.changes) == {"slo_ms": 20, "lambda": None}


@pytest.mark.parametrize(
    ("verb", "given", "text"),
    [
        ("pni", {}, "unknown command 'pni' (did you mean pin?)"),
        (
            "freeze",
            {"of": True},
            "freeze has no argument 'of', known: on, model, dry_run",
        ),
        (
            "set",
            {"more": 1},
            "set has no argument 'more', known: model, mode, accuracy_floor, slo_ms, lambda, objective, force, dry_run",
        ),
        ("set", {"mode": None}, "set changes one of accuracy_floor, slo_ms, lambda, objective, mode"),
        ("set", {"mode": "on"}, "mode is one of off, observe, active, not 'on'"),
        ("plan", {"lambda": 2}, "lambda lies between 0 and 1, but is 2"),
        ("plan", {"slo_ms": True}, "slo_ms is a number, not True"),
        ("set", {"accuracy_floor": 0.9}, "accuracy_floor 0.9 is in percent: for 90 % it is 90, not 0.9"),
        ("plan", {"dry_run": None}, "dry_run is true or false, not None"),
        ("guard", {"reset": 1}, "guard takes reset: true"),
        ("freeze", {}, "freeze takes on: true or on: false"),
        ("pin", {}, "pin takes either variant or configuration; variant: null lifts the pin"),
    ],
)
def test_what_makes_no_sense_is_said(verb: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRequest) as raised:
        verbs.read(verb, given)
    assert raised.value.message.startswith(text)


def test_an_apply_chooses_if_it_says_what_to_plan_with() -> None:
    chooses = {}
    for given in ({}, {"lambda": None}, {"model": "toy", "force": True}, {"arrival_rate": 0}, {"configuration": {}}):
        asked = verbs.read("apply", given)
        assert isinstance(asked, verbs.ApplyCommand)
        chooses[str(given)] = asked.chooses
    assert list(chooses.values()) == [False, False, False, True, True]


def test_modes_are_those_of_the_controller() -> None:
    assert get_args(verbs.Mode) == get_args(Mode)
    for mode in get_args(verbs.Mode):
        assert msgspec.convert({"mode": mode}, ControllerConfig).mode == mode


@pytest.mark.parametrize("command", verbs.VERBS.values())
def test_every_command_says_what_it_is_for(command: type[verbs.Command]) -> None:
    assert command.help
    assert command.body.endswith(".")
    assert set(command.required) <= set(verbs.arguments(command))
