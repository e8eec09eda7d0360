"""The server's side of the solver process: started when first needed, restarted if it dies, killed if it stalls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process

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
from clover.errors import PlanError, PolicyFault
from clover.planning.budget.counterfactual import Fixed
from clover.types import Configuration, Plan, Routing, State

log = logging.getLogger("clover.control")

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class SolverClient:
    """Plans in a process of its own, one order at a time.  `limit_s` bounds each order, the start of the process
    included."""

    def __init__(self, *, limit_s: float = 30.0) -> None:
        self.limit_s = limit_s
        self.starts = 0
        self._process: Process | None = None
        self._orders = 0
        self._faults: set[str] = set()
        """Where policies raised so far."""
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """The solver's process id; None if none runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def propose(self, state: State, policy: str, configuration: Configuration | None = None) -> Plan:
        """Return the plan of `policy` for `state`, or of exactly `configuration`.  PlanError if there is none, if
        the solver takes longer than `limit_s`, or if it died twice over one order; PolicyFault if the policy raised
        another exception, which is logged once for each place that raises it."""
        answer = await self._answer(state, policy, configuration)
        if answer.plan is None:
            raise PlanError(answer.error or "the solver gave no plan")
        return answer.plan

    async def alternatives(self, state: State) -> tuple[Fixed, ...]:
        """Return the best fixed mixes for `state`; PlanError as above."""
        answer = await self._answer(state, ALTERNATIVES, None)
        if answer.alternatives is None:
            raise PlanError(answer.error or "the solver gave no alternatives")
        return answer.alternatives

    async def fewest_cores(self, state: State) -> int | None:
        """Return the fewest cores that will do for `state`; None if all of them are too few.  PlanError as above."""
        answer = await self._answer(state, FEWEST, None)
        if answer.error:
            raise PlanError(answer.error)
        return answer.cores

    async def routing(self, state: State, configuration: Configuration) -> Routing | None:
        """Return how rows go best to the workers of `configuration`, which need not fill the devices; None if no
        routing of them keeps the targets.  PlanError as above."""
        answer = await self._answer(state, ROUTING, configuration)
        if answer.error:
            raise PlanError(answer.error)
        return answer.routing

    async def _answer(self, state: State, policy: str, configuration: Configuration | None) -> SolverAnswer:
        async with self._lock:
            self._orders += 1
            order = SolverOrder(id=self._orders, policy=policy, state=state, configuration=configuration)
            frame = pack(order)
            try:
                async with asyncio.timeout(self.limit_s):
                    answer = await self._ask(frame)
            except TimeoutError:
                await self._end()
                raise PlanError(f"the solver gave no plan within {self.limit_s:g} s and was restarted") from None
            except BaseException:
                await self._end()  # a half-read answer must not meet the next order
                raise
        if answer.id != order.id:
            await self.close()
            raise PlanError("the solver answered another order and was restarted")
        if answer.traceback:
            if answer.traceback not in self._faults:
                self._faults.add(answer.traceback)
                log.error("%s\n%s", answer.error, answer.traceback.rstrip())
            raise PolicyFault(answer.error)
        return answer

    async def close(self) -> None:
        """End the process.  A later order starts a new one."""
        async with self._lock:
            await self._end()

    async def _ask(self, frame: bytes) -> SolverAnswer:
        for attempt in (1, 2):
            try:
                process = await self._running()
            except OSError as error:  # out of descriptors, memory or processes
                raise PlanError(f"the solver process cannot be started: {error.strerror}") from error
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(frame)
                await process.stdin.drain()
                body = await process.stdout.readexactly(length_of(await process.stdout.readexactly(HEAD.size)))
                return unpack(body, SolverAnswer)
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                await self._end()
                log.warning("the solver process ended unexpectedly (%s)", error)
                if attempt == 2:
                    raise PlanError("the solver died twice over one order; see its standard error") from error
        raise AssertionError("unreachable")

    async def _running(self) -> Process:
        if self._process is None or self._process.returncode is not None:
            await self._end()
            paths = [path or os.getcwd() for path in sys.path]
            environment = {
                **os.environ,
                **dict.fromkeys(_ONE_THREAD, "1"),
                "PYTHONPATH": os.pathsep.join(paths),
                "CLOVER_SOLVER_PARENT": str(os.getpid()),
            }
            command = sys.executable, "-P", "-m", "clover.control.solver.process"
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment)
            )
            try:
                self._process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                self._process = await starting  # or nothing would end it
                raise
            self.starts += 1
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.stdin is not None:
            process.stdin.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()
