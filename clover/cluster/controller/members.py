"""The nodes as the controller knows them: who answers, in which phase each is, and since when.

    released --wake--> waking --healthy report--> ready --drain--> draining --release--> released
                         |                          |
                         `---- too long ----> lost <'-- silent       (or `partitioned`, if the ingress finds it healthy)

A lost node is started again with a back-off, whether plans want it or not: it was awake, and may still be.  Silence
counts from when a report with a new time came in, by the controller's own clock, so that those of nodes do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from clover.cluster.controller.records import Hold, Phase, SavedMember
from clover.cluster.planning.records import ClusterNode, DeviceFrontier, NodeState, NodeTarget
from clover.cluster.ports import NodeReport

BACK_OFF_S = 15.0
BACK_OFF_MOST_S = 3600.0
_WAKES_WITHIN = 4.0
"""Times its wake time that a node may take to become ready, and at least `_WAKES_LEAST_S`."""
_WAKES_LEAST_S = 120.0
LEAST_PACE = 0.25
PACE_S = 10.0
"""Seconds between two changes of a node's pace: what it reports is of some seconds, too."""
_OVER = 1.05
"""Times its limit that a p95 is above before a node gets less: what is counted in seconds is not exact."""
_SLOWER, _FASTER = 0.8, 1.05
_EXACT = 1e-6
"""Points of accuracy that are no difference."""

_STATES: dict[Phase, NodeState] = {
    "released": "released",
    "waking": "starting",
    "ready": "ready",
    "partitioned": "ready",
    "draining": "draining",
    "lost": "lost",
}


@dataclass
class ClusterMember:
    """One node.  `pace`: the part of its share that it gets, below 1 while its p95 is above the SLO.  `epoch_sent`: of
    the newest target that it took, which is `taken`; `ended_s`: when it was released, after which its last reports may
    still come in; `rates`: rows/s by family and origin as its server last said, at `rates_s`."""

    declared: ClusterNode
    phase: Phase = "released"
    since_s: float = 0.0
    report: NodeReport | None = None
    heard_s: float = -math.inf
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    rates_s: float = -math.inf
    ready_s: float | None = None
    unwanted_s: float | None = None
    attempts: int = 0
    retry_s: float = -math.inf
    admitted: bool = False
    address: tuple[str, str] = ("", "")
    hold: Hold | None = None
    pace: float = 1.0
    paced_s: float = -math.inf
    epoch_sent: int = 0
    taken: NodeTarget | None = None
    sent_s: float = -math.inf
    ended_s: float = -math.inf
    met: bool = False
    """Whether the controller has looked at a report of it before."""
    why: str = ""

    @property
    def node(self) -> ClusterNode:
        """What is known of the machine: as it reported, or as it was declared."""
        return self.declared if self.report is None else self.report.node

    @property
    def usable(self) -> bool:
        """Whether it may be given rows now.  One that the controller before gave rows to may have them until it has
        answered this one, or is lost."""
        if self.phase == "partitioned":
            return True
        report = self.report
        if self.phase != "ready" or report is None:
            return self.phase == "ready" and self.in_ingress
        return report.healthy and report.node.state == "ready"

    @property
    def in_ingress(self) -> bool:
        """Whether this controller or one before had the ingress take it in."""
        return self.admitted or self.address != ("", "")

    def enter(self, phase: Phase, now_s: float, why: str = "") -> None:
        """Go to another phase."""
        if phase == "ready" and self.phase not in ("ready", "partitioned", "draining"):
            self.ready_s, self.attempts, self.pace = now_s, 0, 1.0
        if phase in ("lost", "released"):
            self.forget_target()
        if self.phase == "released":
            self.admitted = False  # if it could not be removed, the ingress still has it as drained
        self.phase, self.since_s, self.why = phase, now_s, why
        if phase not in ("ready", "partitioned"):
            self.unwanted_s = None

    def forget_target(self) -> None:
        """Note that its server follows no target."""
        self.epoch_sent, self.taken = 0, None

    def ready_for(self, family: str, accuracy: float) -> float:
        """Return the rows/s of a family that it is ready for by the target that it took last; 0 if it need not answer
        them with a mean accuracy of `accuracy` points, or if nothing renews that target."""
        taken = self.taken
        if taken is None or self.phase == "partitioned" or taken.accuracy.get(family, 0.0) < accuracy - _EXACT:
            return 0.0
        return taken.rates.get(family, 0.0)

    def record_failure(self, now_s: float, why: str) -> None:
        """Note that a start failed, and when the next is due."""
        self.enter("lost", now_s, why)
        self.retry_s = now_s + min(BACK_OFF_MOST_S, BACK_OFF_S * 2.0 ** min(self.attempts, 16))
        self.attempts += 1


@dataclass
class Membership:
    """All nodes by name.  `lost_s` as in `ClusterTerms`."""

    lost_s: float
    members: dict[str, ClusterMember] = field(default_factory=dict)

    def declare(self, nodes: Iterable[ClusterNode], now_s: float) -> None:
        """Take in nodes that there are; known ones stay as they are."""
        for node in nodes:
            self.members.setdefault(node.name, ClusterMember(node, since_s=now_s))

    def record(self, now_s: float, reports: Mapping[str, NodeReport]) -> list[str]:
        """Take in what answered at `now_s`; return what changed, in words."""
        changed = []
        for name, report in reports.items():
            member = self.members.get(name)
            if member is None:
                member = self.members[name] = ClusterMember(report.node, since_s=now_s)
            known = member.report
            if not report.node.devices:
                # Its server has not said yet what it has, as while it starts.  The machine is what it was: a plan that
                # woke it must not find it without devices, and turn to another one, until it is ready.
                node = msgspec.structs.replace(report.node, devices=member.node.devices)
                report = msgspec.structs.replace(report, node=node)
            if known is None or (report.at_s, report.started_s) != (known.at_s, known.started_s):
                member.heard_s = now_s
            if known is not None and report.started_s != known.started_s:
                member.forget_target()  # a new server has none
            member.report = report
            if report.families or member.phase == "released":  # a server that does not answer says nothing of its rows
                member.rates = {family.family: family.rates for family in report.families}
                member.rates_s = member.heard_s
        for name, member in self.members.items():
            before = member.phase
            self._advance(member, now_s)
            if member.phase != before:
                changed.append(f"{name} is {member.phase}" + (f": {member.why}" if member.why else ""))
        return changed

    def _advance(self, member: ClusterMember, now_s: float) -> None:
        heard = now_s - member.heard_s <= self.lost_s
        report = member.report
        fit = heard and report is not None and report.healthy and report.node.state in ("ready", "draining")
        if member.phase in ("waking", "lost") and fit and member.heard_s >= member.since_s:
            member.enter("ready", now_s)
        elif member.phase == "waking":
            within_s = max(_WAKES_LEAST_S, _WAKES_WITHIN * member.node.wake_s)
            if now_s - member.since_s > within_s:
                member.record_failure(now_s, f"not ready {within_s:.0f} s after it was woken")
        elif (member.phase == "released" and fit and now_s - member.ended_s > self.lost_s) or (
            member.phase == "partitioned" and heard
        ):  # the former was started by somebody else
            member.enter("ready", now_s)
        elif member.phase == "released" and heard and _starts(report) and now_s - member.ended_s > self.lost_s:
            member.enter("waking", now_s)  # as a controller before asked, and could not note any more
        elif member.phase == "ready" and not heard:
            member.enter("lost", now_s, f"no report for {self.lost_s:.0f} s")
        elif member.phase == "ready" and report is not None and report.node.state == "released":
            member.enter("released", now_s)  # by a release that nobody waited for any more
        elif member.phase == "ready" and report is not None and not report.healthy:
            member.why = report.why or "its server is not healthy"
        elif member.phase == "ready":
            member.why = ""

    def unheard(self, seconds: float) -> None:
        """Let `seconds` in which no node could be asked count for none of them as silence."""
        for member in self.members.values():
            member.heard_s += seconds

    def record_partition(self, name: str, now_s: float) -> None:
        """Note that a node that just fell silent is served by the ingress all the same."""
        self.members[name].enter("partitioned", now_s, "it does not report, and the ingress finds it healthy")

    def pace(self, now_s: float, slo_p95_ms: Mapping[str, float], targets: Mapping[str, NodeTarget]) -> list[str]:
        """Give less to nodes whose p95 is above what their target leaves them, or the SLO of a family, and more again
        to others; return who is slow."""
        slow = []
        for name, member in self.members.items():
            if member.phase != "ready" or member.report is None:
                continue
            target = targets.get(name)
            limits = {**slo_p95_ms, **(target.p95_ms if target is not None else {})}
            late = [
                own
                for own in member.report.families
                if own.p95_ms > _OVER * limits.get(own.family, math.inf) and sum(own.rates.values()) > 0.0
            ]
            if due := now_s - member.paced_s >= PACE_S:
                member.pace = max(LEAST_PACE, member.pace * _SLOWER) if late else min(1.0, member.pace * _FASTER)
                member.paced_s = now_s
            if late and (due or member.pace < 1.0):
                family, p95_ms = late[0].family, late[0].p95_ms
                over = f"{p95_ms:.0f} ms of {limits[family]:.0f} ms (p95)"
                slow.append(f"{name} answers {family} in {over} and gets {member.pace:.0%} of its share")
        return slow

    def for_plan(self) -> tuple[ClusterNode, ...]:
        """Return the nodes that plans may use, each in its state.  Those that are lost, not healthy or held by an
        operator are left out."""
        nodes = []
        for member in self.members.values():
            unfit = member.phase == "lost" or (member.phase == "ready" and not member.usable)
            if not unfit and member.hold not in ("drained", "released"):
                nodes.append(msgspec.structs.replace(member.node, state=_STATES[member.phase]))
        return tuple(nodes)

    def frontiers(self, before: Iterable[DeviceFrontier]) -> dict[tuple[str, str], DeviceFrontier]:
        """Return the newest frontiers by kind and family: those `before`, and what nodes reported since."""
        by_kind = {(frontier.kind, frontier.family): frontier for frontier in before}
        seen = set()
        for member in self.members.values():
            if member.report is not None and id(member.report.frontiers) not in seen:
                seen.add(id(member.report.frontiers))
                by_kind.update({(frontier.kind, frontier.family): frontier for frontier in member.report.frontiers})
        return by_kind

    def newest_epoch(self, *, met: bool) -> int:
        """Return the highest epoch that any node said it follows, of those that reported before (`met`) or now for the
        first time."""
        reports = [member.report for member in self.members.values() if member.report is not None and member.met is met]
        return max((report.target_epoch for report in reports), default=0)

    def meet(self) -> None:
        """Note that what was reported was looked at."""
        for member in self.members.values():
            member.met = member.met or member.report is not None

    def seen_epoch(self) -> int:
        """Return the highest epoch that any node follows or has followed: a target has to be of a higher one."""
        return max(
            (member.report.newest_epoch for member in self.members.values() if member.report is not None), default=0
        )

    def in_phase(self, *phases: Phase) -> Collection[str]:
        """Return the names of the nodes in these phases."""
        return [name for name, member in self.members.items() if member.phase in phases]

    def snapshot(self) -> dict[str, SavedMember]:
        """Return what a file keeps."""
        return {
            name: SavedMember(
                phase=member.phase,
                since_s=member.since_s,
                ready_s=member.ready_s,
                unwanted_s=member.unwanted_s,
                attempts=member.attempts,
                hold=member.hold,
                reported=member.node if member.report is not None or member.in_ingress else None,
                rates=member.rates,
                admitted=member.admitted,
                address=member.address,
            )
            for name, member in self.members.items()
        }

    def restore(self, saved: Mapping[str, SavedMember], now_s: float) -> None:
        """Take up what was kept.  A node that was heard of has `lost_s` from now to answer again; one that is not
        declared any more is left out.  A clock that was set back meanwhile makes nothing wait for it."""
        for name, item in saved.items():
            member = self.members.get(name)
            if member is None:
                continue
            member.phase, member.since_s = item.phase, min(item.since_s, now_s)
            member.ready_s, member.unwanted_s = _no_later(item.ready_s, now_s), _no_later(item.unwanted_s, now_s)
            member.attempts, member.hold, member.address = item.attempts, item.hold, item.address
            # Nodes that serve are admitted again, should the ingress have begun anew; others are only to be removed.
            member.admitted = item.admitted and item.phase in ("draining", "released")
            if item.reported is not None:
                member.declared = item.reported
            if item.phase in ("ready", "draining", "partitioned"):
                member.heard_s = member.rates_s = now_s
                member.rates = item.rates

    def set_back(self, seconds: float) -> None:
        """Go by a clock that was set back by `seconds`: what was due after a time is due after the same time."""
        for member in self.members.values():
            member.since_s -= seconds
            member.heard_s -= seconds
            member.rates_s -= seconds
            member.retry_s -= seconds
            member.paced_s -= seconds
            member.sent_s -= seconds
            member.ended_s -= seconds
            member.ready_s = member.ready_s - seconds if member.ready_s is not None else None
            member.unwanted_s = member.unwanted_s - seconds if member.unwanted_s is not None else None


def _starts(report: NodeReport | None) -> bool:
    return report is not None and report.node.state == "starting"


def _no_later(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else min(at_s, now_s)
