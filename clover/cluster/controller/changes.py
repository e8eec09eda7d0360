"""The order in which nodes are woken, given rows, drained and ended: pure, one look at a time.

Nothing here waits.  Each look compares what is wanted with what is, and does what is safe now; the next look sees what
became of it.  So it does not matter when a controller dies, or which step failed: a new one goes on from what it finds.

    wake -> (ready) -> follow -> admit -> weights up          weights down -> drain -> (empty) -> release -> remove

Rules, which `tests/unit/cluster/controller/test_changes.py` checks over every state that three nodes can be in:

 - rows go to nodes that are usable and admitted, and to no others;
 - a node is drained only if it has no weight, and if those that stay can serve everything without it;
 - it is released only if it is drained, is empty or had its time, and those that stay still serve everything;
 - a node that is wanted again while it drains is taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clover.cluster.controller.records import ChangeStep, Phase


@dataclass(frozen=True)
class NodeView:
    """One node at one look.  `wanted`: the plan in force has it awake.  `may_leave`: plans have done without it for
    long enough.  `weighted`: it is given rows.  `empty`: drained, with nothing open or its time over.  `stays`: it
    is not released after that, as an operator wants it.  `ending`: it was released and has not
    ended yet.  `may_wake`: no back-off holds it."""

    name: str
    phase: Phase
    usable: bool = False
    admitted: bool = False
    wanted: bool = False
    may_leave: bool = False
    weighted: bool = False
    empty: bool = False
    stays: bool = False
    ending: bool = False
    may_wake: bool = True

    @property
    def stays_in_place(self) -> bool:
        """Whether it answers rows now, and is not about to stop."""
        return self.usable and self.admitted and self.phase != "draining"


Covers = Callable[[frozenset[str]], bool]
"""Whether nodes of these names can serve everything."""


def wakes(views: Iterable[NodeView], room: int) -> list[ChangeStep]:
    """Return the nodes to wake: those that are wanted and are not awake, and those that were lost; at most `room` of
    the former."""
    orders = []
    for view in views:
        if view.phase == "lost" and view.may_wake:
            orders.append(ChangeStep(kind="wake", node=view.name, why="it was lost and is started again"))
        elif view.phase == "released" and view.wanted and view.may_wake and room > 0:
            orders.append(ChangeStep(kind="wake", node=view.name, why="the plan needs it"))
            room -= 1
    return orders


def admissions(views: Iterable[NodeView]) -> list[ChangeStep]:
    """Return the nodes that the ingress shall know: all that are usable, and drained ones that are wanted again."""
    return [
        ChangeStep(kind="admit", node=view.name, why="wanted again" if view.phase == "draining" else "it is ready")
        for view in views
        if (view.usable and not view.admitted) or (view.phase == "draining" and view.wanted and not view.ending)
    ]


def departures(views: Sequence[NodeView], room: int, covers: Covers) -> list[ChangeStep]:
    """Return the nodes to drain (at most `room`), to release, and to remove from the ingress."""
    orders = []
    staying = {view.name for view in views if view.stays_in_place}
    for view in views:
        if view.phase == "draining" and view.empty and not (view.wanted or view.stays or view.ending):
            if not staying or not covers(frozenset(staying)):
                continue  # it can still be taken back, and started again only in minutes
            orders.append(ChangeStep(kind="release", node=view.name, why="it has drained"))
            orders.append(ChangeStep(kind="remove", node=view.name, why="it is released"))
        elif view.phase == "released" and view.admitted:
            orders.append(ChangeStep(kind="remove", node=view.name, why="it is released"))
    for view in views:
        if view.phase != "ready" or view.wanted or view.weighted or not view.may_leave or room <= 0:
            continue
        rest = frozenset(staying - {view.name})
        if rest and covers(rest):
            staying.discard(view.name)
            room -= 1
            orders.append(ChangeStep(kind="drain", node=view.name, why="the plan does without it"))
    return orders
