"""The planner: from a request to a decision, for one family at a time.

A request becomes a state.  The policy in the solver process makes a plan of the state.  The plan is checked, reviewed
if an operator asked for it, and taken to the gate (`clover.control.plan.gate`).  If it passes, the executor puts it in
force; if not, the plan of the workers that run is taken instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from msgspec import structs

from clover.control.plan import gate
from clover.control.plan.executor import Executor
from clover.control.plan.recording import PlanResult, record
from clover.control.plan.ways import Solver, Way, WayFinder
from clover.control.state.context import Context
from clover.control.state.family import DeployedPlan, Family
from clover.control.state.request import Pin, PlanRequest
from clover.control.state.triggers import RETRY_S
from clover.errors import CloverError, PlanError, PolicyFault
from clover.planning.budget.forecast import Outlook
from clover.planning.model.problem import LEAST_RATE
from clover.planning.transition.stages import served
from clover.policies import SPENDING
from clover.policies.demanded import heeds, with_met
from clover.types import Assignment, Configuration, Decision, Plan, State, Transition, configuration_of

_RATE_FELL = 0.95
"""How far the rate has to fall before it is asked again whether a plan is feasible that was not."""
PAYBACK_S = 300.0
"""A change may lose capacity for a moment if it misses fewer rows than the workers that run would within this time:
for five minutes a load that is too much for them can be expected to last."""
_WITHOUT_MARGINS = (
    "without the margin for what chance does to accuracy, with which no plan keeps the limits",
    "without the margins for what chance does to accuracy and rate, with which no plan keeps the limits",
)


@dataclass(frozen=True)
class _Admitted:
    """The plan that may be taken.  `held`: why it is not the policy's plan; `may_lose`: whether capacity may be lost on
    the way to it; `way`: the way, if one was searched for."""

    plan: Plan
    held: str = ""
    may_lose: bool = False
    way: Way | None = None


class Planner:
    """Makes plans and has them carried out.  The caller holds the context's lock."""

    def __init__(self, context: Context, solver: Solver, executor: Executor) -> None:
        self._context = context
        self._solver = solver
        self._executor = executor
        self._infeasible: dict[str, State] = {}
        """By family, the last state without any margins in which no plan was feasible."""

    async def propose(self, family: Family, request: PlanRequest) -> tuple[State, Plan]:
        """Return the state of a family and its plan by the policy in force (or by the request's pin).  PlanError if
        there is none.  If no plan keeps the limits with the margins for sampling, a plan that keeps them without is
        better than the least bad one."""
        context = self._context
        context.look_at_memory(family)
        conditions = await context.conditions(family)
        if not conditions.devices:
            raise PlanError(f"no device is left for {family.name}{context.lost_suffix()}")
        pin = context.pin_of(family, request.pin)
        if pin.policy:  # a configuration that is given says for itself how many cores it takes
            held = family.sleep.held(conditions.devices, context.monotonic())
            conditions = replace(conditions, devices=held)
        outlook: Outlook | None = None
        if pin.policy in SPENDING:
            grid_s, horizon_s = conditions.grid_s, family.config.budget_horizon_s
            family.ledger.observe(grid_s, family.observed, horizon_s)
            outlook = await context.grid.outlook(
                conditions.reading,
                family.ledger.rates,
                grid_s=grid_s,
                until_s=family.ledger.end_s(grid_s, horizon_s),
                rate=max(family.observed.get("arrival_rate", 0.0), LEAST_RATE),  # without the margin of a plan's rate
            )
            family.ledger.label = outlook.label
        family.sample.observe(family.fleet.guard_report())
        demand = family.demand.wanted(context.monotonic()) if heeds(pin.policy) else ()
        state = family.state(conditions, context.config, request, outlook=outlook, demand=demand)
        policy = pin.policy or "objective"
        plan = await self._solver.propose(state, policy, pin.configuration)
        if not plan.feasible and request.rate is None:
            state, plan = await self._without_margins(family, state, plan, policy, pin.configuration)
        gate.check_plan(plan, family, state.objective.slo_ms)
        context.least_saving.record_plan(plan.seconds)
        return with_met(state, plan), plan

    async def take_over(self, family: Family, running: tuple[Assignment, ...]) -> None:
        """Put in force what is `running` of a family that had no plan.  PlanError if it could not be planned so."""
        await self._context.read_grid()
        pin = Pin(configuration=configuration_of(running))
        _, plan = await self.propose(family, PlanRequest(trigger="start", pin=pin, force=True))
        family.applier.adopt(running)
        family.deployed = DeployedPlan(running, plan.routing, plan)

    async def _without_margins(
        self, family: Family, state: State, plan: Plan, policy: str, configuration: Configuration | None
    ) -> tuple[State, Plan]:
        """Return the first feasible plan with fewer of the margins of `state`, and the state without these margins; if
        there is none, the plan and state given."""
        bare = family.without_margins(state, self._context.config)
        if bare[-1] == state or self._is_in_vain(bare[-1]):
            return state, plan
        tried = [state]
        for fewer, why in zip(bare, _WITHOUT_MARGINS, strict=True):
            if fewer not in tried:
                tried.append(fewer)
                bold = await self._solver.propose(fewer, policy, configuration)
                if bold.feasible:
                    return fewer, structs.replace(bold, reason=f"{bold.reason}; {why}")
        self._infeasible[family.name] = bare[-1]
        return state, plan

    def _is_in_vain(self, state: State) -> bool:
        """Return whether no plan was feasible in a state that asked for no more than `state` does."""
        before = self._infeasible.get(state.family)
        return (
            before is not None
            and state.arrival_rate > _RATE_FELL * before.arrival_rate
            and (state.profile, state.devices) == (before.profile, before.devices)
            and (state.objective.slo_ms, state.objective.accuracy_floor)
            == (before.objective.slo_ms, before.objective.accuracy_floor)
        )

    async def plan_and_apply(self, family: Family, request: PlanRequest) -> Decision:
        """Make a plan and act on it as request and mode allow.  PlanError if no plan was made; the decision says what
        happened to a plan that was made."""
        context = self._context
        if family.fleet.asleep:
            await family.fleet.wake()
        started_s = context.monotonic()
        family.observe(started_s)
        family.demand.observe(started_s, family.fleet.accuracy_demand())
        family.transition = None
        try:
            state, plan = await self.propose(family, request)
        except CloverError as error:
            if isinstance(error, PolicyFault) or not (missing := family.memory_troubles.words):
                self._record_failure(family, request, started_s, error)
                raise
            why = PlanError(f"{error}; {missing}")  # it may be what the plan is missing
            if family.deployed is None and not request.dry_run:
                family.memory_troubles.record_deadlock(started_s)
            self._record_failure(family, request, started_s, why)
            raise why from error
        refused, note = request.review(state, plan) if request.review is not None else (False, "")
        if request.dry_run or refused:
            action = "dry run" if request.dry_run else "refused"
            result = PlanResult(action=action, detail=note, state=state, plan=plan, answers_demand=False)
            return record(context, family, request, started_s, result)
        family.record_answer(context.grid.now())
        family.triggers.record_plan(state.intensity, state.arrival_rate, family.missing)
        if not request.force and context.mode_of(family) != "active":
            result = PlanResult(action="observed", detail=note, state=state, plan=plan)
            return record(context, family, request, started_s, result)
        detail, may_lose, way = "", False, None
        bare, _ = family.without_margins(state, context.config)
        finder = WayFinder(self._solver, partial(self._executor.ways, family), family.corrected, state, bare)
        avoided = family.backed_off(plan.configuration, context.monotonic())
        try:
            moves = may_lose = context.must_move(family)
            if moves:
                detail = "the workers that run are on another model's places now"
            elif not request.force and (avoided or not gate.keeps_workers(plan, family.deployed)):
                admitted = await self._admit(family, plan, state, finder)
                plan, detail, may_lose, way = admitted.plan, admitted.held, admitted.may_lose, admitted.way
            if way is None and family.deployed is not None and not gate.keeps_workers(plan, family.deployed):
                way = await finder.best(plan.deployment)
            done = await self._executor.apply(family, plan, way, may_lose=may_lose)
            if way is not None and way.helper:
                detail = _join(detail, f"{way.helper} helps out on the way")
        except CloverError as error:  # a device changed while the plan was made, or refuses
            done = PlanResult(action="fault" if isinstance(error, PolicyFault) else "failed", detail=str(error))
            family.triggers.again(context.monotonic() + RETRY_S)
        rested_s = family.sleep.again_s(state.devices, context.monotonic())
        if rested_s is not None:
            family.triggers.again(rested_s)
        result = PlanResult(
            action=done.action, detail=_join(note, detail, done.detail), state=state, plan=plan, before=done.before
        )
        return record(context, family, request, started_s, result)

    def _record_failure(self, family: Family, request: PlanRequest, started_s: float, error: CloverError) -> None:
        """Record that no plan was made, and plan again before long (not at every poll)."""
        context, reading = self._context, self._context.grid.reading
        if not request.dry_run:
            family.record_answer(context.grid.now())
            if reading is not None:
                family.triggers.record_plan(reading, family.rate(context.config), family.missing)
                family.triggers.again(context.monotonic() + RETRY_S)
        action = "fault" if isinstance(error, PolicyFault) else "refused" if request.dry_run else "failed"
        record(context, family, request, started_s, PlanResult(action=action, detail=str(error)))

    # --- which plan is taken ------------------------------------------------------------------------------------------

    async def _admit(self, family: Family, plan: Plan, state: State, ways: WayFinder) -> _Admitted:
        """Return `plan`, or the plan that may be taken instead, and why."""
        context, deployed = self._context, family.deployed
        if deployed is None:
            return _Admitted(plan)
        now_s, held = context.monotonic(), ""
        weighed = plan.policy == "objective"  # a custom policy knows for itself when a change is worth it
        if (stay := gate.failed_lately(family, plan, now_s)) is not None:
            held = self._stay(family, stay)
            usable = (
                other.configuration
                for other in plan.candidates
                if other.feasible and not family.backed_off(other.configuration, now_s)
            )
            other = next(usable, None)
            plan = await self._plan_fixed(family, state, other if other is not None else deployed.configuration)
            if other is None or gate.keeps_workers(plan, deployed):
                return _Admitted(plan, held)
        # A worker that was brought for rows that do not come any more goes, whatever noise there is.
        compared = (weighed and not family.demand.lapsed(now_s)) or not plan.feasible
        if compared and not family.backed_off(deployed.configuration, now_s):
            here = await self._plan_here(family, state)
            if here is not None and (stay := gate.within_noise(family, plan, here, state)) is not None:
                return _Admitted(here, _join(held, stay.reason))
        way = await ways.best(plan.deployment)
        family.transition = way.transition
        stay = gate.below_floor(plan, way.transition, context.config.allow_capacity_loss)
        if stay is not None:
            here = await self._plan_fixed(family, state, deployed.configuration)
            if not self._pays_for_loss(family, plan, way.transition, here):
                return _Admitted(here, stay.reason)  # and the transition on record is the one that was refused
            return _Admitted(plan, f"{stay.reason}; to stay would miss more rows", may_lose=True, way=way)
        return _Admitted(plan, held, way=way)

    def _pays_for_loss(self, family: Family, plan: Plan, transition: Transition, here: Plan) -> bool:
        """Return whether `transition`, which leads to `plan`, may go below the capacity floor because `here`, the best
        plan of the workers that run, would miss more rows."""
        context = self._context
        return gate.pays_for_loss(
            plan,
            transition,
            here,
            slo_ms=family.targets.slo_ms,
            rate=family.arrivals.rows_per_s(),
            capacity=served(family.desired, family.capacity(context.share_of(family))),
            within_s=PAYBACK_S,
        )

    async def _plan_here(self, family: Family, state: State) -> Plan | None:
        """Return the plan of the workers that run; None if the devices do not allow them any more."""
        assert family.deployed is not None
        try:
            return await self._plan_fixed(family, state, family.deployed.configuration)
        except PlanError:
            return None

    async def _plan_fixed(self, family: Family, state: State, configuration: Configuration) -> Plan:
        """Return the best plan of exactly `configuration`; PlanError if there is none."""
        plan = await self._solver.propose(state, "objective", configuration)
        gate.check_plan(plan, family, state.objective.slo_ms)
        return plan

    def _stay(self, family: Family, stay: gate.Stay) -> str:
        """Have the family planned again when the hold ends; return the reason."""
        if stay.again_s is not None:
            family.triggers.again(stay.again_s)
        return stay.reason


def _join(*parts: str) -> str:
    return "; ".join(filter(None, parts))
