"""Lets families sleep that nobody asks, and wakes them when they are asked.

A family with `unload_after_s` whose last request is as long ago has its workers ended: their memory, and that of its
rows, is the machine's again, and a GPU without workers is parked.  What was learned, planned and spent stays.  The next
request starts the workers again and waits for them within its own deadline; so do all that come meanwhile.  After that
deadline the answer is 503, with the time that the start still takes.

If the memory does not suffice for a family that is asked (`workers.total_bytes`, else what the machine has free), the
one makes room that may sleep, has no rows, was asked longest ago, and was there for five times as long as its start
took.  Without such a family rows wait for one, and are refused at their deadline with the names of those that have the
memory.  The same one sleeps if the workers come to hold more than `workers.total_bytes` while they answer.

Rows of batch jobs wake a family when their hours come, if there is memory: they have no other family make room.  While
they run it stays awake, and they give way to clients' rows of another family that need the memory.

Families that are being measured or rolled out, that are frozen, or whose workers are being changed stay awake.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from clover.control.controller import Controller
from clover.control.state.family import Family
from clover.control.wording import join_names
from clover.control_time import control_task
from clover.hints import duration
from clover.process_clock import process_ns
from clover.runtime.memory.free import free_bytes
from clover.runtime.memory.held import held_bytes
from clover.runtime.router.state import Asleep
from clover.runtime.served import Served
from clover.types import Declined

log = logging.getLogger("clover.server")

STAY = 5.0
"""A family stays at least for so many times as long as it took to start before it makes room for another."""
LOOK_S = 0.05
MEASURE_S = 600.0
"""Seconds between two looks at the memory of a family's workers."""
LIMIT_S = 5.0
"""Seconds between two looks at whether all workers together hold more than `workers.total_bytes`."""
ROOM = 1.1
"""A family needs so many times the memory that it had the last time."""


@dataclass
class Nap:
    """What is known of the sleep of one family.  Times are monotonic seconds."""

    asked_s: float
    requests: int = 0
    loaded_s: float = 0.0
    held: int = 0
    """Bytes that its workers had when they were measured last; 0: never."""
    measured_s: float = -math.inf
    asleep_s: float | None = None
    """Since when it sleeps."""
    slept_s: float = 0.0
    wakes: int = 0
    wake_s: float = 0.0
    """Seconds of the last wake, from the first request to the first worker."""
    load_s: float = 0.0
    """Seconds of it that the start of the workers took, without what memory was waited for."""
    waited: int = 0
    """Requests that waited for a wake."""
    waking_j: float = 0.0
    spares_w: float = 0.0
    spared_j: float = 0.0

    def report(self, now_s: float, state: str) -> dict[str, Any]:
        """Return this for JSON; `state`: loaded, loading, asleep, or kept (it never sleeps)."""
        since_s = now_s - self.asleep_s if self.asleep_s is not None else 0.0
        slept_s, spared_j = self.slept_s + since_s, self.spared_j + since_s * self.spares_w
        memory = f"{self.held / 1e6:.0f} MB" if self.held else "memory that was not measured yet"
        watts = f"{self.spares_w:.3g} W (modelled)" if self.spares_w else "no watts that are known"
        if state == "kept":
            words = f"never; unload_after_s would give back {memory} and {watts} while nobody asks it"
        elif not self.wakes and self.asleep_s is None:
            words = f"not yet; it gives back {memory} and {watts}"
        else:
            words = f"{duration(slept_s)} so far, woken {self.wakes} times, in {self.wake_s:.3g} s the last time; "
            words += f"it gives back {memory} and {watts}: {spared_j:.3g} J so far; waking took {self.waking_j:.3g} J"
            if spared_j < self.waking_j:
                words += "; if no other model needs the memory, keep it awake"
        return {
            "state": state,
            "slept_s": slept_s,
            "wakes": self.wakes,
            "wake_s": self.wake_s,
            "waited": self.waited,
            "memory_bytes": self.held,
            "spares_w": self.spares_w,
            "spared_j": spared_j,
            "waking_j": self.waking_j,
            "method": "modelled",
            "words": words,
        }


class Sleeper:
    """Puts families to sleep and wakes them.  `limit_bytes`: what the workers of all families may have together, 0 for
    what the machine has free.  `held`: whether a family is being rolled out.  `core_w`: watts of a busy core."""

    def __init__(
        self,
        served: Mapping[str, Served],
        controller: Controller,
        *,
        limit_bytes: int,
        core_w: float,
        held: Callable[[str], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        memory: Callable[[list[int]], int] = held_bytes,
        free: Callable[[], int] = free_bytes,
    ) -> None:
        self._served = served
        self._controller = controller
        self._limit_bytes = limit_bytes
        self._core_w = core_w
        self._held = held
        self._clock = clock
        self._sleep = sleep
        self._memory = memory
        self._free = free
        self._naps: dict[str, Nap] = {}
        self._waking: dict[str, asyncio.Task[None]] = {}
        self._one = asyncio.Lock()
        self._limited_s = -math.inf

    # --- falling asleep -----------------------------------------------------------------------------------------------

    async def poll(self) -> None:
        """Put those to sleep that nobody asked for as long as their setting says, wake those whose waiting rows are to
        run, and measure what each has of memory, now and then."""
        now_s = self._clock()
        for served in list(self._served.values()):
            nap = self._observe(served, now_s)
            if _runs_waiting(served):
                self.wake(served, waiting=True)
            if nap.asleep_s is None and now_s - nap.asked_s >= served.config.unload_after_s and self._may_sleep(served):
                await self._put_to_sleep(served, nap)
            elif now_s >= nap.measured_s + MEASURE_S and served.state == "READY" and not served.fleet.asleep:
                nap.measured_s, nap.spares_w = now_s, self._spares_w(served)
                nap.held = await asyncio.to_thread(self._memory, _pids(served)) or nap.held
        if self._limit_bytes and now_s >= self._limited_s + LIMIT_S:
            self._limited_s = now_s
            pids = [pid for served in self._served.values() for pid in _pids(served)]
            if await asyncio.to_thread(self._memory, pids) > self._limit_bytes:
                ready = [served for served in self._stayed(None, now_s) if self._may_sleep(served)]
                await self._put_first_to_sleep(ready, "workers have come to hold more than workers.total_bytes")

    def _observe(self, served: Served, now_s: float) -> Nap:
        """Return the nap of a family, with when it was asked last."""
        requests = sum(served.traffic.codes.values())
        nap = self._naps.get(served.name)
        if nap is None:
            nap = self._naps[served.name] = Nap(now_s, requests, loaded_s=now_s)
        if requests != nap.requests or served.router.state.company.here or _runs_waiting(served):
            nap.asked_s, nap.requests = now_s, requests
        return nap

    def _family(self, served: Served) -> Family | None:
        return self._controller.context.families.get(served.name)

    def _may_sleep(self, served: Served) -> bool:
        """Return whether a family may sleep now, however long ago it was asked.  LOADING: at the server's start."""
        family = self._family(served)
        frozen = family is not None and self._controller.context.frozen_of(family)
        return (
            served.config.unload_after_s > 0.0
            and served.state in ("READY", "LOADING")
            and not served.unmeasured
            and not frozen
            and not self._held(served.name)
            and served.fleet.may_sleep
        )

    async def _put_to_sleep(self, served: Served, nap: Nap, why: str = "") -> None:
        """End the workers of a family, if it may sleep still once nothing is being planned."""
        async with self._controller.context.lock:
            if not self._may_sleep(served):
                return
            nap.held = await asyncio.to_thread(self._memory, _pids(served))
            if not self._may_sleep(served):
                return
            nap.spares_w, nap.asleep_s = self._spares_w(served), self._clock()
            await served.fleet.put_to_sleep(lambda: self.wake(served))
        if served.fleet.empty:
            served.slab.release()
        asked = why or f"nobody asked it for {duration(self._clock() - nap.asked_s, rough=True)}"
        log.info("%s sleeps: %s; the next request wakes it", served.name, asked)

    def _spares_w(self, served: Served) -> float:
        """Return the watts that its workers draw at rest, on devices on which no other family has workers."""
        context = self._controller.context
        others = {
            place.device
            for name, places in context.occupied().items()
            if name != served.name and (name not in context.families or not context.families[name].fleet.asleep)
            for place in places
        }
        shapes = context.device_pool.shapes()
        alone = {item.placement for item in served.fleet.routed if item.placement.device in shapes.keys() - others}
        of_gpus = sum(shapes[name].sleep_w or 0.0 for name in {place.device for place in alone})
        return of_gpus + sum((shapes[place.device].core_sleep_w or 0.0) * place.size for place in alone)

    # --- waking -------------------------------------------------------------------------------------------------------

    def wake(self, served: Served, *, waiting: bool = False) -> None:
        """Start the workers of a family that sleeps, once there is room; does nothing for another, or twice.
        `waiting`: for rows that can wait, so that only room that is there counts."""
        if served.router.state.asleep is not None and served.name not in self._waking:
            woken = self._wake(served, waiting)
            task = self._waking[served.name] = control_task(woken, name=f"clover: waking {served.name}")
            task.add_done_callback(lambda _: self._waking.pop(served.name, None))

    async def _wake(self, served: Served, waiting: bool) -> None:
        began_s, nap, asleep = self._clock(), self._naps[served.name], served.router.state.asleep
        assert asleep is not None
        async with self._one:  # one after the other: each knows what memory those before it took
            if not await self._make_room(served, nap, asleep, waiting):
                return
            asleep.refusal = Declined(why="the model is being loaded", retry_after_s=math.ceil(max(1.0, nap.load_s)))
            began_load_s = self._clock()
            served.fleet.start_again()
            while served.fleet.asleep and not asleep.awake.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await asleep.awake.wait()
            failed, woken_s = not asleep.awake.is_set(), self._clock()
            while served.fleet.asleep:  # its other workers
                await self._sleep(LOOK_S)
        slept_s = max(began_s - (nap.asleep_s or began_s), 0.0)
        spared_j = slept_s * nap.spares_w
        waking_j = self._core_w * sum(process_ns(pid) or 0 for pid in _pids(served)) / 1e9
        nap.slept_s += slept_s
        nap.spared_j += spared_j
        nap.waking_j += waking_j
        nap.asleep_s, nap.loaded_s, nap.asked_s, nap.load_s = None, woken_s, woken_s, woken_s - began_load_s
        nap.wakes, nap.wake_s, nap.waited = nap.wakes + 1, woken_s - began_s, nap.waited + asleep.requests
        served.wake_s = nap.wake_s
        if failed:
            log.warning("%s does not wake: its workers do not start; further starts are tried", served.name)
            served.router.end_sleep()
            return
        words = (
            f"slept for {duration(slept_s)} and is awake after {nap.wake_s:.3g} s; sleep spared {spared_j:.3g} J, "
            f"waking took {waking_j:.3g} J (modelled)"
        )
        served.fleet.record("woken", words)
        log.info("%s %s", served.name, words)

    async def _make_room(self, served: Served, nap: Nap, asleep: Asleep, waiting: bool) -> bool:
        """Have other families make room for one; return whether there is room: False if no client's row waits for it
        (any more)."""
        while not await self._fits(nap):
            if waiting and not served.router.state.company.here:
                return False
            now_s = self._clock()
            loaded = [other for other in self._served.values() if other is not served and not other.fleet.asleep]
            if not loaded:
                log.warning("%s may need more memory than there is, and is loaded as no other is", served.name)
                return True
            stayed = self._stayed(served, now_s)
            ready = [other for other in stayed if self._may_sleep(other)]
            for other in stayed if not ready else ():
                if other.spare is not None and other.spare.on and other.config.unload_after_s > 0.0:
                    other.spare.give_up(f"{served.name} needs the memory")
            if ready:
                await self._put_first_to_sleep(ready, f"{served.name} needs its memory")
                continue
            if not served.router.state.company.here:
                return False
            names = join_names(sorted(other.name for other in loaded))
            why = f"the model sleeps, and is loaded once {names} leave it memory"
            asleep.refusal = Declined(why=why, retry_after_s=math.ceil(max(1.0, nap.load_s)))
            await self._sleep(LOOK_S)
        return True

    def _stayed(self, asked: Served | None, now_s: float) -> list[Served]:
        """Return the families, without the one that is asked, that have been awake long enough to make room."""
        return [
            other
            for other in self._served.values()
            if other is not asked
            and not other.fleet.asleep
            and now_s >= (nap := self._observe(other, now_s)).loaded_s + STAY * nap.load_s
        ]

    async def _put_first_to_sleep(self, ready: list[Served], why: str) -> None:
        """Put the one of these families to sleep that was asked longest ago."""
        if ready:
            first = min(ready, key=lambda other: self._naps[other.name].asked_s)
            await self._put_to_sleep(first, self._naps[first.name], why)

    async def prepare(self, name: str) -> None:
        """Have families that were started before make room for the first workers of one, if the memory is known to be
        short."""
        for other in list(self._served.values()):
            if await self._fits(Nap(0.0)):
                return
            if other.name != name and self._may_sleep(other):
                await self._put_to_sleep(other, self._observe(other, self._clock()), f"{name} needs its memory")

    async def _fits(self, nap: Nap) -> bool:
        """Return whether the memory suffices for one more family: what it held the last time, or the most that any
        family held, and a tenth.  Of `workers.total_bytes` one that is awake has what it held the last time, if that is
        more than now: workers grow while they answer."""
        known = {name: other.held for name, other in self._naps.items()}
        needed = ROOM * (nap.held or max(known.values(), default=0))
        if not self._limit_bytes:
            return needed <= self._free()
        awake = [(_pids(served), known.get(name, 0)) for name, served in self._served.items()]
        taken = await asyncio.to_thread(lambda: sum(max(self._memory(pids), held) for pids, held in awake if pids))
        return taken + needed <= self._limit_bytes

    # --- looking ------------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, dict[str, Any]]:
        """Return by family whether it sleeps, and what that gave and cost so far."""
        now_s = self._clock()
        found = {}
        for name, served in self._served.items():
            if (nap := self._naps.get(name)) is not None:
                state = "loaded" if served.config.unload_after_s > 0.0 else "kept"
                if served.router.state.asleep is not None:
                    state = "loading" if name in self._waking else "asleep"
                found[name] = nap.report(now_s, state)
        return found

    async def stop(self) -> None:
        """Wake no family any more."""
        for task in self._waking.values():
            task.cancel()
        await asyncio.gather(*self._waking.values(), return_exceptions=True)


def _runs_waiting(served: Served) -> bool:
    """Return whether rows of batch jobs are to run now."""
    return served.spare is not None and served.spare.on


def _pids(served: Served) -> list[int]:
    """Return the processes of its workers."""
    return [worker["pid"] for worker in served.fleet.describe() if worker["pid"] is not None]
