"""The policies of servers on emulated GPUs: what each begins with, until an operator says otherwise.

They lie here alone, because the solver process imports them: beside a scene they would have it import a whole server.
"""

from __future__ import annotations

from clover.policies.plans import plan_fixed
from clover.types import GroupCount, Plan, State

TWO_GPUS = {"full@7g.40gb": 2}
TWO_INSTANCES = {"full@1g.10gb": 2}


def configuration(groups: dict[str, int]) -> tuple[GroupCount, ...]:
    """`{"full@7g.40gb": 2}` as a configuration."""
    return tuple(
        GroupCount(variant=key.split("@")[0], profile=key.split("@")[1], count=n) for key, n in sorted(groups.items())
    )


def policy_name(policy: type) -> str:
    """Return the name of a policy of this module in settings."""
    return f"{__name__}:{policy.__name__}"


class BaseOnTwoGpus:
    """BASE on two A100s."""

    name = "base two GPUs"

    def propose(self, state: State) -> Plan:
        return plan_fixed(state, configuration(TWO_GPUS), policy=self.name)


class BestOnTwoInstances:
    """The best variant on both instances of a pod."""

    name = "base two instances"

    def propose(self, state: State) -> Plan:
        return plan_fixed(state, configuration(TWO_INSTANCES), policy=self.name)


class BestOnAGpu:
    """The most accurate variant on a whole GPU without MIG."""

    name = "one variant"

    def propose(self, state: State) -> Plan:
        return plan_fixed(state, configuration({"full@gpu": 1}), policy=self.name)


class LightEverywhere:
    """`light` on a core, or on all seven slices of an A100."""

    name = "light"

    def propose(self, state: State) -> Plan:
        groups = {"light@1c": 1} if state.devices[0].kind == "cpu" else {"light@1g.5gb": 7}
        return plan_fixed(state, configuration(groups), policy=self.name)
