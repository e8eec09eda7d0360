"""The class for embedding: a server in this event loop, in a thread of its own, or as the process itself.

    async with clover.Server("fashion", port=0) as server:          # in your own event loop
        answer = await server.ainfer({"image": images})

    with clover.Server("fashion", port=0) as server:                # in a thread of its own
        answer = server.infer({"image": images})

    clover.Server("fashion").run()                                   # until SIGTERM or SIGINT

If the server makes the event loop itself, it launches the pool before.  The zygote's import of torch then overlaps with
the rest of the start, and the zygote is forked while the server has no threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from clover import settings
from clover.cache import cache_folder
from clover.config import ServerConfig
from clover.errors import CloverError, StartError, Unavailable
from clover.families import published
from clover.runtime import embedded
from clover.runtime.embedded import Answer
from clover.runtime.workers.pool import Pool
from clover.server.asgi import AsgiApp
from clover.server.engine import Engine
from clover.server.parts import Parts, build
from clover.server.periodic import cancel_task
from clover.server.stop_limit import GPU_STOP_S, STOP_S, StopLimit
from clover.server.takeover.handover import TakeOvers
from clover.server.takeover.succession import Succession
from clover.settings.check import on_gpus
from clover.settings.command_line import in_python
from clover.types import FamilySpec

__all__ = ["Answer", "Server"]

log = logging.getLogger("clover.server")

_T = TypeVar("_T")


class Server:
    """Serves families of model variants.

    `families`: names of shipped families, folders, "module:attribute" or `FamilySpec`s; without any, those of `config`
    (by default `fashion`).  `overrides`: settings by name (`port=0`, `carbon="static:300"`, `slo_ms=20`, `mode="off"`);
    settings of a family apply to all.  `http=False` serves this process only.  Raises ConfigError at once for settings
    that cannot be used.
    """

    def __init__(
        self,
        *families: str | FamilySpec,
        config: ServerConfig | None = None,
        http: bool = True,
        **overrides: Any,
    ) -> None:
        self._given = {spec.name: spec for spec in families if isinstance(spec, FamilySpec)}
        names = tuple(item.name if isinstance(item, FamilySpec) else str(item) for item in families)
        self.config = settings.override(config, names, **overrides)
        self._http = http
        self._pool: Pool | None = None
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._end: asyncio.Event | None = None
        self._stopping: asyncio.Task[bool] | None = None
        self._used = False
        self._succession: Succession | None = None

    # --- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Start in the running loop; return once ready.

        Raises ConfigError, StartError, ProfileError, WorkerError or PlanError, and leaves nothing behind then.
        """
        self._use()
        try:
            return await self._start()
        except CloverError as error:
            raise _with_advice(error) from None

    def _use(self) -> None:
        if self._used:
            raise StartError("a server starts once; make another one")
        self._used = True

    async def _start(self, *, shown: bool = False) -> Self:
        """Start as `start` does.  Unless it is `shown` to somebody, log which answers mean nothing."""
        pool = self._pool or self._launch()
        try:
            engine = self._assemble(pool)
        except BaseException:
            await pool.stop()
            raise
        self._loop = asyncio.get_running_loop()
        self._engine = engine
        try:
            await engine.start()
        except BaseException:
            self._engine = None
            await asyncio.shield(_end(engine))
            raise
        for served in () if shown else engine.served.values():
            if untrained := published.caution(served.spec):
                log.warning("%s", untrained)
        return self

    def _assemble(self, pool: Pool) -> Engine:
        succession = self._succession
        boxes = succession.boxes(cache_folder(self.config.cache_dir)) if succession is not None else None
        parts = build(self.config, self._given, pool, boxes=boxes)
        try:
            return Engine(parts, http=self._http, succession=succession)
        except BaseException:
            parts.close()
            raise

    async def drain(self) -> bool:
        """Fail readiness, wait the drain delay, stop accepting, answer what was received; return whether all was."""
        return await self._engine.drain() if self._engine is not None else True

    async def stop(self) -> bool:
        """Drain and shut down; return whether all that was received was answered.  Idempotent.

        After it no process and no file descriptor of the server is left.
        """
        if self._engine is None:
            return True
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop(self._engine), name="clover-stop")
        return await asyncio.shield(self._stopping)

    async def _stop(self, engine: Engine) -> bool:
        try:
            return await engine.drain()
        finally:
            self._loop = None
            await _end(engine)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        return self.start_background()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_background(self) -> Self:
        """Start in a thread with an event loop of its own; return once ready.  Raises as `start` does."""
        self._use()
        self._pool = self._launch()
        failure: list[BaseException] = []
        started = threading.Event()

        async def main() -> None:
            self._end = asyncio.Event()
            try:
                await self._start()
            except BaseException as error:
                failure.append(error)
                return
            finally:
                started.set()
            await self._end.wait()
            await self.stop()

        self._thread = threading.Thread(target=_run_uvloop, args=(main,), name="clover", daemon=True)
        self._thread.start()
        started.wait()
        if failure:
            self._thread.join()
            if isinstance(failure[0], CloverError):
                raise _with_advice(failure[0]) from None
            raise failure[0]
        return self

    def close(self) -> None:
        """Stop a server of `start_background` and wait for it.  Idempotent."""
        thread, loop, end = self._thread, self._loop, self._end
        if thread is None or end is None:
            return
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop may end between the check and the call
                loop.call_soon_threadsafe(end.set)
        thread.join()

    def run(
        self,
        *,
        on_ready: Callable[[Server], None] | None = None,
        on_hangup: Callable[[], None] | None = None,
        on_upgrade: Callable[[], None] | None = None,
        take_overs: TakeOvers | None = None,
    ) -> int:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once (status 128 + signal).

        `on_ready` is called once it is ready, `on_hangup` on SIGHUP, `on_upgrade` on SIGUSR2.  With `take_overs`,
        another server may take this one's place, or this one takes another's.  Return 0 if everything received was
        answered, else 1; raises as `start` does.  A stop that something holds up ends the process with 1 (`StopLimit`).
        Call it from the main thread.
        """
        self._use()
        self._succession = take_overs.succession if take_overs is not None else None
        self._pool = self._launch()

        async def main() -> int:
            loop = asyncio.get_running_loop()
            ended = asyncio.Event()

            def signalled(number: int) -> None:
                handing = self._engine.life.handing if self._engine is not None else None
                if handing is not None and not handing.is_set():
                    handing.set()  # another server has taken over: do not wait for clients that are silent
                    return
                if ended.is_set():
                    os._exit(128 + number)  # workers and zygote end with this process's pipes
                log.info("%s: answering what was received, then stopping", signal.Signals(number).name)
                ended.set()

            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, signalled, number)
            if on_hangup is not None:
                loop.add_signal_handler(signal.SIGHUP, on_hangup)
            if on_upgrade is not None:
                loop.add_signal_handler(signal.SIGUSR2, on_upgrade)
            starting = loop.create_task(self._start(shown=on_ready is not None))
            waiting = loop.create_task(ended.wait())
            await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                await cancel_task(starting)
                return 0
            await starting
            if on_ready is not None:
                on_ready(self)
            if take_overs is not None:
                take_overs.start(self.engine.parts, self.engine.frontend, ended.set)
            await waiting
            limit.start(self._longest_stop_s())
            if take_overs is not None:
                await take_overs.close()
            answered = await self.stop()
            if take_overs is not None:
                take_overs.finish()
            return 0 if answered else 1

        limit = StopLimit()
        try:
            return _run_uvloop(main)
        except CloverError as error:
            if on_ready is not None:  # somebody else shows it
                raise
            raise _with_advice(error) from None
        finally:
            limit.disarm()

    def _longest_stop_s(self) -> float:
        """Return the seconds after which a stop that begins now is over, whatever hangs."""
        limits, handing = self.config.limits, self._engine is not None and self._engine.life.handing is not None
        drain_s = 2 * limits.drain_s if handing else limits.drain_delay_s + limits.drain_s
        if self._succession is not None and self._succession.waiting:
            drain_s += 2 * limits.drain_s
        return drain_s + (GPU_STOP_S if on_gpus(self.config.workers.device) else STOP_S)

    def _launch(self) -> Pool:
        workers = self.config.workers
        start_s = self._succession.start_s(workers.start_s) if self._succession is not None else workers.start_s
        return Pool.launch(start_s=start_s, silent_s=workers.silent_s)

    @property
    def url(self) -> str:
        """Where the front end listens, as http://127.0.0.1:PORT; empty without one."""
        engine = self._engine
        return engine.frontend.url if engine is not None and engine.frontend is not None else ""

    @property
    def grpc_target(self) -> str:
        """Where it listens for gRPC, as 127.0.0.1:PORT; empty without `grpc_port`."""
        front = self._engine.frontend if self._engine is not None else None
        return front.grpc.target if front is not None and front.grpc is not None else ""

    @property
    def engine(self) -> Engine:
        """The assembled server on its loop, for benches and tests; raises Unavailable before the start."""
        if self._engine is None:
            raise Unavailable("the server is not running")
        return self._engine

    @property
    def running(self) -> Engine | None:
        """The engine while the server runs; None before the start and after the stop."""
        return self._engine if self._loop is not None else None

    def asgi(self) -> AsgiApp:
        """Return the server's HTTP paths as an ASGI application, for FastAPI, Starlette or uvicorn; `http=False` leaves
        it the only way in."""

        def running() -> Parts | None:
            return engine.parts if (engine := self.running) is not None else None

        return AsgiApp(running, lambda: self.engine.mount(), self.start, self.stop)

    # --- inference ------------------------------------------------------------------------------------------------

    def infer(
        self,
        inputs: Mapping[str, Any],
        *,
        model: str | None = None,
        min_accuracy: float | None = None,
        timeout_ms: float | None = None,
        cascade: bool = True,
        tenant: str | None = None,
    ) -> Answer:
        """Return the answer to `inputs`, waiting for it, from any thread but the server's own; see `ainfer`."""
        loop = self._running()
        if self._here() is loop:
            raise RuntimeError("infer would block the server's own event loop: await ainfer there")
        asking = self._infer(inputs, model, min_accuracy, timeout_ms, cascade, tenant)
        return asyncio.run_coroutine_threadsafe(asking, loop).result()

    async def ainfer(
        self,
        inputs: Mapping[str, Any],
        *,
        model: str | None = None,
        min_accuracy: float | None = None,
        timeout_ms: float | None = None,
        cascade: bool = True,
        tenant: str | None = None,
    ) -> Answer:
        """Return the answer to `inputs`: per input name an array with a leading row axis (or one row without it).

        An array must be of the declared kind of number: float64 is taken for FP32, and int64 for INT32 if its values
        fit, but uint8 pixels are refused for FP32, because a cast would leave out the scaling of the training (lists
        of Python numbers have no dtype, and integers in them are taken).  NaN and infinities are data and are passed
        on as they are.  `clover.runtime.embedded_inputs` has the rules.

        `model` may be left out if one family is served.  `min_accuracy` in percent; `timeout_ms` bounds the wait;
        `cascade` False asks one variant a row, whatever the plan; `tenant` is the name of the tenant that asks, whose
        rate, priority and defaults hold then.  Raises BadRequest (which names the input, what was expected and what
        came), NotFound, Overloaded, Unavailable, DeadlineMissed or ModelFailed.  Works from any event loop.
        """
        loop = self._running()
        asking = self._infer(inputs, model, min_accuracy, timeout_ms, cascade, tenant)
        if self._here() is loop:
            return await asking
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asking, loop))

    async def _infer(
        self,
        inputs: Mapping[str, Any],
        model: str | None,
        min_accuracy: float | None,
        timeout_ms: float | None,
        cascade: bool,
        tenant: str | None,
    ) -> Answer:
        engine = self.engine
        if engine.life.draining:
            raise Unavailable("the server is shutting down")
        timeout_ns = 0
        if timeout_ms is not None:
            timeout_ns = int(timeout_ms * 1e6) or -1  # a spent deadline is missed, not absent
        models = engine.models()  # has a version of its own while a new one is being rolled out: NAME@VERSION
        asked = models[model] if model in models else models[engine.pick(model).name]
        asking = engine.tenants.named(tenant) if tenant is not None else None
        return await embedded.infer(
            asked, inputs, min_accuracy=min_accuracy or 0.0, timeout_ns=timeout_ns, cascade=cascade, tenant=asking
        )

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise Unavailable("the server is not running")
        return self._loop

    @staticmethod
    def _here() -> asyncio.AbstractEventLoop | None:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            return None


def _with_advice(error: CloverError) -> CloverError:
    """Return `error` for an embedded caller: with advice in the words of Python, and without the frames and causes that
    led to it, which the log has at level debug."""
    log.debug("the start failed", exc_info=error)
    error.args = (in_python(str(error)),)
    return error.with_traceback(None)


def _run_uvloop(main: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


async def _end(engine: Engine) -> None:
    """Stop `engine`, and its front end, which may be an application's that the engine did not start (`asgi`)."""
    try:
        await engine.stop()
    finally:
        if engine.frontend is not None:
            await engine.frontend.close()
