"""The order of changes, over every state that three nodes can be in."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from clover.cluster.controller.changes import NodeView, admissions, departures, wakes

NODES = ("a", "b", "c")


@dataclass(frozen=True)
class Machine:
    """What a node really is, and what the controller thinks of it, in the abstract: `phase` as the controller has it,
    `up` whether it answers, `rows` whether it has rows open."""

    phase: str = "released"
    up: bool = False
    admitted: bool = False
    rows: bool = False


World = tuple[Machine, ...]


def serving(machine: Machine) -> bool:
    return machine.phase == "ready" and machine.up and machine.admitted


def views(world: World, wanted: frozenset[str], weighted: set[str]) -> list[NodeView]:
    return [
        NodeView(
            name=name,
            phase=own.phase,  # type: ignore[arg-type]
            usable=own.phase == "ready" and own.up,
            admitted=own.admitted,
            wanted=name in wanted,
            may_leave=True,
            weighted=name in weighted,
            empty=not own.rows,
        )
        for name, own in zip(NODES, world, strict=True)
    ]


def look(world: World, wanted: frozenset[str]) -> World:
    """Do what the controller does at one look: note, wake, admit, weigh, drain, release; check its promises."""
    now = dict(zip(NODES, world, strict=True))
    for name, own in now.items():
        if own.phase == "waking" and own.up:
            now[name] = replace(own, phase="ready")
        elif own.phase == "ready" and not own.up:
            now[name] = replace(own, phase="lost", rows=False)
    seen = tuple(now.values())
    for step in wakes(views(seen, wanted, set()), 3):
        assert now[step.node].phase in ("released", "lost")
        now[step.node] = replace(now[step.node], phase="waking", up=False)
    for step in admissions(views(tuple(now.values()), wanted, set())):
        own = now[step.node]
        now[step.node] = replace(own, admitted=True, phase="ready" if own.phase == "draining" else own.phase)
    # Rows are shared among the wanted nodes that serve; while one of them is missing, leaving ones help.
    able = {name for name, own in now.items() if serving(own)}
    short = any(not serving(now[name]) for name in wanted)
    weighted = able if short else able & wanted or set(sorted(able)[:1])
    for name in NODES:
        if name in weighted:
            now[name] = replace(now[name], rows=True)
    need = max(1, len(wanted))
    before = len(able)

    def covers(names: frozenset[str]) -> bool:
        return len(names) >= need

    for step in departures(views(tuple(now.values()), wanted, weighted), 3, covers):
        own = now[step.node]
        if step.kind == "drain":
            assert step.node not in wanted
            assert step.node not in weighted
            now[step.node] = replace(own, phase="draining")
        elif step.kind == "release":
            assert own.phase == "draining"
            assert not own.rows
            assert step.node not in wanted
            now[step.node] = replace(own, phase="released", up=False)
        else:
            assert now[step.node].phase == "released"
            now[step.node] = replace(now[step.node], admitted=False)
    left = sum(serving(own) for own in now.values())
    assert left >= min(before, need), "capacity is lowered only down to what is needed"
    return tuple(now.values())


def happenings(world: World) -> Iterator[World]:
    """Everything that the world may do between two looks."""
    for at, own in enumerate(world):
        others = []
        if own.phase == "waking" and not own.up:
            others.append(replace(own, up=True))
        if own.up:
            others.append(replace(own, up=False, rows=False))
        if own.phase == "draining" and own.rows:
            others.append(replace(own, rows=False))
        for other in others:
            yield (*world[:at], other, *world[at + 1 :])


def settle(world: World, wanted: frozenset[str]) -> World:
    """Let nothing more go wrong for some looks."""
    for _ in range(8):
        world = look(world, wanted)
        world = tuple(
            replace(own, up=own.up or own.phase == "waking", rows=own.rows and own.phase == "ready") for own in world
        )
    return world


@pytest.mark.slow
def test_every_state_of_three_nodes_keeps_the_rules_and_settles() -> None:
    wishes = [frozenset(names) for count in range(4) for names in itertools.combinations(NODES, count)]
    start: World = (Machine("ready", True, True, True),) * 3
    seen: set[World] = {start}
    ahead = [start]
    while ahead:
        world = ahead.pop()
        for wanted in wishes:
            for after in (look(world, wanted), *happenings(world)):
                if after not in seen:
                    seen.add(after)
                    ahead.append(after)
    assert len(seen) > 500, "the world moves"
    for world in seen:
        for wanted in wishes[1:]:
            ends = dict(zip(NODES, settle(world, wanted), strict=True))
            assert {name for name, own in ends.items() if serving(own)} == wanted
            assert all(own.phase == "released" and not own.admitted for name, own in ends.items() if name not in wanted)


def test_the_last_node_stays_even_if_nothing_is_wanted() -> None:
    world = settle((Machine("ready", True, True, True),) * 3, frozenset())
    assert sum(serving(own) for own in world) == 1


def test_a_drained_node_that_an_operator_keeps_is_not_released() -> None:
    view = NodeView("a", "draining", empty=True, stays=True)
    assert departures([view], 3, lambda _: True) == []


def test_no_more_nodes_change_at_once_than_there_is_room_for() -> None:
    asleep = [NodeView(name, "released", wanted=True) for name in NODES]
    assert len(wakes(asleep, 2)) == 2
    leaving = [NodeView(name, "ready", usable=True, admitted=True, may_leave=True) for name in NODES]
    assert len(departures(leaving, 1, lambda _: True)) == 1
