"""The solver: a helper process of low priority that plans, so that the event loop never waits for arithmetic.

    python -m clover.control.solver.process

It reads orders from standard input and writes answers to standard output (`clover.control.solver.protocol`).  It ends
when its input ends, or when the thread that started it ends.  It ignores Ctrl-C, which the server handles.  It never
imports torch, and its linear algebra runs in one thread.  What a custom policy prints goes to standard error, because
standard output carries the frames.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from typing import BinaryIO

import msgspec

from clover.control.solver.protocol import (
    ALTERNATIVES,
    FEWEST,
    HEAD,
    ROUTING,
    SolverAnswer,
    SolverOrder,
    length_of,
    pack,
    unpack,
)
from clover.errors import CloverError
from clover.planning.budget.frontiers import fixed_mixes
from clover.planning.model.objective import PlanningInput
from clover.planning.search.best import fewest_cores
from clover.policies import ships
from clover.policies.demanded import propose_with_demand
from clover.policies.plans import plan_fixed, routing_fixed

_PR_SET_PDEATHSIG = 1
_NICE = 10


def serve(orders: BinaryIO, answers: BinaryIO) -> None:
    """Answer orders until they end; ValueError if a frame is malformed."""
    while True:
        head = orders.read(HEAD.size)
        if len(head) < HEAD.size:
            return
        length = length_of(head)
        body = orders.read(length)
        if len(body) < length:
            return
        answers.write(pack(solve(unpack(body, SolverOrder))))
        answers.flush()


def solve(order: SolverOrder) -> SolverAnswer:
    """Return the answer to one order; whatever a policy raises becomes its error text."""
    started = time.perf_counter()
    try:
        if order.policy == ALTERNATIVES:
            return SolverAnswer(id=order.id, alternatives=fixed_mixes(order.state, order.state.arrival_rate))
        if order.policy == FEWEST:
            given = PlanningInput.from_state(order.state)
            least = fewest_cores(given.problem, given.objective)
            return SolverAnswer(id=order.id, cores=None if least is None else least[0])
        if order.policy == ROUTING:
            return SolverAnswer(id=order.id, routing=routing_fixed(order.state, order.configuration or ()))
        if order.configuration is not None:
            plan = plan_fixed(order.state, order.configuration)
        else:
            plan = propose_with_demand(order.policy, order.state)
    except CloverError as error:
        return SolverAnswer(id=order.id, error=str(error))
    except Exception as error:  # the caller gets it as text, and the solver survives
        whose = "Clover's" if ships(order.policy) else "the policy's own"
        return SolverAnswer(
            id=order.id,
            error=f"policy {order.policy} raised {type(error).__name__}: {error} (a fault of {whose})",
            traceback="".join(traceback.format_tb(error.__traceback__)),
        )
    return SolverAnswer(id=order.id, plan=msgspec.structs.replace(plan, seconds=time.perf_counter() - started))


def main() -> None:
    """Run as a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = int(os.environ.get("CLOVER_SOLVER_PARENT", "0"))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:
        return  # it died before we asked for the signal
    os.nice(_NICE)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
