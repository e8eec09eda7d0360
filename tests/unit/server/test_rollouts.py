"""How a roll-out ends, with everything that it steers made up: also where workers do not start."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from clover.config import FamilyConfig, LimitsConfig, RolloutConfig, ServerConfig
from clover.errors import BadRequest, Conflict, Unavailable, WorkerError
from clover.runtime.guard.release import ReleaseLimits, ReleaseTests, ReleaseVerdict
from clover.runtime.split import ServedVersion, VersionSplit
from clover.server.life import Life
from clover.server.rollout_files import RolloutFiles
from clover.server.rollouts import RollOut, RollOuts, limits_of, paired_part
from clover.server.server import Server
from tests.support.control_fixture import Rig
from tests.support.router_fixture import House, family


class Scene:
    """A server with one model, of which version 2 is being tried; `failures`: whether workers in the place of others
    do not start, one start after the other."""

    def __init__(self, *failures: bool) -> None:
        self.rig = Rig()
        self.failures = list(failures)
        self.replaced: list[str] = []
        self.retired: list[str] = []
        self.dropped: list[str] = []
        stable, new = House(), House(msgspec.structs.replace(family(), version="2"))
        self.stable = SimpleNamespace(
            name="toy", spec=stable.spec, profile=None, router=stable.router, config=FamilyConfig(family="toy")
        )
        self.new = SimpleNamespace(
            name="toy@2", spec=new.spec, profile=None, router=new.router, fleet=SimpleNamespace(closing=False)
        )
        tests = ReleaseTests(ReleaseLimits(), 0.0)
        self.split = VersionSplit(
            ServedVersion(stable.router, stable.slab), ServedVersion(new.router, new.slab), tests, clock=lambda: 0.0
        )
        self.split.share = 0.1
        self.by_name: dict[str, Any] = {"toy": self.split, "toy@1": stable.router, "toy@2": new.router}
        self.families = SimpleNamespace(
            served={"toy": self.stable, "toy@2": self.new},
            devices={},
            pool=None,
            own_model=lambda name: self.stable.router,
            lead=self.lead,
            drop=self.drop,
        )
        self.loading = SimpleNamespace(
            changing=asyncio.Lock(), wait_answered=self.wait_answered, replace=self.replace, retire=self.retire
        )
        self.rollouts = RollOuts(
            ServerConfig(limits=LimitsConfig(drain_s=1.0)),
            RolloutFiles(None),
            cast(Any, self.families),
            self.rig.controller,
            cast(Any, self.loading),
            Life(),
            forget=self.forget,
        )
        self.one = RollOut("toy", new.spec, stable.spec, RolloutConfig(), "someone", phase="trial")
        self.one.served, self.one.split = cast(Any, self.new), self.split
        self.rollouts._active["toy"] = self.one

    async def wait_answered(self, routers: list[Any]) -> bool:
        return True

    async def replace(self, served: Any, spec: Any, profile: Any) -> None:
        assert self.split.share == 1.0
        assert self.split.alone
        self.replaced.append(spec.version)
        if self.failures and self.failures.pop(0):
            raise WorkerError("it died")

    async def retire(self, served: Any, reason: str) -> None:
        self.retired.append(served.name)

    async def forget(self, name: str) -> None:
        assert name in self.families.served

    def drop(self, served: Any) -> None:
        del self.families.served[served.name]
        self.dropped.append(served.name)

    def lead(self, names: dict[str, Any], *, nowhere: list[str]) -> None:
        self.by_name.update(names)
        for name in nowhere:
            del self.by_name[name]

    def finish(self, action: str) -> str:
        asyncio.run(self.rollouts._finish(self.one, ReleaseVerdict(action, "because"), ""))
        last = self.rig.controller.context.decisions.last("toy")
        assert last is not None
        return f"{last.action}: {last.detail}"


def test_what_is_promoted_takes_the_place_of_the_stable_version() -> None:
    scene = Scene()
    assert scene.finish("promote") == "applied: version 2 promoted: because"
    assert (scene.replaced, scene.retired, scene.dropped) == (["2"], ["toy@2"], ["toy@2"])
    assert scene.by_name == {"toy": scene.stable.router}
    assert scene.split.closed_reason
    assert scene.rollouts.counts == {"promoted": 1, "rolled back": 0, "failed": 0}
    assert scene.rollouts.report()["toy"]["phase"] == "promoted"
    assert set(scene.rollouts.report()["toy"]["tests"]) == {"errors", "slower", "tail", "differs", "accuracy"}
    assert scene.one.split is None  # nor is the memory of the version that was tried held
    scene.rollouts.check_free("toy")


def test_what_is_rolled_back_leaves_the_stable_version_alone() -> None:
    scene = Scene()
    assert scene.finish("roll back") == "rolled back: version 2 rolled back: because"
    assert (scene.replaced, scene.dropped) == ([], ["toy@2"])
    assert scene.by_name == {"toy": scene.stable.router}


def test_workers_that_do_not_start_in_the_place_of_the_stable_ones_bring_those_back() -> None:
    scene = Scene(True, False)
    assert scene.finish("promote").startswith("failed: version 2 failed: because; its workers did not start in the")
    assert (scene.replaced, scene.dropped) == (["2", "1"], ["toy@2"])
    assert scene.by_name == {"toy": scene.stable.router}


def test_if_the_stable_ones_do_not_start_again_those_that_tried_it_go_on() -> None:
    scene = Scene(True, True)
    assert "the workers that tried the new version go on serving it" in scene.finish("promote")
    assert scene.by_name["toy"] is scene.split
    assert (scene.split.share, scene.split.alone, scene.dropped) == (1.0, True, [])
    with pytest.raises(Conflict, match="has failed and cannot be ended"):
        scene.rollouts.check_free("toy")
    assert scene.rollouts.counts["failed"] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "why"),
    [
        ({}, BadRequest, "takes folder"),
        ({"folder": "x", "action": "status"}, BadRequest, "takes folder"),
        ({"folder": "", "action": "status"}, BadRequest, "takes folder"),
        ({"folder": "x", "action": ""}, BadRequest, "takes folder"),
        ({"action": "stop"}, BadRequest, "promote or roll-back"),
        ({"action": "status", "percent": 5}, BadRequest, "no percent"),
        ({"folder": 5}, BadRequest, "folder is a string"),
        ({"folder": "x", "dry_run": "yes"}, BadRequest, "dry_run"),
        ({"folder": "x"}, Conflict, "version 2 of toy is being rolled out"),
    ],
)
def test_commands_that_make_no_sense_are_refused(arguments: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        asyncio.run(Scene().rollouts.command(arguments, "someone"))


def beginning(monkeypatch: pytest.MonkeyPatch, profile_for: Any, **stable: Any) -> tuple[Scene, Any]:
    """Return a server whose model has no roll-out yet, and what the controller knows of the model."""
    scene = Scene()
    scene.rollouts._active.clear()

    async def wake() -> None: ...

    fleet = SimpleNamespace(routed=(), routing=None, wake=wake)
    vars(scene.stable).update(state="READY", ready=True, unmeasured="", fleet=fleet, **stable)
    del scene.families.served["toy@2"]
    found = SimpleNamespace(frozen=False, trial="", deployed=None, mode=None)
    scene.rig.controller.context.families["toy"] = found  # type: ignore[assignment]
    monkeypatch.setattr("clover.server.rollouts.find_version", lambda *_: scene.new.spec)
    monkeypatch.setattr("clover.server.rollouts.why_no_room", lambda *_: "")
    monkeypatch.setattr("clover.server.rollouts.profile_for", profile_for)
    return scene, found


def test_the_plan_is_held_before_it_is_copied_and_free_again_if_the_start_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def profile_for(*_: Any) -> None:
        held.append(family.frozen and family.trial == "2")
        raise WorkerError("it died")

    held: list[bool] = []
    scene, family = beginning(monkeypatch, profile_for)
    with pytest.raises(Unavailable, match="does not start"):
        asyncio.run(scene.rollouts.command({"folder": "x"}, "ada"))
    assert (held, family.frozen, family.trial) == ([True], False, "")


def test_a_model_that_was_unloaded_meanwhile_has_no_roll_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scene, family = beginning(monkeypatch, None)

    async def main() -> None:
        async with scene.loading.changing:
            begin = asyncio.create_task(scene.rollouts.command({"folder": "x"}, "ada"))
            while not scene.rollouts._active:
                await asyncio.sleep(0)
            scene.stable.state = "UNAVAILABLE"
        await begin

    with pytest.raises(Conflict, match="not ready any more"):
        asyncio.run(main())
    assert not family.frozen
    scene.rollouts.check_free("toy")


def test_files_that_change_during_the_trial_are_not_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    monkeypatch.setattr("clover.server.rollouts.has_changed", lambda spec: True)
    assert "its files have changed since its trial began" in scene.finish("promote")
    assert (scene.replaced, scene.dropped) == ([], ["toy@2"])
    assert scene.by_name == {"toy": scene.stable.router}


def test_an_error_that_was_not_expected_does_not_leave_it_promoting(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()

    async def replace(*_: Any) -> None:
        raise OSError(24, "Too many open files")

    scene.loading.replace = replace
    assert "Too many open files" in scene.finish("promote")
    assert (scene.one.phase, scene.rollouts.counts["failed"]) == ("failed", 1)
    with pytest.raises(Conflict, match="restart the server, which serves version 1 then"):
        scene.rollouts.check_free("toy")


def test_an_operator_may_end_it_once() -> None:
    scene = Scene()
    assert asyncio.run(scene.rollouts.command({"action": "roll-back", "dry_run": True}, "ada"))["phase"] == "trial"
    found = asyncio.run(scene.rollouts.command({"action": "roll-back"}, "ada"))
    assert (found["phase"], found["why"], found["operator"]) == ("rolled back", "by ada", "ada")
    with pytest.raises(Conflict, match="no version of toy is being tried"):
        asyncio.run(scene.rollouts.command({"action": "promote"}, "ada"))


def test_settings_are_in_points_and_tests_in_parts() -> None:
    limits = limits_of(RolloutConfig(risk=2.0, max_s=3600.0))
    assert (limits.risk, limits.max_s, limits.errors, limits.accuracy) == (0.02, 3600.0, 0.005, 0.01)


def test_a_new_version_never_has_more_to_do_than_the_stable_one() -> None:
    assert paired_part(0.1) == 0.1
    assert paired_part(0.5) == 0.0
    assert paired_part(0.48) == pytest.approx(0.04 / 0.52)


def test_a_caller_in_this_process_gets_the_version_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async def infer(model: Any, *_: Any, **__: Any) -> Any:
        return model

    monkeypatch.setattr("clover.server.server.embedded.infer", infer)
    scene = Scene()
    server = Server("fashion", http=False)
    engine: Any = SimpleNamespace(life=Life(), models=lambda: scene.by_name, pick=scene.rollouts.pick)
    server._engine = engine

    async def asked(name: str | None) -> Any:
        server._loop = asyncio.get_running_loop()
        return await server.ainfer({}, model=name)

    wanted = (scene.split, scene.split, scene.stable.router, scene.new.router)
    for name, model in zip((None, "toy", "toy@1", "toy@2"), wanted, strict=True):
        assert asyncio.run(asked(name)) is model
