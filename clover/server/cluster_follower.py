"""A server as a node of a cluster: it follows the orders of the cluster's controller as long as it hears of it.

An order comes as a command (`POST /v2/clover/cluster`).  It says which mean accuracy each family keeps and which rate
it is ready for, and holds for `lease_s` seconds.  Each time that the controller asks for the server's report, the lease
begins again.  While an order holds, the family is planned by the policy `objective` in the form `floor` (the least
carbon at that accuracy), whatever the server's own policy is: the cluster decides how much accuracy is given up at
which hour.  If the lease ends, every family returns to the targets and the policy of its own configuration.  The state,
a metric and the log say so.  Nothing stops: a node without its cluster is a server.

Orders carry an epoch, which only grows.  An order with an older epoch is ignored, so a controller that was replaced
without noticing changes nothing.  A pin by an operator stands above an order.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from typing import Any

import msgspec

from clover.control.state.context import Context
from clover.control.state.counted import counted
from clover.control.state.family import Family
from clover.control.state.request import ClusterOrder, Targets
from clover.errors import BadRequest, Conflict
from clover.planning.model.problem import accuracies
from clover.types import Record

log = logging.getLogger("clover.server")

ACTIONS = ("follow", "leave", "status", "profiles")


class FamilyOrder(Record, frozen=True, kw_only=True):
    """What an order says of one family: rows/s to be ready for, and the least mean accuracy (percent)."""

    rate: float
    accuracy: float


class FollowCommand(Record, frozen=True, kw_only=True):
    """The body of the command `cluster`.  `lease_s`: seconds that the order holds without another one."""

    action: str
    cluster: str = ""
    node: str = ""
    epoch: int = 0
    lease_s: float = 0.0
    models: dict[str, FamilyOrder] = {}
    dry_run: bool = False


class ClusterFollower:
    """What a server knows of the cluster that it belongs to; nothing, if it never heard of one.

    `counted` gives joules and grams by model, `idle_w` the watts of a device at rest.  `wall` and the context's
    monotonic clock are Unix and steady seconds."""

    def __init__(
        self,
        context: Context,
        counted: Callable[[str], dict[str, float]],
        idle_w: Callable[[str], float] = lambda device: 0.0,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.epoch = 0
        """The epoch of the last order that was taken; 0 before the first."""
        self.lost = 0
        """How often a lease ended without another one."""
        self._context = context
        self._counted = counted
        self._idle_w = idle_w
        self._wall = wall
        self._started_s = wall()
        self._sums: dict[str, tuple[float, float, float, float]] = {}
        """By family, as of its last report: rows, those that count, the sum of their accuracies, `accuracy_rows`."""
        self._cluster = ""
        self._node = ""
        self._until_s = -math.inf
        self._heard_s = math.nan
        self._lease_s = 0.0
        self._own: dict[str, tuple[Family, Targets, Targets]] = {}
        """By family, its own targets, and those that stand in for them."""

    @property
    def name(self) -> str:
        """The cluster of the last order that was taken, also if its lease has ended; empty before the first."""
        return self._cluster

    @property
    def following(self) -> bool:
        """Whether an order holds now."""
        return self._until_s > -math.inf

    # --- orders -------------------------------------------------------------------------------------------------------

    async def command(self, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        """Carry out the command `cluster` and return how the server stands to its cluster.  BadRequest if it makes no
        sense, Conflict if its order is older than the one that is followed, or of another cluster."""
        epoch = arguments.get("epoch")
        if type(epoch) is float and epoch.is_integer():  # 5.0 is an integer of JSON Schema, and of /openapi.json
            arguments = {**arguments, "epoch": int(epoch)}
        try:
            given = msgspec.convert(arguments, FollowCommand)
        except msgspec.ValidationError as error:
            raise BadRequest(f"cluster takes action, cluster, node, epoch, lease_s and models: {error}") from None
        if given.action not in ACTIONS:
            raise BadRequest(f"action is one of {', '.join(ACTIONS)}, not {given.action!r}")
        needed = {"epoch", "lease_s"} if given.action == "follow" else arguments.keys()
        _check_values(given, needed, known=self._context.families)
        if given.action == "profiles":
            return self._profiles()
        if given.action == "follow":
            self._check(given)
            if not given.dry_run:
                self._follow(given, operator)
        elif given.action == "status":
            self._renew(given)
        elif given.action == "leave" and not given.dry_run and self.following:
            self._return(f"left the cluster {self._cluster} by {operator or 'operator'}", logging.INFO)
        return self.report()

    def _check(self, given: FollowCommand) -> None:
        if self.following and given.cluster != self._cluster:
            raise Conflict(
                f"this server follows the cluster {self._cluster}: it leaves that first "
                f"(action: leave), or waits until its lease ends"
            )
        if given.cluster == self._cluster and given.epoch < self.epoch:
            raise Conflict(f"an order of epoch {given.epoch} is older than that of epoch {self.epoch}, and is ignored")

    def _renew(self, given: FollowCommand) -> None:
        """Let the order that holds do so for another lease: the controller of its cluster asked how the server does."""
        if self.following and given.cluster == self._cluster and given.lease_s:
            self._until_s = self._context.monotonic() + given.lease_s
            self._lease_s, self._heard_s = given.lease_s, self._wall()

    def _follow(self, given: FollowCommand, operator: str) -> None:
        now_s = self._context.monotonic()
        if not self.following:
            log.info("follows the cluster %s as node %s, by %s", given.cluster, given.node, operator or "operator")
        self.epoch, self._cluster, self._node = given.epoch, given.cluster, given.node
        self._until_s, self._lease_s, self._heard_s = now_s + given.lease_s, given.lease_s, self._wall()
        for name in [name for name in self._own if name not in given.models]:
            self._free(name)
        for name, order in given.models.items():
            self._order(self._context.families[name], order)

    def _order(self, family: Family, given: FamilyOrder) -> None:
        """Have a family planned for an order; nothing happens if it is planned for that already."""
        best = max(accuracies(family.profile).values(), default=0.0)
        order = ClusterOrder(accuracy=min(given.accuracy, best), rate=given.rate)
        before = family.order
        if before == order and family.targets == self._own[family.name][2]:
            return
        own = self._own_targets(family)
        targets = replace(own, accuracy_floor=order.accuracy, form="floor")
        self._own[family.name] = (family, own, targets)
        family.order, family.targets = order, targets
        if before is None or before.accuracy != order.accuracy:
            family.triggers.again(self._context.monotonic())

    def _own_targets(self, family: Family) -> Targets:
        """Return what a family is planned for without an order: its own targets, with what an operator has set since
        the order came."""
        entry = self._own.get(family.name)
        if entry is None or entry[0] is not family:
            return family.targets
        _, targets, ordered = entry
        now = {field.name: getattr(family.targets, field.name) for field in fields(ordered)}
        return replace(targets, **{name: value for name, value in now.items() if value != getattr(ordered, name)})

    def _free(self, name: str) -> None:
        """Return a family to its own targets and policy."""
        targets = self._own_targets(self._own[name][0])
        family, *_ = self._own.pop(name)
        family.order = None
        family.targets = targets
        family.triggers.again(self._context.monotonic())

    def _return(self, why: str, level: int) -> None:
        """Return all families to their own targets and policies."""
        self._until_s = -math.inf
        for name in list(self._own):
            self._free(name)
        log.log(level, "%s: every model follows the server's own targets and policy again", why)

    # --- what others ask ----------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Return to the server's own policy if the lease ended; once a second."""
        if self.following and self._context.monotonic() >= self._until_s:
            self.lost += 1
            self._return(f"nothing was heard of the cluster {self._cluster} for {self._lease_s:g} s", logging.WARNING)

    def report(self) -> dict[str, Any]:
        """Return how the server stands to its cluster, with what each family did since the server's start."""
        now_s = self._context.monotonic()
        return {
            "cluster": self._cluster,
            "node": self._node,
            "following": self.following,
            "epoch": self.epoch,
            "lease_s": self._lease_s,
            "lease_left_s": max(0.0, self._until_s - now_s) if self.following else 0.0,
            "heard_s": None if math.isnan(self._heard_s) else self._heard_s,
            "lost": self.lost,
            "started_s": self._started_s,
            "models": {name: self._model(family) for name, family in self._context.families.items()},
        }

    def _model(self, family: Family) -> dict[str, Any]:
        seen = family.observed
        order, figures = family.order, self._counted(family.name)
        return {
            "order": None if order is None else {"rate": order.rate, "accuracy": order.accuracy},
            "pinned": family.pin is not None,
            "rate": seen.get("arrival_rate", 0.0),
            "p95_ms": seen.get("p95_ms"),
            "rows": int(seen.get("rows", 0.0)),
            "accuracy_rows": self._accuracy_rows(family.name, seen),
            "ready": family.missing == 0 and family.deployed is not None,
            "joules": figures.get("energy_j", 0.0),
            "grams": figures.get("carbon_g", 0.0),
            "correction": _energy_factor(family),
        }

    def _accuracy_rows(self, name: str, seen: Mapping[str, float]) -> float:
        """Return the sum of the accuracies (percent) of all rows so far.  Rows that do not count have the mean of those
        that did since the last report; if none did, as served: 0 would be a debt that no plan could pay."""
        rows, (number, total) = seen.get("rows", 0.0), counted(seen) or (0.0, 0.0)
        before = self._sums.get(name, (0.0, 0.0, 0.0, 0.0))
        if rows < before[0]:  # another router, which began anew
            before = (0.0, 0.0, 0.0, 0.0)
        new = number - before[1]
        mean = (total - before[2]) / new if new > 0.0 else seen.get("accuracy_served", 0.0)
        sum_of_rows = before[3] + (rows - before[0]) * mean
        self._sums[name] = rows, number, total, sum_of_rows
        return sum_of_rows

    def _profiles(self) -> dict[str, Any]:
        """Return what the operating points of the devices are worked out from: profiles, devices and objectives."""
        context = self._context
        shapes = context.device_pool.shapes()
        return {
            "devices": [msgspec.to_builtins(shape) for shape in shapes.values()],
            "idle_w": {name: self._idle_w(name) for name in shapes},
            "models": {
                name: {
                    "profile": msgspec.to_builtins(family.profile),
                    "objective": msgspec.to_builtins(family.objective(family.targets, context.config)),
                }
                for name, family in context.families.items()
            },
        }


def _energy_factor(family: Family) -> float:
    """Return what the joules of a family's profile are off by, over what was learned of its variants; 1 if nothing."""
    factors = [float(row["energy"]) for row in family.learned.rows() if row["energy"] > 0.0]
    return sum(factors) / len(factors) if factors else 1.0


def _check_values(given: FollowCommand, needed: Collection[str], known: Collection[str]) -> None:
    """Raise BadRequest if a value cannot be, whether the action uses it or not.

    `needed`: which of `epoch` and `lease_s` are looked at; `known`: the models that are served."""
    if "epoch" in needed and not 1 <= given.epoch < 2**63:
        raise BadRequest("cluster takes an epoch from 1 on")
    if "lease_s" in needed and not 0.0 < given.lease_s <= 86_400.0:
        raise BadRequest("cluster takes a lease_s from above 0 to a day")
    for name, order in given.models.items():
        if name not in known:
            raise BadRequest(f"unknown model {name!r}, known: {', '.join(known)}")
        if not 0.0 <= order.accuracy <= 100.0 or not 0.0 <= order.rate < 1e9:
            raise BadRequest(f"{name}: accuracy lies between 0 and 100, rate between 0 and 1e9")
