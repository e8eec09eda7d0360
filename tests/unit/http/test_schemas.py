"""What the OpenAPI document says of bodies and of the state is what the server takes and gives."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from clover.http.api import openapi
from tests.support.http_fakes import echo_family
from tests.support.savings_fixture import SavingServer, drive

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")

SCHEMAS = openapi.build({"echo": echo_family()}, "1")["components"]["schemas"]
LINES = {"measured_j": 100.0, "rest_j": 93.0, "carried_j": -3.0, "method": "modelled"}
ORDER = {"action": "follow", "cluster": "c", "node": "n", "epoch": 1, "lease_s": 5.0}


def violations(schema: dict[str, Any], value: Any) -> list[str]:
    """Return what a schema, which may refer to those of the document, finds wrong with a value."""
    validator = jsonschema.Draft202012Validator(schema | {"components": {"schemas": SCHEMAS}})
    return [f"{error.json_path}: {error.message[-200:]}" for error in validator.iter_errors(value)]


def test_the_state_is_as_its_schema_says() -> None:
    async def story() -> None:
        rig = SavingServer(policy="base", ratio=1.0)
        await rig.deploy()
        await rig.serve({"large": 1.0}, 30)
        state = json.loads(msgspec.json.encode(rig.controller.state(lambda: {"devices": {"cpu0": LINES}})))
        (model,) = state["models"].values()
        assert model["saved"]["matched"]["rows"] == 30 * 50
        assert state["idle"]["cores"] > 0
        assert violations({"$ref": "#/components/schemas/State"}, state) == []

    drive(story)


@pytest.mark.parametrize(
    ("verb", "body", "valid"),
    [
        ("cluster", {"action": "status"}, True),
        ("cluster", {"action": "leave", "dry_run": True}, True),
        ("cluster", {"action": "leave", "model": "echo"}, False),  # of the whole server
        ("cluster", ORDER | {"models": {"echo": {"rate": 1.0, "accuracy": 90.0}}}, True),
        ("cluster", ORDER | {"models": {"other": {"rate": 1.0, "accuracy": 90.0}}}, False),
        ("cluster", ORDER | {"models": {"echo": {"rate": 1.0, "accuracy": 90.0, "more": 1}}}, False),
        ("cluster", {"action": "follow"}, False),
        ("roll-out", {"action": "status"}, True),
        ("roll-out", {"action": "status", "percent": 5.0}, False),
        ("roll-out", {"folder": "echo-2", "percent": 5.0, "risk": 2.0}, True),
        ("roll-out", {"folder": "echo-2", "percent": 90.0}, False),
        ("roll-out", {"folder": "echo-2", "action": "promote"}, False),
        ("roll-out", {"model": "echo"}, False),
        ("set", {"mode": "off"}, True),
        ("set", {}, False),
    ],
)
def test_bodies_of_commands_are_what_the_commands_take(verb: str, body: dict[str, Any], valid: bool) -> None:
    found = violations(SCHEMAS[f"Command_{verb}"], body)
    assert (found == []) is valid, found


@pytest.mark.parametrize(("asked", "valid"), [(0, True), (90, True), (1.5, True), (0.9, False), (1, False)])
def test_an_accuracy_is_in_percent_not_a_fraction(asked: float, valid: bool) -> None:
    found = violations(SCHEMAS["Infer_echo"]["properties"]["parameters"], {"clover_min_accuracy": asked})
    assert (found == []) is valid, found
