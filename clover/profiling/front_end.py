"""Measures what the front end adds to a latency: a second of requests to a model that echoes.

The production front end serves a model with the tensors of the family on a free port of the loopback.  The model takes
rows and answers zeros `ANSWER_S` later, without workers.  A client in a thread sends one request of one row after the
other, and pauses before each: at random, 1 / `LIGHT_RATE` seconds on average.

`ms` is what a request takes beyond the model's time: head, body, answer and sockets.  It is the median, so that some
stalls do not count, and at most `MOST_OVER_LEAST` times what the fastest twentieth of the requests takes, which other
programs hardly touch.  So it is work, as large on a busy machine as on a quiet one.  What requests also wait for the
event loop's turn is measured while serving (`control.state.learning`).

**Light load.**  A worker that is measured alone keeps its caches.  A worker that serves shares the core with the front
end and with clients, and sleeps meanwhile: at 200 requests a second a small model's batch may take five times the CPU
time, most of it for the code around the model.  The front end pays likewise: a turn of its event loop reads a request
or sends the answers of a batch, and takes a tenth of a millisecond where it takes a hundredth under load.  Neither
depends on the variant.  So both are measured once, at some `LIGHT_RATE` rows a second, by the kernel's clocks of BASE's
workers and of the front end's thread.  They become what each batch of any variant costs more after a pause
(`with_light_load`): `LatencyMeasurement.wake_j` and `FamilyProfile.turn_j`.  From these, plans know what waiting for
company saves, and what a second stage costs.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from msgspec import structs
from numpy.typing import NDArray

from clover.config import ListenConfig, ServerConfig
from clover.datatypes import DATATYPES
from clover.errors import ProfileError, Unavailable
from clover.http import Frontend
from clover.interfaces import ROOM, Control, Model, Ticket
from clover.planning.model.queueing import REST_S, TURNS, WAKE_S, cold
from clover.profiling.rows import SampleRows, pack
from clover.tenants import Tenant
from clover.types import FamilyProfile, FamilySpec, LatencyMeasurement, Receipt

LIGHT_RATE = 200.0
"""Rows a second that are few enough that most find everything asleep."""
SECONDS = 1.0
ANSWER_S = 0.002
"""How long the model takes: about as long as a small one, so that an answer leaves in another turn of the loop."""
MOST_OVER_LEAST = 3.0
"""How many times as much work a request may be as one of the fastest twentieth."""
_FASTEST = 0.05
_REQUESTS = 64
"""Different requests that are sent in turn."""
_JSON_VALUES = 10_000
"""Numbers of a request up to which it is JSON, as most clients send; beyond, its tensors are binary."""
_SEED = 1
_READ_BYTES = 1 << 16
_MEASURING = "the front end is being measured"
_RECEIPT = Receipt(
    variant="echo", accuracy=0.0, energy_j=1e-3, carbon_mg=1e-3, intensity_g_per_kwh=100.0, method="modelled"
)
LIGHT_PART = 0.25
"""Of the rate at which BASE is measured under load, if that is less."""
MOST_TURNS = 2.0
"""A worker wakes up at the price of so many turns of the front end at most.  More is no wake-up, but a BASE that took
another time than it was profiled with, which is no price of other variants."""


@dataclass(frozen=True)
class FrontEndRun:
    """A second of requests: the milliseconds that the front end adds to a latency, the CPU seconds of its thread, the
    seconds that it lasted, and the requests."""

    ms: float
    cpu_s: float
    seconds: float
    requests: int


async def measure(rows: SampleRows, silent_s: float, *, seconds: float = SECONDS) -> FrontEndRun:
    """Return what requests of a row of `rows` cost the front end.  Raises ProfileError if a request is not answered
    well, and OSError if none can be sent or an answer takes `silent_s`."""
    loop = asyncio.get_running_loop()
    echo = Echo(rows.spec, loop)
    frontend = Frontend(_OneModel(echo), ServerConfig(listen=ListenConfig(port=0)), loop)
    try:
        host, port = await frontend.start()
        whole = [_request(f"{host}:{port}", rows.spec.name, body) for body in bodies(rows)]
        used_ns, began_s = time.thread_time_ns(), time.monotonic()
        took_ns = await asyncio.to_thread(ask, (host, port), whole, seconds, silent_s)
        lasted_s, used_ns = time.monotonic() - began_s, time.thread_time_ns() - used_ns
    finally:
        await frontend.close()
    return FrontEndRun(added_ms(took_ns, echo.took_ns), used_ns / 1e9, lasted_s, len(took_ns))


def added_ms(client_ns: Sequence[int], model_ns: Sequence[int]) -> float:
    """Return the milliseconds that requests took beyond the model's time, by what client and model saw of each."""
    added = np.maximum(np.subtract(client_ns, model_ns), 0) / 1e6
    return float(min(np.median(added), MOST_OVER_LEAST * np.quantile(added, _FASTEST)))


# --- what is sent -----------------------------------------------------------------------------------------------------


def bodies(rows: SampleRows) -> list[tuple[bytes, int]]:
    """Return bodies of a row each, and the bytes of JSON in them (-1: they are JSON altogether)."""
    spec = rows.spec
    size = sum(math.prod(tensor.bound) for tensor in spec.inputs)
    plain = size <= _JSON_VALUES and not any(t.datatype in ("BYTES", "FP16", "BF16") for t in spec.inputs)
    parts = []
    for number in range(_REQUESTS):
        tensors: list[dict[str, Any]] = []
        tail = b""
        for tensor, given in zip(spec.inputs, rows.take(number, 1), strict=True):
            named = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(given.shape)}
            if plain:
                tensors.append(named | {"data": given.reshape(-1).tolist()})
                continue
            data = pack(given) if tensor.datatype == "BYTES" else given.tobytes()
            tensors.append(named | {"parameters": {"binary_data_size": len(data)}})
            tail += data
        head = orjson.dumps({"inputs": tensors})
        parts.append((head + tail, -1 if plain else len(head)))
    return parts


def _request(authority: str, model: str, given: tuple[bytes, int]) -> bytes:
    """Return a whole HTTP request for an inference."""
    body, json_length = given
    fields = [f"POST /v2/models/{model}/infer HTTP/1.1", f"Host: {authority}", f"Content-Length: {len(body)}"]
    if json_length >= 0:
        fields.append(f"Inference-Header-Content-Length: {json_length}")
    return "\r\n".join([*fields, "", ""]).encode() + body


def ask(address: tuple[str, int], requests: Sequence[bytes], seconds: float, silent_s: float) -> list[int]:
    """Send `requests` in turn for `seconds`, one at least, and return the nanoseconds of each."""
    gaps = random.Random(_SEED)
    took_ns: list[int] = []
    with socket.create_connection(address, silent_s) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end_s = time.monotonic() + seconds
        while not took_ns or time.monotonic() < end_s:
            time.sleep(gaps.expovariate(LIGHT_RATE))
            began_ns = time.monotonic_ns()
            connection.sendall(requests[len(took_ns) % len(requests)])
            _receive(connection)
            took_ns.append(time.monotonic_ns() - began_ns)
    return took_ns


def _receive(connection: socket.socket) -> None:
    """Read one answer.  Raises ProfileError if it is not a good one."""
    received = b""
    while True:
        data = connection.recv(_READ_BYTES)
        received += data
        head, end, body = received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        if end and len(body) >= int(length or 0):
            break
        if not data:
            raise ProfileError("the front end ended the connection")
    if not head.startswith(b"HTTP/1.1 200 "):
        status, _, _ = head.partition(b"\r\n")
        raise ProfileError(f"the front end answered {status.decode()}")


# --- what answers -----------------------------------------------------------------------------------------------------


class EchoTicket(Ticket):
    """A request that is answered after `ANSWER_S`."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.slots, self.variants = [], []
        self.status = self.uncached = 0
        self.error = self.client = ""
        self.retry_after_s = self.context = None
        self.arrival_ns = self.done_ns = self.queue_ns = self.compute_ns = self.waited_ns = 0


class Echo(Model):
    """Takes rows of the family `spec` and answers zeros; axes that vary have the length 1.  `took_ns`: how long each
    request was with it."""

    def __init__(self, spec: FamilySpec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self.closed_reason = ""
        self.most_rows = spec.max_batch
        self.timeout_ns = int(60e9)
        self.took_ns: list[int] = []
        self._loop = loop
        self._kept: dict[int, object] = {}

    @property
    def ready(self) -> bool:
        """See `Model.ready`."""
        return True

    def open(self, rows: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> EchoTicket:
        """See `Model.open`."""
        return EchoTicket(rows)

    def retry_in_s(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> float:
        """See `Model.retry_in_s`."""
        return 0.0

    def room(self, flow: int = 0, request: int = 0, tenant: Tenant | None = None) -> int:
        """See `Model.room`."""
        return ROOM

    def take_late(self, on: bool) -> None:
        """See `Model.take_late`."""

    def lend(
        self, rows: int, index: int, flow: int = 0, request: int = 0, tenant: Tenant | None = None
    ) -> tuple[Ticket, memoryview] | None:
        """See `Model.lend`."""
        tensor = self.spec.inputs[index]
        if tensor.datatype == "BYTES" or tensor.variable:
            return None
        array = np.empty(rows * math.prod(tensor.shape), DATATYPES[tensor.datatype])
        return EchoTicket(rows), array.view(np.uint8).data

    def admit_lent(self, ticket: Ticket) -> None:
        """See `Model.admit_lent`."""

    def write(self, ticket: Ticket, index: int, rows: NDArray[Any] | Sequence[bytes]) -> None:
        """See `Model.write`."""
        self._kept[index] = rows.copy() if isinstance(rows, np.ndarray) else b"".join(rows)

    def write_elements(self, ticket: Ticket, index: int, rows: Sequence[bytes], dims: tuple[int, ...]) -> None:
        """See `Model.write_elements`."""
        self.write(ticket, index, rows)

    def submit(
        self,
        ticket: Ticket,
        on_done: Callable[[Any], None],
        timeout_ns: int = 0,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        context: Any = None,
    ) -> None:
        """See `Model.submit`."""
        ticket.context = context
        self._loop.call_later(ANSWER_S, self._answer, ticket, on_done, time.monotonic_ns())

    def _answer(self, ticket: Ticket, on_done: Callable[[Any], None], began_ns: int) -> None:
        self.took_ns.append(time.monotonic_ns() - began_ns)
        ticket.status = 200
        on_done(ticket)

    def read(self, ticket: Any, index: int) -> NDArray[Any] | list[bytes]:
        """See `Model.read`."""
        tensor = self.spec.outputs[index]
        shape = tuple(map(abs, tensor.shape))
        if tensor.datatype == "BYTES":
            return [bytes(4 * math.prod(shape))] * ticket.rows
        return np.zeros((ticket.rows, *shape), DATATYPES[tensor.datatype])

    def text(self, ticket: Ticket, index: int) -> bytes | None:
        """See `Model.text`."""
        return None

    def receipt(self, ticket: Ticket) -> Receipt:
        """See `Model.receipt`."""
        return _RECEIPT

    def remember(self, number: int, ticket: Ticket) -> None:
        """See `Model.remember`."""

    def close(self, ticket: Ticket) -> None:
        """See `Model.close`."""


class _OneModel:
    """A `ServerView` of one model: it answers inferences, and nothing else."""

    def __init__(self, model: Model) -> None:
        self._models = {model.spec.name: model}

    def models(self) -> dict[str, Model]:
        return self._models

    def ready(self) -> bool:
        return True

    def live(self) -> bool:
        return True

    async def load(self, name: str, config: str) -> None:
        raise Unavailable(_MEASURING)

    async def unload(self, name: str) -> None:
        raise Unavailable(_MEASURING)

    def state_of(self, name: str) -> tuple[str, str]:
        return "READY", ""

    def control(self) -> Control:
        raise Unavailable(_MEASURING)

    def metrics(self) -> bytes:
        return b""


# --- what a batch costs at a light load -------------------------------------------------------------------------------


@dataclass(frozen=True)
class LightLoad:
    """A run at a light load of `workers` workers: their CPU seconds, the seconds that it lasted, and batches with their
    rows."""

    workers_s: float
    seconds: float
    batches: int
    rows: int
    workers: int


def with_light_load(profile: FamilyProfile, light: LightLoad, front: FrontEndRun) -> FamilyProfile:
    """Return `profile` with what batches cost at a light load; unchanged if the runs say nothing."""
    base = _measure_base(profile)
    if base is None or not front.requests or not light.batches or base.cpu_s_per_row <= 0.0:
        return profile
    joules_a_s = base.energy_j_per_row / base.cpu_s_per_row
    known_j = base.energy_j_per_row * max(light.rows / light.batches, base.batch)
    pause_s = light.seconds * light.workers / light.batches - base.mean_ms * 1e-3
    if pause_s <= 0.0:
        return profile
    known_j += base.rested_j * cold(pause_s, REST_S)
    front_pause_s = front.seconds / (TURNS * front.requests)
    turn_j = front.cpu_s / (front.requests * TURNS) * joules_a_s / cold(front_pause_s, WAKE_S)
    wake_j = max(light.workers_s / light.batches * joules_a_s - known_j, 0.0) / cold(pause_s, WAKE_S)
    wake_j = min(wake_j, MOST_TURNS * turn_j)
    latency = tuple(structs.replace(item, wake_j=wake_j) for item in profile.latency)
    return structs.replace(profile, latency=latency, turn_j=turn_j)


def _measure_base(profile: FamilyProfile) -> LatencyMeasurement | None:
    """Return how BASE runs in its smallest batches."""
    base = profile.base
    wanted = (base.variant, base.profile, base.backend)
    cells = [item for item in profile.latency if (item.variant, item.profile, item.backend) == wanted]
    return min(cells, key=lambda item: (item.batch, item.mean_ms), default=None)
