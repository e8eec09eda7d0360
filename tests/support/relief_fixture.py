"""A fleet with standby workers: a small one beside every large one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from clover.types import Assignment, Routing
from tests.support.fleet_fixture import House, at

LARGE, SMALL = Routing(shares={"large": 1.0}), Routing(shares={"small": 1.0})


class StandbyChooser:
    """A small worker beside every large one, called after 20 ms; everybody serves 100 rows/s."""

    def __init__(self) -> None:
        self.ms = 20.0

    def choose(self, routed: Sequence[Assignment]) -> tuple[Assignment, ...]:
        return tuple(msgspec.structs.replace(item, variant="small") for item in routed if item.variant == "large")

    def rows_per_s(self, assignment: Assignment) -> float:
        return 100.0

    def wait_ms(self) -> float:
        return self.ms


async def with_relief(house: House, *places: int) -> list[Assignment]:
    """Large workers at `places`, and who stands by beside them."""
    chooser: Any = StandbyChooser()
    house.fleet.standby_crew.chooser = chooser
    items = [at(place, "large") for place in places]
    for item in items:
        await house.fleet.spawn(item)
    house.fleet.route(tuple(items), LARGE)
    house.fleet.watch()
    await house.settle()
    return items


def standing(house: House) -> list[str]:
    return [item["placement"] for item in house.fleet.describe() if item["state"] == "standing by"]
