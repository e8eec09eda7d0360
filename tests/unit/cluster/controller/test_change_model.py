"""Every state that a small cluster can be in while it is changed, faulted, and taken over by another controller."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from clover.cluster.controller import acting as controller_acting
from clover.cluster.controller.acting import ClusterActor
from clover.cluster.controller.changes import Covers, NodeView, departures
from clover.cluster.controller.controller import ClusterController
from clover.cluster.controller.records import ChangeStep
from tests.reference.cluster_look import Looker
from tests.reference.cluster_model import ClusterModel
from tests.reference.cluster_world import State, ranked
from tests.reference.explorer import Found, explore

pytestmark = pytest.mark.slow


@contextmanager
def modelled(names: str, need: int, survive: str, faults: int, flips: int, kinds: str) -> Iterator[ClusterModel]:
    looker = Looker(tuple(names), need, survive)
    logging.disable()  # what thousands of controllers say
    try:
        yield ClusterModel(looker, faults=faults, flips=flips, kinds=frozenset(kinds.split(", ")))
    finally:
        logging.disable(logging.NOTSET)
        looker.close()


def explored(model: ClusterModel) -> Found:
    states: list[State] = []
    found = explore(model, seen=states.append)
    assert not found.violation, f"{found.violation}, after\n" + "\n".join(found.trace)
    for state in states:
        assert not (why := model.settles(state)), f"{why}, although nothing more goes wrong after\n{state}"
    return found


CASES = {
    "a call fails, or its answer is lost": ("ab", 1, "none", 1, 1, "fails, late"),
    "an order takes long": ("ab", 1, "none", 1, 1, "hangs"),
    "a controller dies": ("ab", 1, "none", 1, 1, "dies"),
    "a node dies, or its server": ("ab", 1, "none", 1, 1, "kill, crash"),
    "a node is cut off": ("ab", 1, "none", 1, 1, "cut"),
    "two controllers": ("ab", 1, "none", 1, 0, "another"),
    "a controller stands still": ("ab", 1, "none", 1, 0, "stops"),
    "a reserve": ("abc", 2, "node", 0, 1, ""),
    "a reserve, and a node dies": ("abc", 2, "node", 1, 0, "kill"),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_have_a_node_whatever_happens_and_the_target_is_reached(case: str) -> None:
    with modelled(*CASES[case]) as model:
        assert explored(model).states > 100


# --- what the checker must find ---------------------------------------------------------------------------------------


async def _unasked(self: ClusterActor, views: list[NodeView]) -> list[NodeView]:
    return views


async def _sure(self: ClusterController) -> bool:
    return True


def _drained_at_once(views: list[NodeView], room: int, covers: Covers) -> list[ChangeStep]:
    return departures([view if view.phase != "ready" else _light(view) for view in views], room, covers)


def _light(view: NodeView) -> NodeView:
    return NodeView(**{**vars(view), "weighted": False})


BROKEN: dict[str, tuple[object, str, Callable[..., object], str, str]] = {
    "not who is healthy": (ClusterActor, "_vouched_nodes", _unasked, "kill", "leaves rows without a node"),
    "not who is in charge": (ClusterController, "_in_charge", _sure, "stops", "an old controller's"),
    "not what is weighted": (controller_acting, "departures", _drained_at_once, "fails", "with a weight of"),
}
"""What a controller does not ask, and what comes of it."""


@pytest.mark.parametrize("case", BROKEN)
def test_a_controller_without_one_of_its_rules_is_found_out(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, instead, kinds, expected = BROKEN[case]
    monkeypatch.setattr(owner, name, instead)
    with modelled("ab", 1, "none", 1, 1, kinds) as model:
        found = explore(model)
    assert expected in found.violation
    assert len(found.trace) > 1


def test_epochs_are_brought_down_to_their_order() -> None:
    assert ranked([7, 3, 4, 0, 90]) == {0: 0, 3: 2, 4: 3, 7: 5, 90: 7}
