"""Every state of a change of workers that hold several variants, and of GPUs that are parked and woken."""

from __future__ import annotations

import pytest

from tests.reference.change_box import Box, Deployment
from tests.reference.change_protocol import Model
from tests.reference.change_residents import ResidentModel
from tests.reference.explorer import explore
from tests.support.geometry_fixture import A30, runs

pytestmark = pytest.mark.slow

ONE, TWO = Box(A30, 4, ("gpu0",)), Box(A30, 4, ("gpu0", "gpu1"))
BOTH = frozenset({"small", "large"})


def halves(*variants: str, gpu: str = "gpu0") -> Deployment:
    """Return workers on two halves of a GPU; "a+b" are two variants on one."""
    return tuple(
        runs(variant, "2g.12gb", start, gpu)
        for start, some in zip((0, 2), variants, strict=True)
        for variant in some.split("+")
    )


def whole(variants: str, gpu: str = "gpu0") -> Deployment:
    """Return workers on a whole GPU."""
    return tuple(runs(variant, "4g.24gb", 0, gpu) for variant in variants.split("+"))


CASES: dict[str, tuple[Box, Deployment, Deployment]] = {
    "one variant for another": (ONE, halves("small", "small"), halves("large", "large")),
    "a second one beside": (ONE, halves("small", "small"), halves("small+large", "small")),
    "the second one goes": (ONE, halves("small+large", "small+large"), halves("small", "large")),
    "crossed": (ONE, halves("small", "large"), halves("large", "small")),
    "cut under two": (ONE, whole("small+large"), halves("small", "large")),
    "join under two": (ONE, halves("small+large", "small"), whole("small+large")),
}


@pytest.mark.parametrize("held", [BOTH, frozenset({"small"}), frozenset()], ids=["both", "small", "none"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_a_fault_and_a_crash_anywhere_among_workers_that_hold_several(case: str, held: frozenset[str]) -> None:
    found = explore(ResidentModel(*CASES[case], held=held))
    assert not found.violation, f"{found.violation}, after\n" + "\n".join(found.trace)
    assert {"forward", "start"} <= found.ends.keys()
    assert found.states > 30


@pytest.mark.parametrize("case", ["one variant for another", "a second one beside", "the second one goes", "crossed"])
def test_what_processes_hold_already_is_a_change_of_routing(case: str) -> None:
    model = ResidentModel(*CASES[case], held=BOTH, faults=0, crashes=0)
    assert model.routing_alone
    found = explore(model)
    assert (found.violation, found.ends) == ("", {"forward": 1})
    assert not ResidentModel(*CASES["cut under two"], held=BOTH).routing_alone


def test_a_process_that_ends_with_one_of_its_workers_is_found_out() -> None:
    found = explore(ResidentModel(*CASES["one variant for another"], held=BOTH, shared=True))
    assert found.violation.startswith("3")


PARKED: dict[str, tuple[Box, Deployment, Deployment]] = {
    "park one": (TWO, (*whole("small"), *halves("small", "large", gpu="gpu1")), whole("small")),
    "wake one": (TWO, whole("small"), (*whole("small"), *halves("small", "large", gpu="gpu1"))),
    "park one and cut the other": (TWO, (*whole("large"), *whole("large", gpu="gpu1")), halves("small", "small")),
    "park all": (ONE, halves("small", "large"), ()),
    "wake into another cut": (TWO, halves("small", "large"), (*halves("small", "large"), *whole("large", gpu="gpu1"))),
}


@pytest.mark.parametrize("case", sorted(PARKED))
def test_a_fault_and_a_crash_anywhere_while_gpus_are_parked_and_woken(case: str) -> None:
    """A GPU that is parked has no workers, and so no instances of ours: a plan like any other, up to nothing at all."""
    for kind in (Model, ResidentModel):
        more = {"held": BOTH} if kind is ResidentModel else {}
        model = kind(*PARKED[case], faults=1, crashes=1, **more)
        found = explore(model)
        assert not found.violation, f"{found.violation}, after\n" + "\n".join(found.trace)
        assert "forward" in found.ends
        if case != "park all":
            kept = {item.placement.device for item in model.who(model.kept)}
            assert kept == ({"gpu0"} if case not in ("park one and cut the other", "park all") else set())
