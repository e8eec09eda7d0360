"""Stand-ins for what the front end serves: an echo model, a server view, a transport that records."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from clover.config import LimitsConfig, ListenConfig, LogConfig, ServerConfig
from clover.errors import BadRequest, NotFound, RequestError
from clover.http.access import Access
from clover.http.api.routes import Routes
from clover.http.audit import Operators
from clover.http.connection import Connection, Incoming
from clover.http.oip.tensors import DATATYPES
from clover.http.server_state import HttpStats, ServerState
from clover.interfaces import LATE_ROOM, NO_ROOM, ROOM, Model, SplitModel, Ticket
from clover.tenants import Tenants
from clover.types import FamilySpec, Receipt, TensorSpec, VariantSpec

RECEIPT = Receipt(
    variant="small",
    accuracy=88.7,
    energy_j=0.000123456,
    carbon_mg=0.0000137,
    intensity_g_per_kwh=400.0,
    method="modelled",
)


def family(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], **others: Any) -> FamilySpec:
    variant = VariantSpec(name="small", loader="model:load", kind="python")
    return FamilySpec(name=name, inputs=tuple(inputs), outputs=tuple(outputs), variants=(variant,), **others)


def tensor(name: str, datatype: str, *shape: int, **others: Any) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=shape, **others)


class FakeTicket(Ticket):
    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.slots = []
        self.status = 0
        self.error = ""
        self.retry_after_s = None
        self.context = None
        self.arrival_ns = self.done_ns = self.queue_ns = self.compute_ns = self.waited_ns = 0
        self.variants = []
        self.inputs: dict[int, Any] = {}
        self.timeout_ns = 0
        self.min_accuracy = 0.0
        self.cascade = True
        self.on_done: Callable[[Any], None] | None = None
        self.ahead = False
        self.closed = 0


class FakeModel(Model):
    """Runs `function(inputs) -> outputs` when asked to: at once, by `call_soon`, or when `run()` is called."""

    ready = True  # a test may say otherwise

    def __init__(
        self,
        spec: FamilySpec,
        function: Callable[[list[Any]], list[Any]] = lambda inputs: inputs,
        *,
        loop: Any = None,
        held: bool = False,
        most_rows: int = 1 << 16,
    ) -> None:
        self.spec = spec
        self.closed_reason = ""
        self.most_rows = most_rows
        self.roomy = False
        self.timeout_ns = 1_000_000_000
        self.wait_s = 0.0
        self.late = 0
        self.slow = self.takes_late = False
        self.full: set[Any] = set()  # tenants, or None, whose requests find no room
        self.function = function
        self.loop = loop
        self.held = held
        self.tickets: list[FakeTicket] = []
        self.waiting: list[FakeTicket] = []
        self.open_tickets = 0
        self.refusal: RequestError | None = None
        self.submit_refusal: RequestError | None = None
        self.remembered: dict[int, int] = {}
        self.labellers: list[str] = []
        self.flows: list[int] = []
        self.senders: list[Any] = []

    def open(self, rows: int, flow: int = 0, request: int = 0, tenant: Any = None) -> FakeTicket:
        self.senders.append(tenant)
        if self.refusal is not None:
            raise self.refusal
        self.flows.append(flow)
        ticket = FakeTicket(rows)
        self.tickets.append(ticket)
        del self.tickets[:-64]
        self.open_tickets += 1
        return ticket

    def retry_in_s(self, flow: int = 0, request: int = 0, tenant: Any = None) -> float:
        return 0.0 if self.slow and self.takes_late else self.wait_s

    def room(self, flow: int = 0, request: int = 0, tenant: Any = None) -> int:
        if tenant in self.full:
            return NO_ROOM
        return ROOM if self.wait_s <= 0.0 else LATE_ROOM if self.slow else NO_ROOM

    def take_late(self, on: bool) -> None:
        self.takes_late = on

    def count_expired(self, tenant: Any = None) -> None:
        self.late += 1

    def lend(
        self, rows: int, index: int, flow: int = 0, request: int = 0, tenant: Any = None
    ) -> tuple[FakeTicket, memoryview] | None:
        if not self.roomy:
            return None
        ticket = self.open(rows, flow, request, tenant)
        ticket.ahead = True
        spec = self.spec.inputs[index]
        ticket.inputs[index] = np.full((rows, *spec.shape), 77, DATATYPES[spec.datatype].dtype)
        return ticket, memoryview(ticket.inputs[index].reshape(-1).view(np.uint8))

    def admit_lent(self, ticket: Any) -> None:
        assert ticket.ahead
        ticket.ahead = False

    def write(self, ticket: Any, index: int, rows: Any) -> None:
        assert len(rows) == ticket.rows
        spec = self.spec.inputs[index]
        if isinstance(rows, list):
            if spec.max_bytes and max(map(len, rows)) > spec.max_bytes:
                raise BadRequest("a row is too long")
            ticket.inputs[index] = list(rows)
        else:
            ticket.inputs[index] = rows.copy()

    def submit(
        self,
        ticket: Any,
        on_done: Any,
        timeout_ns: int = 0,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        context: Any = None,
    ) -> None:
        ticket.cascade = cascade
        if self.submit_refusal is not None:
            raise self.submit_refusal
        if 0.0 < min_accuracy <= 1.0:  # as the router does
            raise BadRequest("clover_min_accuracy is in percent")
        ticket.on_done, ticket.timeout_ns, ticket.min_accuracy, ticket.context = (
            on_done,
            timeout_ns,
            min_accuracy,
            context,
        )
        if self.held:
            self.waiting.append(ticket)
        elif self.loop is not None:
            self.loop.call_soon(self.finish, ticket)
        else:
            self.finish(ticket)

    def run(self, index: int = 0, status: int = 200, error: str = "", retry_after_s: float | None = None) -> None:
        self.finish(self.waiting.pop(index), status, error, retry_after_s)

    def finish(
        self, ticket: FakeTicket, status: int = 200, error: str = "", retry_after_s: float | None = None
    ) -> None:
        ticket.status, ticket.error, ticket.retry_after_s = status, error, retry_after_s
        assert ticket.on_done is not None
        ticket.on_done(ticket)

    def text(self, ticket: Any, index: int) -> bytes | None:
        return None

    def read(self, ticket: Any, index: int) -> Any:
        return self.function([ticket.inputs[i] for i in range(len(self.spec.inputs))])[index]

    def receipt(self, ticket: Any) -> Receipt:
        return RECEIPT

    def remember(self, number: int, ticket: Any) -> None:
        assert number not in self.remembered, "a number is one request's"
        self.remembered[number] = ticket.rows

    def count_labels(self, number: int, labels: Sequence[Any], client: str) -> dict[str, Any]:
        self.labellers.append(client)
        rows = self.remembered.get(number)
        if rows is None:
            raise NotFound("no answer of that id is remembered")
        if rows != len(labels):
            raise BadRequest(f"that request had {rows} rows, and {len(labels)} labels were given")
        del self.remembered[number]
        return {"rows": rows, "right": rows, "estimate": None}

    def close(self, ticket: Any) -> None:
        ticket.closed += 1
        assert ticket.closed == 1, "closed twice"
        self.open_tickets -= 1

    def stats(self) -> dict[str, Any]:
        counter = {"count": 0, "ns": 0}
        names = (
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
            "cache_hit",
            "cache_miss",
        )
        return {
            "name": self.spec.name,
            "version": self.spec.version,
            "last_inference": 0,
            "inference_count": 0,
            "execution_count": 0,
            "inference_stats": dict.fromkeys(names, counter),
            "batch_stats": [],
        }


class FakeControl:
    def __init__(self) -> None:
        self.commands: list[tuple[str, dict[str, Any], str]] = []
        self.error: Exception | None = None

    def state(self) -> dict[str, Any]:
        return {"receipt": RECEIPT, "value": np.float32(1.5)}

    def decisions_json(self, limit: int) -> bytes:
        return orjson.dumps([{"id": number} for number in range(limit)])

    async def command(self, verb: str, arguments: dict[str, Any], operator: str) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        self.commands.append((verb, arguments, operator))
        return {"done": verb}


class TwoVersions(SplitModel):
    """A name whose requests go to two models in turn."""

    def __init__(self, *models: FakeModel) -> None:
        self.models = models
        self.spec, self.closed_reason, self.most_rows = models[0].spec, "", models[0].most_rows
        self.of: dict[Any, FakeModel] = {}

    def versions(self) -> tuple[FamilySpec, ...]:
        return tuple(model.spec for model in self.models)

    def version_of(self, ticket: Any) -> FamilySpec:
        return self.of[ticket].spec

    def retry_in_s(self, *how: Any) -> float:
        return 0.0

    def take_late(self, on: bool) -> None:
        for model in self.models:
            model.take_late(on)

    def open(self, *how: Any) -> Any:
        model = self.models[len(self.of) % 2]
        ticket = model.open(*how)
        self.of[ticket] = model
        return ticket

    def write(self, ticket: Any, index: int, rows: Any) -> None:
        self.of[ticket].write(ticket, index, rows)

    def submit(self, ticket: Any, *how: Any) -> None:
        self.of[ticket].submit(ticket, *how)

    def text(self, ticket: Any, index: int) -> bytes | None:
        return self.of[ticket].text(ticket, index)

    def read(self, ticket: Any, index: int) -> Any:
        return self.of[ticket].read(ticket, index)

    def receipt(self, ticket: Any) -> Any:
        return msgspec.structs.replace(self.of[ticket].receipt(ticket), version=self.of[ticket].spec.version)

    def remember(self, number: int, ticket: Any) -> None:
        self.of[ticket].remember(number, ticket)

    def close(self, ticket: Any) -> None:
        self.of[ticket].close(ticket)


class FakeView:
    def __init__(self, *models: FakeModel) -> None:
        self.by_name: dict[str, Model] = {model.spec.name: model for model in models}
        self.is_ready = True
        self.is_live = True
        self.controller = FakeControl()
        self.load_error: Exception | None = None
        self.loads: list[tuple[str, str]] = []

    def models(self) -> dict[str, Model]:
        return self.by_name

    def ready(self) -> bool:
        return self.is_ready

    def live(self) -> bool:
        return self.is_live

    async def load(self, name: str, config: str) -> None:
        if self.load_error is not None:
            raise self.load_error
        if name not in self.by_name:
            raise NotFound("no such family")
        self.loads.append((name, config))

    async def unload(self, name: str) -> None:
        await self.load(name, "unload")

    def state_of(self, name: str) -> tuple[str, str]:
        return ("READY", "") if self.by_name[name].ready else ("UNAVAILABLE", "unloaded")

    def control(self) -> FakeControl:
        return self.controller

    def metrics(self) -> bytes:
        return b"# EOF\n"


class MockTransport:
    """Records what is written; `limit` high water after which the protocol is told to pause."""

    def __init__(self, peer: tuple[str, int] = ("127.0.0.1", 50000), limit: int = 1 << 16) -> None:
        self.peer = peer
        self.limit = limit
        self.protocol: Connection | None = None
        self.writes: list[bytes] = []
        self.reading = True
        self.closed = False
        self.aborted = False
        self.eof = False
        self.blocked = False
        self.pending = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peer if name == "peername" else default

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(bytes(data))
        if self.blocked:
            self.pending += len(data)
            assert self.protocol is not None
            if self.pending > self.limit:
                self.protocol.pause_writing()

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def unblock(self) -> None:
        self.blocked = False
        self.pending = 0
        assert self.protocol is not None
        self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.pending

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    @property
    def sent(self) -> bytes:
        return b"".join(self.writes)


class FakeLoop:
    """`call_soon` and tasks, run when `turn` is called."""

    def __init__(self) -> None:
        self.ready: list[tuple[Any, tuple[Any, ...]]] = []

    def call_soon(self, callback: Any, *arguments: Any) -> None:
        self.ready.append((callback, arguments))

    def create_task(self, coroutine: Any) -> Any:
        class Done:
            def add_done_callback(self, callback: Any) -> None:
                callback(self)

        asyncio.run(coroutine)
        return Done()

    def turn(self) -> None:
        """One turn: what is ready now, not what that makes ready."""
        ready, self.ready = self.ready, []
        for callback, arguments in ready:
            callback(*arguments)

    def settle(self) -> None:
        while self.ready:
            self.turn()


@dataclass
class Answer:
    status: int
    fields: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


def parse_answers(data: bytes, heads_only: bool = False) -> list[Answer]:
    """All answers in a byte stream, interim ones included; the stream must hold nothing else."""
    answers = []
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, head
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            assert name.lower() not in fields, name
            fields[name.lower()] = value
        size = 0 if status == 100 or heads_only else int(fields["content-length"])
        assert len(data) >= size
        answers.append(Answer(status, fields, data[:size]))
        data = data[size:]
    return answers


class Driver:
    """A front end's routes and one connection on a recording transport."""

    def __init__(
        self,
        view: FakeView,
        *,
        limits: LimitsConfig | None = None,
        listen: ListenConfig | None = None,
        control: bool = False,
        access: bool = False,
        peer: tuple[str, int] = ("127.0.0.1", 50000),
        tenants: Tenants | None = None,
        mounted: dict[str, Any] | None = None,
        operators: Operators | None = None,
    ) -> None:
        self.config = ServerConfig(
            limits=limits or LimitsConfig(), listen=listen or ListenConfig(), log=LogConfig(access=access)
        )
        self.view = view
        self.loop = FakeLoop()
        self.stats = HttpStats()
        self.operators = operators or Operators.from_config(self.config)
        rules = Access(self.config.listen, control=control, tenants=tenants, grants=self.operators.grants)
        self.routes = Routes(view, self.config, self.loop, rules, mounted, self.operators.audit)  # type: ignore[arg-type]
        self.state = ServerState(self.routes.judge, self.config.limits, self.loop, self.stats, access_log=access)  # type: ignore[arg-type]
        self.connections: set[Incoming] = set()
        self.control = control
        self.peer = peer
        self.connect()

    def connect(self) -> None:
        self.transport = MockTransport(self.peer)
        self.connection = Connection(self.state, self.routes, self.connections, control=self.control)
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]

    def sweep(self, elapsed_s: float) -> None:
        """Let time pass, as the front end does."""
        self.routes.settle()
        for connection in list(self.connections):
            connection.sweep(elapsed_s)

    def feed(self, data: bytes) -> None:
        """Deliver bytes as a loop would: into the buffer the protocol gives."""
        while data and self.transport.reading and not self.transport.closed:
            buffer = self.connection.get_buffer(-1)
            taken = min(len(buffer), len(data))
            buffer[:taken] = data[:taken]
            self.connection.buffer_updated(taken)
            data = data[taken:]

    def send(self, data: bytes) -> list[Answer]:
        """Deliver `data`, settle the loop, and give all answers since the last call."""
        self.feed(data)
        self.loop.settle()
        return self.take()

    def take(self, heads_only: bool = False) -> list[Answer]:
        sent = self.transport.sent
        self.transport.writes.clear()
        return parse_answers(sent, heads_only)

    def get(self, path: str, *fields: str, method: str = "GET") -> Answer:
        return self.send(request(method, path, fields=fields))[0]

    def post(self, path: str, body: Any = b"", *fields: str) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answers = self.send(request("POST", path, data, fields))
        assert len(answers) == 1
        return answers[0]


def request(
    method: str, path: str, body: bytes | None = None, fields: Sequence[str] = (), version: str = "1.1"
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *fields]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def echo_family() -> FamilySpec:
    return family("echo", [tensor("IN", "FP32", 4)], [tensor("OUT", "FP32", 4, labels=("a", "b", "c"))])


def echo_body(*values: float, **others: Any) -> dict[str, Any]:
    data = list(values) or [1.0, 2.0, 3.5, -4.0]
    return {"inputs": [{"name": "IN", "shape": [len(data) // 4, 4], "datatype": "FP32", "data": data}], **others}


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for this machine and its key, by openssl; return their paths."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return cert, key
