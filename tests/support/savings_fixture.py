"""A controller whose family serves as the model says, with the shadows that add up beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from clover.accounting import Spans
from clover.control.baselines.saved import saved
from clover.control.baselines.shadow import Shadow
from clover.errors import PlanError
from clover.planning.budget.counterfactual import Fixed, Mix, lanes_of, mix_from, mix_of
from clover.planning.budget.frontiers import fixed_mixes
from clover.planning.model.problem import accuracies
from clover.types import State
from tests.support.control_fixture import Rig
from tests.support.profiles_fixture import profile

RATE = 50.0


def drive(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(story())


def mix(item: Fixed) -> Mix:
    made = mix_from(profile(), item)
    assert made is not None
    return made


class SavingServer(Rig):
    """A rig that serves as the model says, but for a meter that shows `ratio` times as much.  `solve`: knows mixes."""

    def __init__(self, *, solve: bool = True, ratio: float = 1.7, **more: Any) -> None:
        super().__init__(**more)
        self.ratio = ratio
        self.asked: list[State] = []
        self.refuse = ""
        self.controller.shadows._alternatives = self.alternatives if solve else None

    async def alternatives(self, asked: State) -> tuple[Fixed, ...]:
        self.asked.append(asked)
        if self.refuse:
            raise PlanError(self.refuse)
        return fixed_mixes(asked, asked.arrival_rate)

    @property
    def shadow(self) -> Shadow:
        return self.controller.shadows.by_family["toy"]

    async def serve(
        self, shares: dict[str, float], seconds: int = 12, *, rate: float = RATE, g: float = 100.0, look: bool = True
    ) -> None:
        """Answer `rate` rows a second by what runs; 2 W of idle power are held, and 1 W by nobody."""
        standing = self.family.deployed
        assert standing is not None
        served = mix_of(lanes_of(self.profile, standing.configuration), shares, accuracies(self.profile))
        for _ in range(seconds):
            self.clock.now_s += 1.0
            spans = Spans(seconds=1.0, unowned={"cpu0": (1.0, g * 1.0)})
            span = spans.for_family("toy")
            span.rows = {variant: round(rate * share) for variant, share in shares.items() if rate * share > 0.0}
            span.methods = {"measured"}
            rows = sum(span.rows.values())
            active_j = rows * served.joules(rate) * self.ratio if served is not None else 0.0
            span.share.active_j, span.share.active_g = active_j, active_j * g
            span.share.idle_j, span.share.idle_g = 2.0, 2.0 * g
            self.controller.shadows.compare(spans)
            if look:
                self.controller.shadows.poll()
                await asyncio.sleep(0)
                await asyncio.sleep(0)

    def told(self, kind: str) -> dict[str, Any]:
        found = saved(self.shadow)
        assert found is not None
        told: dict[str, Any] = found[kind]
        return told
