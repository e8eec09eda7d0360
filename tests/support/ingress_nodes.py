"""Small HTTP/1.1 servers that stand for nodes behind an ingress, and a client that counts who answered.

`python -m tests.support.ingress_nodes NAME PORT` is one in a process of its own, which can be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections import Counter
from dataclasses import dataclass, field

ANSWER_S = 30.0
"""How long a client waits for an answer, or for the end of a connection."""


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback that are free now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass(slots=True)
class Reply:
    """An answer: status, headers by lower-case name, body.  Status 0: the connection ended without one."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    def json(self) -> dict[str, object]:
        """Return the body as a JSON object."""
        found: dict[str, object] = json.loads(self.body)
        return found


class FakeNode:
    """Answers health by `ready`, and anything else with its name and the request that it saw.

    `status`: of these answers.  `held`: they wait for this event.  `cut`: connections end instead of an answer."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ready = True
        self.status = 200
        self.cut = False
        self.held: asyncio.Event | None = None
        self.answered = 0
        self.checks = 0
        self.token = ""
        self.waiting = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self, port: int = 0, context: ssl.SSLContext | None = None) -> FakeNode:
        """Listen, with TLS if a context is given."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=1 << 20, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Close the port and cut all connections, as the end of a process does."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                line, headers, body = await read_message(reader)
                if line.split()[1] == "/v2/health/ready":
                    self.checks += 1
                    self.token = dict(headers).get("authorization", "")
                    writer.write(message(f"HTTP/1.1 {200 if self.ready else 503} x", {}, b""))
                    continue
                if self.cut:
                    writer.transport.abort()
                    return
                self.waiting += 1
                if self.held is not None:
                    await self.held.wait()
                self.waiting -= 1
                self.answered += 1
                seen = {"node": self.name, "line": line, "headers": headers, "bytes": len(body)}
                own = (
                    f"{self.name * 12:.12}-{self.answered}-tag"  # as Clover makes them: begins with the process's word
                )
                identity = {"x-request-id": dict(headers).get("x-request-id", own)}
                if identity["x-request-id"] != own:
                    identity["Clover-Receipt"] = f'variant="small", accuracy=90.0, feedback="{own}"'
                writer.write(message(f"HTTP/1.1 {self.status} x", identity, json.dumps(seen).encode()))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


def message(start: str, headers: dict[str, str], body: bytes) -> bytes:
    """Return a request or an answer as bytes."""
    lines = [start, *(f"{name}: {value}" for name, value in headers.items()), f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def read_message(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return the first line, the headers and the body of what comes next."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4].split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    body = await reader.readexactly(int(dict(headers).get("content-length", "0")))
    return first, headers, body


class IngressClient:
    """One connection, kept alive, with one request at a time."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.port = port
        self._context = context
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, method: str, path: str, body: bytes = b"", headers: tuple[str, ...] = ()) -> Reply:
        """Send a request and return its answer; TimeoutError if there is none in `ANSWER_S`, so that a test fails and
        does not hang."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self._answer(method, path, body, headers)
        except TimeoutError:
            await self.close()  # an answer that comes late would be taken for that of the next request
            raise

    async def _answer(self, method: str, path: str, body: bytes, headers: tuple[str, ...]) -> Reply:
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20, ssl=self._context)
            reader, writer = self._streams
            head = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers]
            head += [f"Content-Length: {len(body)}", "", ""]
            writer.write("\r\n".join(head).encode() + body)
            line, found, answer = await read_message(reader)
        except (OSError, asyncio.IncompleteReadError):
            await self.close()
            return Reply(0)
        reply = Reply(int(line.split()[1]), dict(found), answer)
        if reply.headers.get("connection") == "close":
            await self.close()
        return reply

    async def infer(self, body: bytes = b"{}", *headers: str) -> Reply:
        """Send an inference."""
        return await self.send("POST", "/v2/models/toy/infer", body, headers)

    async def close(self) -> None:
        """End the connection."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
            async with asyncio.timeout(ANSWER_S):
                with contextlib.suppress(OSError):
                    await streams[1].wait_closed()


async def count(port: int, requests: int, connections: int = 4) -> Counter[str]:
    """Send inferences and return how many each node answered; "status 503" and the like for what is no 200."""
    found: Counter[str] = Counter()
    left = iter(range(requests))

    async def client() -> None:
        own = IngressClient(port)
        for _ in left:
            reply = await own.infer()
            found[str(reply.json()["node"]) if reply.status == 200 else f"status {reply.status}"] += 1
        await own.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return found


async def _alone(name: str, port: int) -> None:
    await FakeNode(name).start(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_alone(sys.argv[1], int(sys.argv[2])))
