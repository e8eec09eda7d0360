"""What the page is sent: all that it shows, and not much more."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest

from clover.dashboard import snapshot
from clover.types import Reading
from tests.support.control_fixture import Rig

JOULES = {"active": 30.0, "front_end": 2.0, "control": 3.0, "idle": 12.0, "idle_no_request": 8.0, "unowned": 9.0}
JOULES |= {"awake": 0.0, "foreign": 20.0, "unattributed": 10.0, "carried": 6.0, "waiting": 0.0}
TOTALS: dict[str, Any] = {
    "pue": 1.5,
    "saved": {
        "since_s": 5.0,
        "rows": 200,
        "known": "modelled; within the server",
        "base": {"against": "BASE: large", "words": "saved 1 g", "grams": 1.0, "low": -0.5, "high": 2.5, "part": 0.2,
                 "accuracy_given_up": 0.3},
        "matched": None,
    },
    "sci": {"operational_g": 4.0, "embodied_g": 1.0, "words": "5 g", "methods": {"grams": "modelled"}},
    "models": {
        "toy": {
            "state": "READY",
            "carbon_g": 4.0,
            "rows": {"small": 90, "large": 110},
            "requests": {"200": 200, "429": 3},
            "accuracy_by_labels": {"accuracy": 91.0, "rows": 40},
            "restarts": 1,
            "workers": [{"placement": "cpu0:1c@0", "device": "cpu0", "profile": "1c", "start": 0, "size": 1,
                         "variant": "small", "backend": "eager", "pid": 7, "state": "ready", "routed": True,
                         "restarts": 1, "rows": 90, "overruns": 0, "ready_s": 1.0, "busy_s": 0.25}],
            "events": [{"event": str(number)} for number in range(20)],
        },
        "plain": {"state": "READY", "rows": {}, "requests": {}, "workers": [], "events": [], "restarts": 0},
    },
    "devices": {"cpu0": {"watts": 12.5, "idle_w": 4.0, "measured_j": 100.0, "total_g": 9.0, "method": "modelled",
                         "intensity": "synthetic", "meter": "no counter",
                         **{f"{line}_j": joules for line, joules in JOULES.items()},
                         **{f"{line}_g": joules / 16.0 for line, joules in JOULES.items()}}},
}  # fmt: skip


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    async def story() -> dict[str, Any]:
        made = Rig(policy="budget", family={"accuracy_floor": 89.0, "accuracy_budget": 1.0})
        await made.deploy()
        return {**made.controller.state(), "totals": TOTALS}

    return asyncio.run(story())


@pytest.fixture
def shown(state: dict[str, Any]) -> dict[str, Any]:
    return snapshot.overview(state, {"toy": [1.0, 2.0, 3.0]}, 360.0)


def test_the_message_is_a_fraction_of_the_state_and_plain_json(state: dict[str, Any], shown: dict[str, Any]) -> None:
    message = orjson.dumps(shown)
    assert json.loads(message) == json.loads(json.dumps(shown)), "no NaN, no objects"
    assert len(message) < 0.7 * len(orjson.dumps(state, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS))


def test_a_meter_that_gives_no_new_reading_has_no_watts_and_the_rest_is_shown(state: dict[str, Any]) -> None:
    line = {key: value for key, value in TOTALS["devices"]["cpu0"].items() if key != "watts"}
    shown = snapshot.overview({**state, "totals": {**TOTALS, "devices": {"cpu0": line}}}, {}, None)
    assert (shown["emission"]["watts"], shown["emission"]["joules"]) == (None, 64.0)
    assert [one["watts"] for one in shown["devices"] if one["device"] == "cpu0"] == [None]


def test_what_is_emitted_stands_with_how_it_is_known(shown: dict[str, Any]) -> None:
    emission = shown["emission"]
    assert (emission["watts"], emission["grams_per_hour"], emission["grams"]) == (12.5, 360.0, 4.0)
    assert emission["joules"] == 64.0, "of the server, as its grams, and not of all that the meter saw"
    assert (emission["energy"], emission["intensity"], emission["grams_method"]) == (
        "modelled", "synthetic", "modelled",
    )  # fmt: skip


def test_each_comparison_has_its_interval_and_one_that_is_not_known_is_left_out(shown: dict[str, Any]) -> None:
    (item,) = shown["saved"]["items"]
    assert (item["kind"], item["grams"], item["low"], item["high"]) == ("base", 1.0, -0.5, 2.5)
    assert shown["saved"]["known"] == "modelled; within the server"


def test_a_model_has_targets_budget_latency_and_workers(shown: dict[str, Any]) -> None:
    toy = shown["models"]["toy"]
    assert toy["latency_ms"] == [1.0, 2.0, 3.0]
    assert toy["budget"]["points"] == 1.0
    assert toy["accuracy_floor"] == 89.0 <= toy["budget"]["target"]
    assert toy["accuracy_by_labels"] == 91.0
    assert toy["workers"][0]["busy_s"] == 0.25
    assert [event["event"] for event in toy["events"]] == [str(number) for number in range(14, 20)]
    assert toy["planned"]


def test_a_model_without_a_plan_is_there_with_what_is_known(shown: dict[str, Any]) -> None:
    plain = shown["models"]["plain"]
    assert not plain["planned"]
    assert plain["latency_ms"] == [None, None, None]
    assert plain["slo_ms"] is None


def test_before_anything_was_counted_the_message_is_whole(state: dict[str, Any]) -> None:
    bare = {**state, "totals": {}, "intensity": None}
    shown = snapshot.overview(bare, {}, None)
    assert shown["emission"]["watts"] is None
    assert shown["saved"] is shown["carbon"] is None
    assert "the intensity of the grid is not known" in shown["troubles"]
    unread = {**state, "totals": {**TOTALS, "devices": {"cpu0": {"method": "modelled"}}}}
    assert snapshot.overview(unread, {}, None)["emission"]["watts"] is None, "no meter was read yet"
    assert snapshot.sample(1.0, shown)["g_per_kwh"] is None


def test_a_sample_has_the_figures_of_the_charts_by_model(shown: dict[str, Any]) -> None:
    sample = snapshot.sample(12.34, shown)
    assert sample["at"] == 12.3
    assert (sample["toy.p95"], sample["toy.floor"], sample["watts"]) == (2.0, 89.0, 12.5)


def test_a_decision_is_brief_and_says_what_ran_and_why() -> None:
    async def story() -> Any:
        made = Rig()
        await made.deploy()
        return made.controller.context.decisions.records(1)[0]

    record = asyncio.run(story())
    brief = snapshot.decision(record)
    assert brief["reason"] == record.plan.reason
    assert "@" in brief["runs"]
    assert brief["g_per_kwh"] == record.inputs["intensity_g_per_kwh"]
    assert "candidates" not in brief


def test_a_forecast_is_thinned_and_begins_now() -> None:
    readings = [Reading(g_per_kwh=float(n), at_s=300.0 * n, provider="p", step_s=300.0) for n in range(1200)]
    found = snapshot.forecast(readings, [(0.0, 5.0), (3600.0, float("nan"))], 6000.0)
    assert found["past"] == [(0, 5.0)]
    assert found["ahead"][0][0] == 6000
    assert len(found["ahead"]) <= 100
    assert found["ahead"][-1][0] < 6000 + 48 * 3600
