"""What operators see of a server and the commands that it takes: the controller's, and the server's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from clover.control.controller import Controller
from clover.server.cluster_follower import ClusterFollower
from clover.server.rollouts import RollOuts


class ServerControl:
    """Implements `clover.interfaces.Control`.  `totals` gives what the server counted, for the state."""

    def __init__(
        self,
        controller: Controller,
        rollouts: RollOuts,
        cluster: ClusterFollower,
        totals: Callable[[], dict[str, Any]],
    ) -> None:
        self._controller = controller
        self._rollouts = rollouts
        self._cluster = cluster
        self._totals = totals

    def state(self) -> dict[str, Any]:
        """See `clover.interfaces.Control.state`."""
        return self._controller.state(self._totals)

    def decisions(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest decisions as plain objects, newest first."""
        return self._controller.decisions(limit)

    def decisions_json(self, limit: int) -> bytes:
        """See `clover.interfaces.Control.decisions_json`."""
        return self._controller.decisions_json(limit)

    async def command(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """See `clover.interfaces.Control.command`.  Unavailable once the server stops."""
        match verb:
            case "roll-out":
                return await self.roll_out(arguments, operator)
            case "cluster":
                return await self.follow_cluster(arguments, operator)
        return await self._controller.command(verb, arguments, operator)

    async def roll_out(self, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """Start, end or report a roll-out (`RollOuts.command`)."""
        return await self._controller.carry_out(lambda: self._rollouts.command(arguments, operator))

    async def follow_cluster(self, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """Follow a cluster, leave it, or report how the server stands to it (`ClusterFollower.command`)."""
        return await self._controller.carry_out(lambda: self._cluster.command(arguments, operator))
