"""The family `toy` of tests/families: what its variants answer, and settings that serve it as a cascade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from clover.policies.plans import plan_fixed
from clover.types import GroupCount, Plan, Routing, State

TOY = str(Path(__file__).parents[1] / "families" / "toy")
SEEN = {"half": 2, "full": 4}
"""How many of a row's four numbers a variant of the family looks at."""
THRESHOLD = 0.6


def expected(variant: str, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """What `variant` says of `rows`: the softmax of those numbers that it sees, the others taken for zero."""
    seen = rows.astype(np.float64)
    seen[:, SEEN[variant] :] = 0.0
    raised: NDArray[np.float64] = np.exp(seen)
    total: NDArray[np.float64] = raised.sum(axis=1, keepdims=True)
    return np.divide(raised, total)


class HalfThenFull:
    """The policy: a worker of each variant; `full` is asked where `half` is less sure than the threshold."""

    name = "half-then-full"

    def propose(self, state: State) -> Plan:
        configuration = tuple(GroupCount(variant=name, profile="1c", count=1) for name in ("full", "half"))
        plan = plan_fixed(state, configuration, policy=self.name)
        routing = Routing(shares={"half": 1.0}, chain=("half", "full"), thresholds=(THRESHOLD,))
        return msgspec.structs.replace(plan, routing=routing)


def settings(folder: Path) -> dict[str, Any]:
    return {
        "http": False,
        "cache_dir": str(folder),
        "backends": ("eager",),
        "energy_meter": "modelled",
        "policy": f"tests.support.toy_family:{HalfThenFull.__name__}",
        "slo_ms": 1000.0,
        "waits": False,
        "profile": "wait",
        "accuracy_floor": 1.0,
    }
