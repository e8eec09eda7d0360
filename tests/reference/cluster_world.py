"""The world that a cluster's controller is checked in: two or three nodes, an ingress, a store, and how they change.

A state is a value: everything in it is a tuple, a string, a number or a set of those, with ages and epochs brought down
to what is compared about them (`is it old?`, `which is higher?`), so that there are finitely many.  `World` is one
state made of changeable parts, which the calls of a controller change (`cluster_ports`).

Modelled of a node: off, starting, up, ending (it was released and answers what it has); whether the controller
reaches it (the ingress does all the same); the epoch that its server follows and the newest that it knows; whether rows
are open there.  Of the ingress: nodes that it knows, those that drain, weights in HAProxy's whole numbers; it gives
rows to nodes whose check passes, have a weight and do not drain.  It outlives controllers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from clover.cluster.controller.records import Phase

FAMILY, REGION = "digits", "north"
DEMAND = 50.0
"""Rows/s, always; one node serves 100."""


class NodeState(NamedTuple):
    """One node as it is."""

    server: str = "up"
    cut: bool = False
    epoch: int = 0
    newest: int = 0
    rows: bool = False


class IngressState(NamedTuple):
    """What the ingress was made to be."""

    known: frozenset[str]
    draining: frozenset[str]
    weights: tuple[tuple[str, int], ...]


class Heard(NamedTuple):
    """What a node last reported; `same`: its server has not been started anew since."""

    server: str
    epoch: int
    newest: int
    same: bool = True


class MemberState(NamedTuple):
    """What a controller knows of one node.  `old`: it entered its phase long ago; `silent`: it was heard long ago;
    `anew`: it was heard since it entered its phase; `after`: since it took its newest target; `waits`: a back-off holds
    it; `ended`: it was released a moment ago; `taken`: rows/s of the target that it took last."""

    phase: Phase = "released"
    old: bool = True
    silent: bool = True
    anew: bool = False
    after: bool = False
    heard: Heard | None = None
    attempts: int = 0
    waits: bool = False
    admitted: bool = False
    address: bool = False
    sent: int = 0
    taken: float = 0.0
    ended: bool = False


class OrderState(NamedTuple):
    """An order that takes longer than a look; `done`: it has ended, which the next look takes up; `rate`: rows/s of
    the target that it gives."""

    kind: str
    node: str
    epoch: int
    done: bool = False
    rate: float = 0.0


class BrainState(NamedTuple):
    """What a controller knows.  `stage`: 0 it has not read the store, 1 it has, 2 it is in charge.  `plan`: the nodes
    that are to be awake; `planned`: those that it was made for; `aim`: what was best then."""

    holder: str
    stage: int = 0
    epoch: int = 0
    plan: tuple[str, ...] | None = None
    planned: frozenset[str] = frozenset()
    aim: str = ""
    members: tuple[MemberState, ...] = ()
    weights: tuple[tuple[str, float], ...] | None = None
    had: tuple[tuple[str, float], ...] = ()
    given: frozenset[str] = frozenset()
    in_force: bool = False
    shares: tuple[tuple[str, float], ...] | None = None
    orders: tuple[OrderState, ...] = ()
    again: frozenset[str] = frozenset()
    """Which of plan, shares and save are due again by time."""


class SavedState(NamedTuple):
    """What the store has."""

    holder: str
    epoch: int
    plan: tuple[str, ...] | None
    members: tuple[tuple[Phase, bool, int, bool], ...]
    """Phase, whether it is old in it, attempts, whether it ever reported; by node."""


class Paused(NamedTuple):
    """A controller that stands still in the middle of a look: what it began with and what it was answered so far."""

    brain: BrainState
    answers: tuple[object, ...]
    aim: str


class State(NamedTuple):
    """Everything.  `left`: faults that may still happen; `flips`: how often what is best may still change."""

    aim: str
    nodes: tuple[NodeState, ...]
    ingress: IngressState
    store: SavedState | None
    brains: tuple[BrainState, ...]
    paused: Paused | None = None
    left: int = 0
    flips: int = 0
    wrong: str = ""


@dataclass
class World:
    """A state being changed."""

    names: tuple[str, ...]
    aim: str
    nodes: dict[str, NodeState]
    known: set[str]
    draining: set[str]
    weights: dict[str, int]
    store: SavedState | None
    wrong: str = ""
    gone: set[str] = field(default_factory=set)
    """Nodes whose server ended: what it was is not what comes up next."""

    @classmethod
    def of(cls, state: State, names: tuple[str, ...]) -> World:
        """Return the world in a state."""
        return cls(
            names,
            state.aim,
            dict(zip(names, state.nodes, strict=True)),
            set(state.ingress.known),
            set(state.ingress.draining),
            dict(state.ingress.weights),
            state.store,
            state.wrong,
        )

    def into(self, state: State) -> State:
        """Return the state that this world is in now, with the controllers of `state`."""
        return state._replace(
            brains=tuple(self._told(brain) for brain in state.brains),
            nodes=tuple(self.nodes.values()),
            ingress=IngressState(
                frozenset(self.known),
                frozenset(self.draining),
                tuple(sorted((name, own) for name, own in self.weights.items() if own)),
            ),
            store=self.store,
            wrong=self.wrong,
        )

    def _told(self, brain: BrainState) -> BrainState:
        if not self.gone or not brain.members:
            return brain
        return brain._replace(
            members=tuple(
                own._replace(heard=own.heard._replace(same=False)) if own.heard and name in self.gone else own
                for name, own in zip(self.names, brain.members, strict=True)
            )
        )

    # --- what holds ---------------------------------------------------------------------------------------------------

    def fit(self) -> set[str]:
        """Return the nodes that answer rows of the ingress, if they are given any."""
        return {name for name in self.known - self.draining if self.nodes[name].server == "up"}

    def healthy(self) -> frozenset[str]:
        """Return the nodes that pass the check of the ingress."""
        return frozenset(name for name in self.known if self.nodes[name].server == "up")

    def homes(self) -> set[str]:
        """Return the nodes that rows go to now."""
        return {name for name in self.fit() if self.weights.get(name)}

    def blame(self, why: str) -> None:
        """Note the first thing that went wrong."""
        self.wrong = self.wrong or why

    # --- what happens -------------------------------------------------------------------------------------------------

    def change(self, name: str, **changes: object) -> None:
        """Change a node."""
        self.nodes[name] = self.nodes[name]._replace(**changes)  # type: ignore[arg-type]

    def kill(self, name: str) -> None:
        """Let a node die with all that it had."""
        self.end(name, "off")

    def end(self, name: str, server: str) -> None:
        """Let a node's server end, and be `server` from then on."""
        self.nodes[name] = NodeState(server, self.nodes[name].cut)
        self.gone.add(name)

    def give_rows(self) -> None:
        """Let rows come: every node that they go to has some open."""
        for name in self.homes():
            self.change(name, rows=True)


def ranked(epochs: Iterable[int]) -> dict[int, int]:
    """Return small numbers in place of epochs: the same order, and next to each other if they were; 0 stays 0.

    A gap of two or more becomes one of two: what a controller compares is order, and what it makes is one more."""
    found = {0: 0}
    last, at = 0, 0
    for epoch in sorted(set(epochs)):
        at += min(epoch - last, 2)
        found[epoch] = at
        last = epoch
    return found


def smaller(state: State) -> State:
    """Return a state with small numbers in place of its epochs."""
    if state.paused is not None:
        return state  # what it was answered has epochs in it; there is one pause, so they stay few
    seen: list[int] = []
    for node in state.nodes:
        seen += (node.epoch, node.newest)
    for brain in state.brains:
        seen.append(brain.epoch)
        for own in brain.members:
            seen.append(own.sent)
            if own.heard is not None:
                seen += (own.heard.epoch, own.heard.newest)
        seen += [order.epoch for order in brain.orders]
    if state.store is not None:
        seen.append(state.store.epoch)
    to = ranked(seen)
    if all(key == value for key, value in to.items()):
        return state
    return state._replace(
        nodes=tuple(own._replace(epoch=to[own.epoch], newest=to[own.newest]) for own in state.nodes),
        store=state.store and state.store._replace(epoch=to[state.store.epoch]),
        brains=tuple(_ranked(brain, to) for brain in state.brains),
    )


def _ranked(brain: BrainState, to: dict[int, int]) -> BrainState:
    return brain._replace(
        epoch=to[brain.epoch],
        members=tuple(
            own._replace(
                sent=to[own.sent],
                heard=own.heard and own.heard._replace(epoch=to[own.heard.epoch], newest=to[own.heard.newest]),
            )
            for own in brain.members
        ),
        orders=tuple(own._replace(epoch=to[own.epoch]) for own in brain.orders),
    )
