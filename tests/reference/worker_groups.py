"""Twin of `csrc/worker_groups.pxd`: which workers share their credits, counted again for every question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(eq=False)
class Worker:
    group: int
    lane: int | None = None
    max_batch: int = 0
    outstanding: int = 0


@dataclass
class Group:
    credits: int = 0
    since_ns: int = 0  # when its first batch began
    lane: int = 0  # of the batch that was sent last


def members(workers: Sequence[Worker], group: int) -> list[Worker]:
    """Return the attached workers of a group."""
    return [worker for worker in workers if worker.group == group and worker.lane is not None]


def out(workers: Sequence[Worker], group: int) -> int:
    """Return how many batches the workers of a group have out, detached ones included."""
    return sum(worker.outstanding for worker in workers if worker.group == group)


def has_credit(groups: Sequence[Group], workers: Sequence[Worker], worker: Worker) -> bool:
    """Return whether the group of `worker` may have one more batch out."""
    return out(workers, worker.group) < groups[worker.group].credits


def join_group(
    groups: Sequence[Group], workers: Sequence[Worker], worker: int, lane: int, into: int, credits: int, *, alone: bool
) -> None:
    """Make a detached worker, which is to serve `lane`, a member of the group `into`; raises ValueError if that cannot
    be.  `alone`: without the batches that were out."""
    found, there = workers[worker], members(workers, into)
    if there and (alone or groups[into].credits != credits):
        raise ValueError("the group has other workers")
    if any(member.lane == lane for member in there):
        raise ValueError("the group serves the lane already")
    held = found.outstanding if alone else 0  # does not stay out
    if found.outstanding > held and found.group != into:
        raise ValueError("it has batches out in another group")
    if out(workers, into) - (held if found.group == into else 0) > credits:
        raise ValueError("too many are out")
    found.outstanding -= held
    found.group = into
    groups[into].credits = credits
