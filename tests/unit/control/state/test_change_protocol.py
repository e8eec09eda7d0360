"""Every state the machine can be in while it is changed, refused, killed and started again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import get_args

import pytest

from clover.control.state.apply import ApplyError
from clover.errors import DeviceError, WorkerError
from tests.reference.change_box import Box, Deployment, Mutation, State
from tests.reference.change_protocol import Model
from tests.reference.explorer import explore
from tests.support.apply_fixture import Rig, always, standing
from tests.support.geometry_fixture import A30, A100, place, runs

pytestmark = pytest.mark.slow

ONE, TWO = Box(A30, 4, ("gpu0",)), Box(A30, 4, ("gpu0", "gpu1"))
BIG, SMALL = Box(A100, 7, ("gpu0",)), Box(A100, 7, ("gpu0",), (place("3g.20gb", 4),))


def of(*parts: tuple[str, str, int], gpu: str = "gpu0") -> Deployment:
    return tuple(runs(variant, profile, start, gpu) for variant, profile, start in parts)


def whole(gpu: str = "gpu0") -> Deployment:
    return of(("large", "4g.24gb", 0), gpu=gpu)


def halves(gpu: str = "gpu0", variant: str = "small") -> Deployment:
    return of((variant, "2g.12gb", 0), (variant, "2g.12gb", 2), gpu=gpu)


def mixed(gpu: str = "gpu0") -> Deployment:
    return of(("large", "2g.12gb", 0), ("small", "1g.6gb", 2), ("small", "1g.6gb", 3), gpu=gpu)


CASES: dict[str, tuple[Box, Deployment, Deployment]] = {
    "cut a GPU": (ONE, whole(), halves()),
    "join a GPU": (ONE, halves(), whole()),
    "keep a half and cut the other": (ONE, halves(variant="large"), mixed()),
    "swap a variant and join a half": (ONE, mixed(), halves()),
    "finest": (ONE, whole(), of(*(("small", "1g.6gb", start) for start in range(4)))),
    "first start": (TWO, (), (*halves(), *whole("gpu1"))),
    "two GPUs in turn": (TWO, (*whole(), *whole("gpu1")), (*halves(), *halves("gpu1"))),
    "one of two": (TWO, (*whole(), *halves("gpu1")), (*halves(variant="large"), *halves("gpu1"))),
    "in at one, out at the other": (TWO, whole(), whole("gpu1")),
    "two exchanges on an A100": (
        BIG,
        of(("large", "4g.20gb", 0), ("small", "2g.10gb", 4), ("small", "1g.5gb", 6)),
        of(("small", "2g.10gb", 0), ("small", "2g.10gb", 2), ("large", "3g.20gb", 4)),
    ),
    "beside somebody else": (
        SMALL,
        of(("large", "4g.20gb", 0)),
        of(("small", "2g.10gb", 0), ("small", "2g.10gb", 2)),
    ),
}


def explored(model: Model, least: int = 30) -> Counter[str]:
    found = explore(model)
    assert not found.violation, f"{found.violation}, after\n" + "\n".join(found.trace)
    assert found.states >= least
    return found.ends


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_fault_and_a_crash_anywhere(case: str) -> None:
    ends = explored(Model(*CASES[case], faults=1, crashes=1))
    assert {"forward", "start", "not started" if case == "first start" else "before"} <= ends.keys()


@pytest.mark.parametrize("case", ["cut a GPU", "join a GPU", "swap a variant and join a half"])
def test_two_faults_and_two_crashes_anywhere(case: str) -> None:
    ends = explored(Model(*CASES[case], faults=2, crashes=2))
    assert {"forward", "before", "start", "what is left"} <= ends.keys()


def test_two_faults_while_two_gpus_change_in_turn() -> None:
    assert "what is left" in explored(Model(*CASES["two GPUs in turn"], faults=2, crashes=1), least=50_000)


def test_without_faults_and_crashes_there_is_one_end() -> None:
    for case in CASES.values():
        assert explored(Model(*case, faults=0, crashes=0), least=4) == {"forward": 1}


BROKEN: dict[Mutation, str] = {
    "destroy before drain": "2",
    "create before destroy": "1",
    "route before ready": "3",
    "record last": "4",
    "blind restart": "4",
    "back at once": "6",
}
"""Which rule each mutation breaks."""


@pytest.mark.parametrize("mutation", sorted(BROKEN))
def test_a_broken_protocol_is_found_out(mutation: Mutation) -> None:
    found = explore(Model(*CASES["two GPUs in turn"], faults=1, crashes=1, mutation=mutation))
    assert found.violation.startswith(BROKEN[mutation])
    assert len(found.trace) > 1


def test_every_mutation_is_tried() -> None:
    assert {"", *BROKEN} == set(get_args(Mutation))


@pytest.mark.parametrize("case", ["cut a GPU", "swap a variant and join a half", "two GPUs in turn", "one of two"])
def test_what_really_carries_out_ends_where_the_model_may_end(case: str) -> None:
    """The applier with one refusal, at any call: its end is among the model's, and each end of the model is reached."""
    box, before, target = CASES[case]
    model = Model(box, before, target, faults=1, crashes=0)
    possible: set[tuple[frozenset[str], frozenset[str]]] = set()

    def note(state: State) -> None:
        if state.control[0] == "end":
            workers = frozenset(f"{item.variant}@{item.placement.id}" for item in model.who(state.ready))
            possible.add((workers, frozenset(item.id for item in model.where(state.stuck))))

    assert not explore(model, seen=note).violation
    reached = set()
    places = sorted({item.placement.id for item in (*before, *target)})
    for kind, what in [("", ""), *((kind, what) for kind in ("create", "destroy", "spawn") for what in places)]:
        rig = asyncio.run(standing(before, gpus=len(box.gpus), profiles=box.profiles, compute=box.compute))
        error = WorkerError("refused") if kind == "spawn" else DeviceError("refused")
        asyncio.run(_changed(rig, before, target, kind, what, error))
        rig.consistent()
        stuck = frozenset(item for gpu in rig.gpus.values() for item in gpu.stuck)
        reached.add((frozenset(f"{item.variant}@{item.placement.id}" for item in rig.workers), stuck))
    assert reached == possible


async def _changed(
    rig: Rig, before: Deployment, target: Deployment, kind: str, what: str, error: DeviceError | WorkerError
) -> None:
    refuse = always(kind, what, error)
    refused = 0

    def once(this: str, where: str) -> DeviceError | WorkerError | None:
        nonlocal refused
        found = refuse(this, where) if not refused else None
        refused += found is not None
        return error if found is not None else None

    rig.fault = once
    try:
        await rig.change(before, target)
    except ApplyError:
        assert refused
