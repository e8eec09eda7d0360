"""A model of a cluster that is changed, for a checker that looks at every state it can be in.

A step is a whole look of a production controller (`cluster_look`), in which one thing may happen at any of its calls,
or something that the world does between two looks: a server comes up or has ended, open rows are answered, time passes,
what is best changes, a node or a controller dies, a second controller is started beside the first.  Faults happen
`faults` times in all, at any place; everything else as often as it can.

What must be true of every call that a controller makes, and after it:

 1. rows that a node answers before the call go to a node that answers them after it;
 2. a node is drained only if its weight is 0, or the least one of a spare node, and while as many others are usable as
    are needed (with `survive`: after the loss of any of them), or as many as before;
 3. a node is released only if it was drained, and answers no row or had its time;
 4. a node is removed from the ingress only if its server has ended;
 5. a controller changes nothing any more after the store showed it another one of an epoch no lower, and it asks the
    store before nodes leave and before it saves.  (One that stands still between this question and the calls after it
    makes them when it goes on: neither HAProxy nor a file can tell.  What it does to HAProxy is undone by the newer
    one's `HAProxyIngress` within seconds, which is modelled as not done at all.)
 6. after a look in which nothing failed, rows go to a node that answers them, if there is one that the ingress knows.

From every state, if no more goes wrong: the nodes that are best are awake, follow the newest epoch and have all rows,
and all others are released (`ClusterModel.settles`).  The ingress may still know one of these, if the controller that
was to remove it died: its check keeps rows from it, and it is admitted anew if it is woken.

Not modelled: numbers (demand is constant, nodes are alike; `tests/unit/cluster` has those), several regions and
families, an ingress that dies (`HAProxyIngress` gives it back what it had).
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.reference.cluster_look import Looker
from tests.reference.cluster_ports import READS, Happening, chosen
from tests.reference.cluster_world import BrainState, IngressState, NodeState, Paused, SavedState, State, World, smaller

STOPS = frozenset({"load", "reports", "weigh", "admit", "follow", "wake"})
"""Calls before which a controller may stand still and go on when another one is in charge (5)."""
_ROUNDS = 40


class ClusterModel:
    """Model the nodes of a `Looker`, all of which are awake at first.  `faults`, `flips`: how often something goes
    wrong, and what is best changes.  `kinds`: the faults that may happen."""

    accidents = frozenset[str]()

    def __init__(
        self,
        looker: Looker,
        *,
        faults: int = 1,
        flips: int = 1,
        kinds: frozenset[str] = frozenset({"fails", "late", "hangs", "dies", "kill", "cut", "crash"}),
    ) -> None:
        self.looker, self.names, self.need = looker, looker.names, looker.need
        self.faults, self.flips, self.kinds = faults, flips, kinds
        self._fair: dict[State, State] = {}
        self._looked: dict[tuple[State, int], tuple[State, list[str]]] = {}

    # --- for the explorer ---------------------------------------------------------------------------------------------

    def initial(self) -> State:
        """Return a cluster in place, of which a new controller has just taken charge."""
        aim = self.names[0]
        return State(
            self._order(aim),
            tuple(NodeState(rows=True) for _ in self.names),
            IngressState(frozenset(self.names), frozenset(), tuple((name, 256) for name in self.names)),
            None,
            (BrainState("one"),),
            left=self.faults,
            flips=self.flips,
        )

    def violation(self, state: State) -> str:
        return state.wrong

    def wrong_end(self, state: State) -> str:
        return "nothing can happen"

    def end(self, state: State) -> str:
        return ""

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        for label, after in self._successors(state):
            after = smaller(after)
            if after != state:
                yield label, after

    def _successors(self, state: State) -> Iterator[tuple[str, State]]:
        for at in range(len(state.brains)):
            yield from self._looks(state, at)
        if state.paused is not None:
            yield f"{state.paused.brain.holder} goes on", self._goes_on(state)
        yield from self._happens(state)

    def _order(self, first: str) -> str:
        return first + "".join(name for name in self.names if name != first)

    # --- looks --------------------------------------------------------------------------------------------------------

    def look(self, state: State, at: int, happening: Happening | None = None) -> tuple[State, list[str]]:
        """Return the state after a controller's look, and the calls that it made."""
        if happening is not None:
            return self._look(state, at, happening)
        key = state._replace(left=0, flips=0), at
        if key not in self._looked:
            self._looked[key] = self._look(*key, None)
        after, calls = self._looked[key]
        return after._replace(left=state.left, flips=state.flips), calls

    def _look(self, state: State, at: int, happening: Happening | None) -> tuple[State, list[str]]:
        brain = state.brains[at]
        world = World.of(state, self.names)
        looked = self.looker.look(brain, world, happening, older=brain.stage == 2)
        if happening is None and not looked.stopped and world.fit() and not world.homes():
            world.blame("after a look rows go to no node, though there is one")
        world.give_rows()
        brains = list(state.brains)
        paused = state.paused
        if looked.brain is not None:
            brains[at] = looked.brain
        elif happening is not None and happening.what == "stops":
            paused = Paused(brain, tuple(looked.answers), state.aim)
            brains[at] = BrainState("two")
        elif looked.stopped or len(brains) > 1:
            del brains[at]
        else:
            brains[at] = BrainState("two" if brain.holder == "one" else "one")
        return world.into(state._replace(brains=tuple(brains), paused=paused)), looked.calls

    def _looks(self, state: State, at: int) -> Iterator[tuple[str, State]]:
        name = state.brains[at].holder
        after, calls = self.look(state, at)
        yield f"{name} looks", after
        if not state.left or not self.kinds:
            return
        for number, call in enumerate(calls):
            for what in self._faults(call):
                if what == "stops" and (state.paused is not None or state.brains[at].stage < 2):
                    continue
                faulty, _ = self.look(state, at, Happening(number, what))
                yield f"{name} looks: {what} at {number} ({call})", faulty._replace(left=state.left - 1)

    def _faults(self, call: str) -> Iterator[str]:
        if "fails" in self.kinds:
            yield "fails"
        if "stops" in self.kinds and call in STOPS:
            yield "stops"
        if call in READS:
            return
        for what in ("late", "dies"):
            if what in self.kinds:
                yield what
        if call in ("release", "follow") and "hangs" in self.kinds:
            yield "hangs"
        if "kill" in self.kinds:
            for name in self.names:
                yield f"kill {name}"

    def _goes_on(self, state: State) -> State:
        paused = state.paused
        assert paused is not None
        world = World.of(state, self.names)
        world.aim = paused.aim  # its plan was for that, or it would be another look
        stale = bool(paused.answers) and any(brain.stage == 2 for brain in state.brains)
        looked = self.looker.look(paused.brain, world, None, paused.answers, older=True, stale=stale)
        brains = (looked.brain, *state.brains) if looked.brain is not None else state.brains
        world.give_rows()
        return world.into(state._replace(brains=brains, paused=None))

    # --- what the world does ------------------------------------------------------------------------------------------

    def _happens(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self._benign(state)
        yield "time passes", waited(state)
        if state.flips:
            for name in self.names:
                if name != state.aim[0]:
                    yield f"{name} is best", state._replace(aim=self._order(name), flips=state.flips - 1)
        if not state.left:
            return
        left = state._replace(left=state.left - 1)
        for name, node in zip(self.names, state.nodes, strict=True):
            world = World.of(left, self.names)
            if "kill" in self.kinds and node.server != "off":
                world.kill(name)
                yield f"{name} dies", world.into(left)
            if "crash" in self.kinds and node.server == "up":
                world = World.of(left, self.names)
                world.end(name, "starting")
                yield f"the server of {name} dies", world.into(left)
            if "cut" in self.kinds and not node.cut:
                world = World.of(left, self.names)
                world.change(name, cut=True)
                yield f"{name} is cut off", world.into(left)
        if "another" in self.kinds and len(state.brains) == 1 and state.paused is None:
            yield "another is started", left._replace(brains=(*state.brains, BrainState("two")))

    def _benign(self, state: State) -> Iterator[tuple[str, State]]:
        for name, node in zip(self.names, state.nodes, strict=True):
            world = World.of(state, self.names)
            if node.server == "starting":
                world.change(name, server="up")
                yield f"{name} is up", world.into(state)
            elif node.server == "ending":
                world.end(name, "off")
                yield f"{name} has ended", world.into(state._replace(brains=_done(state.brains, "release", name)))
            elif node.rows:
                world.change(name, rows=False)
                world.give_rows()
                if not world.nodes[name].rows:
                    yield f"{name} has answered its rows", world.into(state)
            if node.cut:
                world = World.of(state, self.names)
                world.change(name, cut=False)
                yield f"{name} is reached again", world.into(state)
        for brain in state.brains:
            for order in brain.orders:
                if order.kind == "follow" and not order.done:
                    world = World.of(state, self.names)
                    node = world.nodes[order.node]
                    if node.server == "up" and order.epoch >= node.newest:
                        world.change(order.node, epoch=order.epoch, newest=order.epoch)
                    ended = _done(state.brains, "follow", order.node, brain.holder)
                    yield f"{order.node} has taken its target", world.into(state._replace(brains=ended))

    # --- where it ends ------------------------------------------------------------------------------------------------

    def settles(self, state: State) -> str:
        """Return why a cluster does not come to rest from here on if nothing more goes wrong, empty if it does."""
        path = []
        at = state
        while at not in self._fair:
            path.append(at)
            self._fair[at] = at  # stands for "being looked at"
            after = self._fairly(at)
            if after.wrong:
                return after.wrong
            self._fair[at] = after
            at = after
        # `at` was seen before: on a path that is known to end well, or on this one, which then goes round from here.
        if at in path:
            for rest in path[path.index(at) :]:
                if why := self.unsettled(rest):
                    return why
        return ""

    def _fairly(self, state: State) -> State:
        """Let everything that can go well go well, and each controller look."""
        state = state._replace(left=0, flips=0)
        if state.paused is not None:
            state = self._goes_on(state)
        for _ in range(_ROUNDS):
            benign = next(self._benign(state), None)
            if benign is None:
                break
            state = benign[1]
        state = waited(state)
        for at in reversed(range(len(state.brains))):
            if at < len(state.brains):
                state, _ = self.look(state, at)
        return smaller(state)

    def unsettled(self, state: State) -> str:
        """Return what is not as it should be, empty if the target is reached."""
        best = chosen(state.aim, self.names, self.need)
        (brain, *others) = state.brains
        if others or brain.plan != best:
            return f"the plan is {brain.plan} and not {best}"
        weights = dict(state.ingress.weights)
        for name, node in zip(self.names, state.nodes, strict=True):
            here = name in state.ingress.known and name not in state.ingress.draining
            if name in best and not (node.server == "up" and here and weights.get(name) and node.epoch == brain.epoch):
                return f"{name} is to be awake and is {node}"
            if name not in best and node.server != "off":
                return f"{name} is to be released and is {node}"
        return ""


def waited(state: State) -> State:
    """Return the state a long time later: what was fresh is old; nodes that no controller hears follow none."""
    heard = any(brain.stage == 2 for brain in state.brains)
    return state._replace(
        nodes=tuple(own._replace(epoch=own.epoch if heard and not own.cut else 0) for own in state.nodes),
        store=state.store and _aged(state.store),
        brains=tuple(_later(brain, state.nodes) for brain in state.brains),
    )


def _aged(saved: SavedState) -> SavedState:
    return saved._replace(members=tuple((phase, True, *rest) for phase, _, *rest in saved.members))  # type: ignore[misc]


def _later(brain: BrainState, nodes: tuple[NodeState, ...]) -> BrainState:
    if not brain.stage:
        return brain
    return brain._replace(
        members=tuple(
            own._replace(
                old=True,
                waits=False,
                ended=False,
                silent=own.silent or node.cut or node.server == "off",
                anew=own.anew or not (node.cut or node.server == "off"),
            )
            for own, node in zip(brain.members, nodes, strict=True)
        ),
        again=frozenset({"plan", "weigh", "save"}),
    )


def _done(brains: tuple[BrainState, ...], kind: str, node: str, holder: str = "") -> tuple[BrainState, ...]:
    return tuple(
        brain._replace(
            orders=tuple(
                own._replace(done=own.done or ((own.kind, own.node) == (kind, node) and holder in ("", brain.holder)))
                for own in brain.orders
            )
        )
        for brain in brains
    )
