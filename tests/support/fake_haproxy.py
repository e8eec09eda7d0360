"""The runtime API of an HAProxy that does nothing but answer, as 2.8 and 3.0 word it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

_COLUMNS = (
    "be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight "
    "srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state "
    "bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr "
    "srv_agent_addr srv_agent_port"
)
_ADMIN = {"ready": 0, "maint": 1, "drain": 8}


@dataclass(slots=True)
class FakeServer:
    """A server of a backend.  `connections`: how many deletions are refused for want of their end."""

    number: int
    host: str
    port: int
    weight: int = 1
    state: str = "maint"
    up: bool = False
    checked: bool = False
    secure: bool = False
    check_host: str = "-"
    check_port: int = 0
    connections: int = 0
    requests: int = 0


def random_server(rng: random.Random, hosts: tuple[str, ...] = ("127.0.0.1", "127.0.0.2")) -> FakeServer:
    """Return a server in any state."""
    return FakeServer(
        number=rng.randint(1, 99),
        host=rng.choice(hosts),
        port=rng.choice((80, 81, 90)),
        weight=rng.choice((0, 1, 40, 256)),
        state=rng.choice(("ready", "drain", "maint")),
        up=rng.random() < 0.5,
        checked=rng.random() < 0.5,
        secure=rng.random() < 0.5,
        check_host=rng.choice(("-", "127.0.0.1")),
        check_port=rng.choice((0, 80)),
    )


@dataclass(slots=True)
class FakeHAProxy:
    """Servers by backend; `log` has every command, `sent_while_up` whether one had a weight before it was checked."""

    backends: dict[str, dict[str, FakeServer]]
    description: str = "clover-ingress-0"
    log: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    refuse: str = ""
    """Commands that hold this text are refused."""
    piece: int = 1 << 20
    """Bytes that are sent at once."""

    def run(self, command: str) -> str:
        """Carry out one command and return its answer, without the empty line."""
        self.log.append(command)
        if self.refuse and self.refuse in command:
            return "Some error.\n"
        words = command.split()
        if words[:2] == ["show", "info"]:
            return f"Name: HAProxy\nPid: 1\nDescription: {self.description}\n"
        if words[:3] == ["show", "servers", "state"]:
            return self._states()
        if words[:2] == ["show", "stat"]:
            return self._statistics(words)
        match words[:2]:
            case ["add", "server"]:
                return self._add(words)
            case ["enable", "health" | "server"]:
                return self._with(words[2], lambda server: self._enable(words[1], server))
            case ["set", "server"]:
                reply = self._with(words[2], lambda server: self._set(server, words[3:]))
                self._look(words[2])
                return reply
            case ["del", "server"]:
                return self._delete(words[2])
        return f"Unknown command: '{words[0]}'.\n"

    def check(self) -> None:
        """Let every server's check succeed."""
        for servers in self.backends.values():
            for server in servers.values():
                server.up = server.checked and server.state != "maint"

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Answer at a Unix socket until the block ends."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = (await reader.readline()).decode().rstrip("\n")
            text = "".join(self.run(command) + "\n" for command in line.split(";")).encode()
            for start in range(0, len(text), self.piece):
                writer.write(text[start : start + self.piece])
                await asyncio.sleep(0)
            writer.close()

        server = await asyncio.start_unix_server(answer, path)
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()

    def _server(self, place: str) -> FakeServer | None:
        backend, _, name = place.partition("/")
        return self.backends.get(backend, {}).get(name)

    def _with(self, place: str, change: object) -> str:
        server = self._server(place)
        return "No such server.\n" if server is None else change(server)  # type: ignore[operator]

    def _add(self, words: list[str]) -> str:
        backend, _, name = words[2].partition("/")
        if backend not in self.backends:
            return "No such backend.\n"
        if name in self.backends[backend]:
            return "Already exists a server with the same name in backend.\n"
        host, _, port = words[3].rpartition(":")
        server = FakeServer(len(self.log), host.strip("[]"), int(port), secure="ssl" in words)
        if "weight" in words:
            server.weight = int(words[words.index("weight") + 1])
        if "addr" in words:
            server.check_host = words[words.index("addr") + 1]
            server.check_port = int(words[words.index("port") + 1])
        self.backends[backend][name] = server
        return "New server registered.\n"

    @staticmethod
    def _enable(what: str, server: FakeServer) -> str:
        if what == "health":
            server.checked = True
        else:
            server.state, server.up = "ready", True
        return ""

    @staticmethod
    def _set(server: FakeServer, words: list[str]) -> str:
        match words:
            case ["weight", weight]:
                if not re.fullmatch(r"\d+", weight) or int(weight) > 256:
                    return "Absolute weight must be between 0 and 256.\n"
                server.weight = int(weight)
            case ["state", state]:
                server.up = True if server.state == "maint" else server.up
                server.state = state
            case ["health", "down"]:
                if not server.checked:
                    return "Health checks are not enabled on this server.\n"
                server.up = False
            case ["addr", host, "port", port]:
                server.host, server.port = host, int(port)
                return f"port changed from '1' to '{port}' by 'stats socket command'\n"
            case ["check-addr", host, "port", port]:
                server.check_host, server.check_port = host, int(port)
            case _:
                return f"'set server <srv> {words[0]}' is not known.\n"
        return ""

    def _look(self, place: str) -> None:
        server = self._server(place)
        if server is not None and server.weight and server.up and server.state == "ready" and not server.checked:
            self.unchecked.append(place)

    def _delete(self, place: str) -> str:
        server = self._server(place)
        if server is None:
            return "No such server.\n"
        if server.state != "maint":
            return "Only servers in maintenance mode can be deleted.\n"
        if server.connections:
            server.connections -= 1
            return "Server still has connections attached to it, cannot remove it.\n"
        backend, _, name = place.partition("/")
        del self.backends[backend][name]
        return "Server deleted.\n"

    def _states(self) -> str:
        lines = ["1", f"# {_COLUMNS}"]
        for number, (backend, servers) in enumerate(self.backends.items()):
            for name, server in servers.items():
                up, check = (2 if server.up else 0), (6 if server.checked else 2)
                lines.append(
                    f"{number} {backend} {server.number} {name} {server.host} {up} {_ADMIN[server.state]} "
                    f"{server.weight} 1 0 1 0 0 {check} 0 0 0 - {server.port} - {int(server.secure)} "
                    f"{server.check_port} {server.check_host} - 0"
                )
        return "\n".join(lines) + "\n"

    def _statistics(self, words: list[str]) -> str:
        lines = []
        for number, (backend, servers) in enumerate(self.backends.items()):
            for name, server in servers.items():
                if words[2] in ("-1", backend) and words[4] in ("-1", str(server.number)):
                    start = f"S.{number}.{server.number}"
                    lines += [f"{start}.0.pxname.1:KNS:str:{backend}", f"{start}.1.svname.1:KNS:str:{name}"]
                    lines += [f"{start}.2.qcur.1:MGP:u32:0", f"{start}.4.scur.1:MGP:u32:{server.connections}"]
                    lines += [f"{start}.7.stot.1:MCP:u64:{server.requests}"]
        return "\n".join(lines) + "\n"
