"""What operators may have a server do beside what its controller does."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from clover.errors import Unavailable
from clover.server.control import ServerControl
from tests.support.control_fixture import Rig


def test_roll_outs_and_the_cluster_have_commands_of_their_own_and_the_controller_all_others() -> None:
    def answering(who: str) -> Any:
        async def command(arguments: dict[str, Any], operator: str) -> dict[str, Any]:
            return {"who": who, "operator": operator, **arguments}

        return SimpleNamespace(command=command)

    async def story() -> None:
        rig = Rig()
        control = ServerControl(rig.controller, answering("roll-outs"), answering("cluster"), lambda: {"pue": 1.0})
        assert await control.command("roll-out", {"a": 1}, "ada") == {"who": "roll-outs", "operator": "ada", "a": 1}
        assert await control.command("cluster", {}, "ada") == {"who": "cluster", "operator": "ada"}
        assert (await control.command("freeze", {"on": True}, "ada"))["frozen"]
        assert control.decisions(1)[0]["operator"] == "ada"
        assert control.state()["totals"] == {"pue": 1.0}

    asyncio.run(story())


def test_a_roll_out_that_waits_is_broken_off_when_the_server_stops() -> None:
    async def command(arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    async def story() -> None:
        rig = Rig()
        waiting = cast("Any", SimpleNamespace(command=command))
        control = ServerControl(rig.controller, waiting, waiting, dict)
        asked = asyncio.create_task(control.command("roll-out", {}, "ada"))
        await asyncio.sleep(0)
        await rig.controller.stop()
        with pytest.raises(Unavailable, match="shutting down"):
            await asked
        with pytest.raises(Unavailable, match="shutting down"):
            await control.command("cluster", {}, "ada")

    asyncio.run(story())
