"""A checker of explicit states: all that a model can be in, breadth first, and a shortest path to a wrong one."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Checkable(Protocol[S]):
    """A model.  Labels of `accidents` may happen but need not: if only such are left, the model may end."""

    accidents: frozenset[str]

    def initial(self) -> S: ...

    def successors(self, state: S) -> Iterator[tuple[str, S]]: ...

    def violation(self, state: S) -> str: ...

    def wrong_end(self, state: S) -> str: ...

    def end(self, state: S) -> str: ...


@dataclass
class Found:
    """What an exploration found."""

    states: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    violation: str = ""
    trace: list[str] = field(default_factory=list)


def explore(model: Checkable[S], *, most: int = 2_000_000, seen: Callable[[S], None] | None = None) -> Found:
    """Visit every state of `model`, up to the first wrong one; call `seen` with each."""
    first = model.initial()
    came: dict[S, tuple[S | None, str]] = {first: (None, "")}
    queue = deque([first])
    found = Found()
    while queue:
        state = queue.popleft()
        if seen is not None:
            seen(state)
        why = model.violation(state)
        after = [] if why else list(model.successors(state))
        if not why and all(label in model.accidents for label, _ in after):
            why = model.wrong_end(state)
            found.ends[model.end(state) if not why else "wrong"] += 1
        if why:
            found.violation = why
            at: S | None = state
            while at is not None:
                at, label = came[at]
                found.trace.append(label)
            found.trace.reverse()
            break
        for label, following in after:
            if following not in came:
                came[following] = (state, label)
                queue.append(following)
        assert len(came) <= most, "more states than expected"
    found.states = len(came)
    return found
