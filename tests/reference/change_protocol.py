"""A model of how the machine is changed, and a checker that looks at every state it can be in.

The model carries out what the planner really gives (`plan_transition`, forward and for the way back) on a small box of
GPUs.  A state says which instances stand, which of them are complete, which are on record as ours, which workers load,
are ready, are routed to, or are left over from a server that died; and what each step of the present stage has done.
Steps are taken apart where a crash in between would show:

    create   write the record | make the GPU instance | make its compute instance
    destroy  remove the compute instance | remove the GPU instance | strike the record out
    spawn    start the process | it is ready
    drain    no rows any more | the process is gone
    route    one write

From every state every next state is looked at, breadth first: any step of the stage proceeds (so all interleavings of a
stage's steps occur), any step is refused by the driver or its worker does not load (up to `faults` times: making either
half of an instance, removing either half, loading), the server dies (up to `crashes` times, also while it goes back or
starts), a left-over worker ends.  Dying takes all but the GPU instances and the record.  A restart looks at what
stands, keeps what the next deployment needs and removes what is ours beyond that; then that deployment is started.

What must be true in every state:

 1. the instances of a GPU are legal together, with those of others on it;
 2. every process is on a complete instance, and nothing is removed under one;
 3. rows go to workers that are ready, and nowhere else;
 4. every instance that is ours is on record (else a restart would take it for a foreign one);
 5. without faults and crashes: what is kept serves throughout, and no less than the transition promises;
 6. without crashes, if the transition promised that some worker serves and no slot is stuck, one does;

and where nothing can happen any more: the target, or the deployment before, or what is left serves (the slots that are
stuck are known), or after a crash the deployment that was started, or nothing was left behind by a start that failed.
All workers there are serve then, and only instances with a worker stand, but for stuck ones.

Not modelled: rows (a drain ends some time), how long anything takes, GPUs that are lost, workers that die by
themselves, several families, a record that is damaged, a machine that loses power (instances do not survive that).
Bounded: one or two GPUs, few faults and crashes.

`mutation` breaks the protocol in one way, which the checker has to find.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator

from clover.control.state.apply import matters, possible
from clover.planning.transition.stages import served
from clover.planning.transition.steps import plan_transition
from clover.types import Assignment, DeviceShape, Step, Transition
from tests.reference.change_box import (
    CREATE,
    DESTROY,
    DRAIN,
    ENDED,
    KINDS,
    NAMES,
    REFUSED,
    ROUTE,
    SPAWN,
    STRIKE,
    Action,
    Box,
    Deployment,
    Mutation,
    Names,
    Program,
    State,
    mutated,
)

_DIES = "the server dies"
_ENDS = ("forward", "before", "what is left", "start", "not started")


class Model(Names):
    """Model the protocol on `box` from `before` to `target`."""

    accidents = frozenset({_DIES})

    def __init__(
        self,
        box: Box,
        before: Deployment,
        target: Deployment,
        *,
        faults: int = 1,
        crashes: int = 1,
        floor: float = math.inf,
        mutation: Mutation = "",
    ) -> None:
        super().__init__(box)
        self.before = before
        self.target = target
        self.mutation = mutation
        self.faults, self.crashes = faults, crashes
        self._programs: list[Program] = []
        self._starts: dict[tuple[int, int], int] = {}
        self._backs: dict[tuple[int, int, int], int] = {}
        for item in (*before, *target):
            self.worker(item)
        self.transition = self.plan(before, target, box.shapes(), floor=floor)
        self.kept = self.mask(self.transition.kept)
        self._forward = self._program("forward", mutated(self.transition.steps, mutation), target)
        after_a_crash = [(0, target), (self.spots(target), target), (self.spots(before), before)]
        self._choices = [(keep, deployment) for keep, deployment in after_a_crash if deployment]

    def plan(
        self, running: Deployment, target: Deployment, shapes: tuple[DeviceShape, ...], floor: float = 0.0
    ) -> Transition:
        """Return the planner's steps."""
        return plan_transition(running, target, shapes, floor=floor)

    # --- the protocol

    def initial(self) -> State:
        spots, running = self.spots(self.before), self.mask(self.before)
        return self._settled(
            State(
                ("run", self._forward, 0), (), spots, spots, spots, 0, 0, running, running, 0, self.faults, self.crashes
            )
        )

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        if state.control[0] == "down":
            for number in range(len(self._choices)):
                yield f"restart {number}", self._settled(self._restarted(state, number))
        for index, action in enumerate(state.stage):
            if action[2] < ENDED:
                for label, after, progress in self._proceed(state, action):
                    stage = (*state.stage[:index], (*action[:2], progress), *state.stage[index + 1 :])
                    yield label, self._settled(after._replace(stage=stage))
        for index in range(len(self.workers)):
            if state.ghosts >> index & 1:
                yield f"left-over worker {index} ends", state._replace(ghosts=state.ghosts & ~(1 << index))
        if state.crashes and state.control[0] != "down":
            yield (
                "the server dies",
                state._replace(
                    control=("down", 0, 0),
                    stage=(),
                    stuck=0,
                    loading=0,
                    ready=0,
                    routed=0,
                    ghosts=state.ghosts | state.loading | state.ready,
                    crashes=state.crashes - 1,
                ),
            )

    def _proceed(self, state: State, action: Action) -> Iterator[tuple[str, State, int]]:
        """Yield how one step may proceed: (label, state, progress)."""
        kind, subject, progress = action
        bit = 1 << subject if kind != ROUTE else 0
        name = f"{NAMES[kind]} {self.named(kind, subject)}"
        if kind == ROUTE:
            yield name, state._replace(routed=subject), ENDED
        elif kind == STRIKE:
            yield name, state._replace(recorded=state.recorded & ~bit), ENDED
        elif kind == CREATE:
            yield from self._creates(state, bit, progress, name)
        elif kind == DESTROY:
            yield from self._destroys(state, bit, progress, name)
        elif kind == SPAWN:
            if progress == 0:
                yield f"{name}: starts", state._replace(loading=state.loading | bit), 1
            else:
                done = state._replace(loading=state.loading & ~bit)
                yield f"{name}: ready", done._replace(ready=state.ready | bit), ENDED
                if state.faults:
                    yield f"{name}: does not load", done._replace(faults=state.faults - 1), REFUSED
        elif progress == 0:
            yield f"{name}: no rows any more", state._replace(routed=state.routed & ~bit), 1
        else:
            yield f"{name}: gone", state._replace(ready=state.ready & ~bit), ENDED

    def _creates(self, state: State, bit: int, progress: int, name: str) -> Iterator[tuple[str, State, int]]:
        refused = state._replace(faults=state.faults - 1)
        late = self.mutation == "record last"
        if progress == 0:
            if state.recorded & state.made & state.complete & bit:
                yield f"{name}: stands", state._replace(stuck=state.stuck & ~bit), ENDED
                return
            known = state if late else state._replace(recorded=state.recorded | bit)
            yield f"{name}: recorded", known, 2 if state.made & bit else 1
        elif progress == 1:
            yield f"{name}: made", state._replace(made=state.made | bit), 2
            if state.faults:
                yield f"{name}: refused", refused._replace(recorded=state.recorded & ~bit), REFUSED
        elif progress == 2:
            done = state._replace(complete=state.complete | bit, stuck=state.stuck & ~bit)
            yield f"{name}: complete", done._replace(recorded=state.recorded | bit), ENDED
            if state.faults:
                yield f"{name}: not completed", refused, 3
        elif progress == 3:
            yield f"{name}: removed again", state._replace(made=state.made & ~bit), 4
            if state.faults:
                yield f"{name}: stuck", refused._replace(stuck=state.stuck | bit), REFUSED
        else:
            yield f"{name}: struck out", state._replace(recorded=state.recorded & ~bit), REFUSED

    def _destroys(self, state: State, bit: int, progress: int, name: str) -> Iterator[tuple[str, State, int]]:
        stuck = state._replace(faults=state.faults - 1, stuck=state.stuck | bit)
        if progress == 0 and not state.complete & bit:
            progress = 1
        if progress == 0:
            if self.under(state.ghosts) & bit:
                return  # in use for as long as the left-over worker lives: tried again until then
            yield f"{name}: compute instance removed", state._replace(complete=state.complete & ~bit), 1
        elif progress == 1:
            yield f"{name}: removed", state._replace(made=state.made & ~bit, stuck=state.stuck & ~bit), 2
        else:
            yield f"{name}: struck out", state._replace(recorded=state.recorded & ~bit), ENDED
            return
        if state.faults:
            yield f"{name}: refused", stuck, REFUSED

    def _restarted(self, state: State, choice: int) -> State:
        """Return the stage in which a restart puts in order what it finds."""
        keep, _ = self._choices[choice]
        actions: list[Action] = []
        for index in range(len(self.places)):
            bit = 1 << index
            if not state.recorded & bit:
                continue  # not ours, as far as anybody can tell
            seen = state.complete if self.mutation == "blind restart" else state.made
            if not seen & bit:
                actions.append((STRIKE, index, 0))
            else:
                actions.append((CREATE if keep & bit else DESTROY, index, 0))
        return state._replace(control=("restart", choice, 0), stage=tuple(actions))

    # --- what comes after a stage

    def _settled(self, state: State) -> State:
        """Return `state` with the next stage begun if the present one is over."""
        while all(action[2] >= ENDED for action in state.stage) and state.control[0] not in ("down", "end"):
            state = self._next(state)
        return state

    def _next(self, state: State) -> State:
        what, number, index = state.control
        refused = [action for action in state.stage if action[2] == REFUSED]
        state = state._replace(stage=())
        if what == "restart":
            # Slots that are stuck may call for another deployment, which does not need all that was kept.
            start = self._start(number, state.stuck)
            extra = state.complete & ~state.stuck & ~self.spots(self._programs[start].deployment)
            stage = tuple((DESTROY, index, 0) for index in range(len(self.places)) if extra >> index & 1)
            return state._replace(control=state.control if stage else ("run", start, 0), stage=stage)
        if what == "run":
            program = self._programs[number]
            later = program.after(index)
            if any(matters(self._step(action), later) for action in refused):
                return self._failed(state, number)
            if index < len(program.stages):
                return state._replace(
                    control=(what, number, index + 1), stage=self._actions(program.stages[index], state)
                )
            if program.purpose == "back":
                return self._tidy(state, number)
            # With every slot stuck there is nothing to start: the server says so and ends.
            started = program.deployment or program.purpose == "forward"  # a target may be nothing: all is parked
            return self._end(state, program.purpose if started else "not started")
        return self._way_back(state)

    def _failed(self, state: State, number: int) -> State:
        program = self._programs[number]
        if program.purpose == "back":
            return self._tidy(state, number)
        before = self.before if program.purpose == "forward" else ()
        wanted = self.spots(before)
        taken = tuple((CREATE, index, 0) for index in range(len(self.places)) if state.stuck & wanted & 1 << index)
        return state._replace(control=("take back", number, 0), stage=taken)

    def _way_back(self, state: State) -> State:
        what, number, _ = state.control
        before = self.before if self._programs[number].purpose == "forward" else ()
        mask = self.mask(before)
        if what == "take back":
            idle = state.ready & ~mask & ~(0 if self.mutation == "back at once" else state.routed)
            drains = tuple((DRAIN, index, 0) for index in range(len(self.workers)) if idle >> index & 1)
            return state._replace(control=("drop", number, 0), stage=drains)
        if what == "drop":
            return state._replace(control=("clean", number, 0), stage=self._unused(state, keep=self.spots(before)))
        if what == "clean":
            key = (state.ready, state.routed, state.stuck)
            if key not in self._backs:
                self._backs[key] = self._back(before, *key)
            return state._replace(control=("run", self._backs[key], 0))
        if what == "tidy":
            stage = ((ROUTE, state.ready, 0),) if state.ready and state.routed != state.ready else ()
            return state._replace(control=("last", number, 0), stage=stage)
        return self._end(state, "back" if self._programs[number].deployment else "not started")

    def _tidy(self, state: State, number: int) -> State:
        return state._replace(control=("tidy", number, 0), stage=self._unused(state, keep=0))

    def _unused(self, state: State, *, keep: int) -> tuple[Action, ...]:
        idle = state.complete & ~state.stuck & ~self.under(state.ready) & ~keep
        return tuple((DESTROY, index, 0) for index in range(len(self.places)) if idle >> index & 1)

    def _end(self, state: State, purpose: str) -> State:
        if purpose == "back":
            purpose = "before" if state.ready == self.mask(self.before) else "what is left"
        return state._replace(control=("end", _ENDS.index(purpose), 0))

    def _back(self, before: Deployment, ready: int, routed: int, stuck: int) -> int:
        """Return the program of the way back, as `Applier` plans it."""
        shapes = self.box.shapes(self.where(stuck))
        goal = possible(before, shapes, self.who(ready))
        back = self.plan(self.who(ready), goal, shapes, floor=math.inf)
        now = served(self.who(routed), lambda item: float(item.placement.slices))
        go = len(goal) == len(before) or back.lowest_capacity >= now
        return self._program("back", back.steps if go else (), before)

    def _start(self, choice: int, stuck: int) -> int:
        """Return the program that starts a deployment, another one if stuck slots do not allow the one chosen."""
        if (choice, stuck) not in self._starts:
            shapes = self.box.shapes(self.where(stuck))
            wanted = self._choices[choice][1]
            if len(possible(wanted, shapes, ())) < len(wanted):
                wanted = tuple(
                    Assignment(placement=place, family="toy", variant="other", backend="eager")
                    for shape in shapes
                    for place in (shape.layouts[0] if shape.layouts else ())
                )
            steps = self.plan((), wanted, shapes).steps
            self._starts[choice, stuck] = self._program("start", steps, wanted)
        return self._starts[choice, stuck]

    def _program(self, purpose: str, steps: Iterable[Step], deployment: Deployment) -> int:
        stages = [tuple(group) for _, group in itertools.groupby(steps, key=lambda step: step.stage)]
        self._programs.append(Program(purpose, stages, deployment))
        return len(self._programs) - 1

    def _actions(self, steps: tuple[Step, ...], state: State) -> tuple[Action, ...]:
        found: list[Action] = []
        for step in steps:
            if step.kind == "route":
                found.append((ROUTE, self.mask(step.routed), 0))
            elif step.placement is not None:
                found.append((KINDS[step.kind], self.place(step.placement), 0))
            elif step.assignment is not None:
                found.append((KINDS[step.kind], self.worker(step.assignment), 0))
        return tuple(found)

    def _step(self, action: Action) -> Step:
        kind, subject, _ = action
        if kind in (CREATE, DESTROY):
            return Step(kind="create" if kind == CREATE else "destroy", placement=self.places[subject])
        return Step(kind="spawn", assignment=self.workers[subject])

    # --- what must be true

    def violation(self, state: State) -> str:
        """Return what is wrong with `state`; empty if nothing is."""
        processes = self.under(state.loading | state.ready | state.ghosts)
        if self.illegal(state.made):
            return f"1: {self.illegal(state.made)}"
        if processes & ~(state.complete & state.made):
            return "2: a process is on an instance that is not there"
        if state.routed & ~state.ready:
            return "3: rows go to a worker that is not ready"
        if state.made & ~state.recorded:
            return "4: an instance of ours is not on record"
        if state.crashes == self.crashes and state.control[0] != "down":
            if state.faults == self.faults:
                if self.kept & ~state.routed:
                    return "5: a worker that is kept does not serve"
                if self._served(state) < self.transition.lowest_capacity:
                    return "5: less is served than promised"
            if self.transition.lowest_capacity > 0.0 and not state.stuck and not self._served(state):
                return "6: nobody serves"
        return ""

    def wrong_end(self, state: State) -> str:
        """Return why the model may not end in this state; empty if it may."""
        what, outcome, _ = state.control
        if what != "end":
            return f"nothing can happen any more in the middle of {what}"
        end = _ENDS[outcome]
        spots = self.under(state.ready)
        if state.routed != state.ready or state.loading or state.ghosts:
            return "a worker is left over"
        if state.made & ~state.stuck != spots or state.recorded != state.made:
            return "an instance is left over"
        if end == "forward" and state.ready != self.mask(self.target):
            return "this is not the target"
        if end == "start" and not state.ready:
            return "nothing was started"
        if end == "not started" and state.ready:
            return "a start that failed left workers"
        if end in ("before", "what is left", "not started") and state.faults == self.faults:
            return "something failed though nothing was refused"
        return ""

    def end(self, state: State) -> str:
        return _ENDS[state.control[1]]

    def _served(self, state: State) -> float:
        return served(self.who(state.routed), lambda item: float(item.placement.slices))
