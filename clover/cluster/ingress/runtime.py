"""A client of HAProxy's runtime API: commands over its Unix socket, and what it answers.

The API has no status codes: every command gets lines of text and an empty line, and an error is a text like any other.
So each command that changes something is checked by what may be answered to it.  Several commands go as one line,
separated by semicolons, and are answered in their order; HAProxy closes the connection after the last.  The formats are
those of HAProxy's management guide, sections 9.1 (`show stat`) and 9.3 (commands), versions 2.8 and 3.0.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import Iterable, Sequence

from clover.errors import ClusterError
from clover.types import Record

_ANSWER_S = 5.0
_LINE_BYTES = 12 << 10
"""Longest line of commands; HAProxy's buffers have at least 16 KiB."""
_MOST_BYTES = 256 << 20
_FORCED_MAINTENANCE, _CONFIGURED_MAINTENANCE, _FORCED_DRAIN = 0x01, 0x04, 0x08
_CHECK_ENABLED = 0x04
_RUNNING = 2

# What success says, by the beginning of the command; the others say nothing.
_SUCCESS = (
    ("add server ", re.compile(r"New server registered\.")),
    ("del server ", re.compile(r"Server deleted\.")),
    ("set server ", re.compile(r"((no need to change the addr|(IP|port) changed from|nothing changed).*)?", re.DOTALL)),
    ("", re.compile("")),
)


class IngressGone(ClusterError):
    """No HAProxy answers at the socket: it has died, or was not started."""


class IngressRefused(ClusterError):
    """HAProxy answered a command with an error; `reply` is its text."""

    def __init__(self, command: str, reply: str) -> None:
        super().__init__(f"haproxy refused {command!r}: {reply or 'it did not say why'}")
        self.reply = reply


class IngressServer(Record, frozen=True, kw_only=True):
    """A server of a backend as HAProxy has it.

    `state`: `ready`, `drain` or `maint` as it was ordered.  `up`: whether its checks say that it can take requests;
    `checked`: whether there are any; `check_host`, `check_port`: where, if that is not the server's own address."""

    number: int
    host: str
    port: int
    weight: int
    state: str
    up: bool = True
    checked: bool = True
    secure: bool = False
    check_host: str = ""
    check_port: int = 0


def quote(command: str) -> str:
    """Return `command` if it is one command; ClusterError if a line's end or a semicolon would make it several."""
    if re.search(r"[\n\r;\\\x00]", command) or not command.strip():
        raise ClusterError(f"{command!r} is no single command")
    return command


def split_replies(text: str, count: int) -> list[str]:
    """Return the answers of `count` commands, each without its empty line; IngressGone if the text ends early."""
    replies = []
    lines = text.split("\n")
    at = 0
    for _ in range(count):
        try:
            end = lines.index("", at)
        except ValueError:
            end = len(lines)
        # The text ends with a line's end, so that its last piece is empty and belongs to no answer.
        if end >= len(lines) - 1:
            raise IngressGone("haproxy closed the connection before all commands were answered")
        replies.append("\n".join(lines[at:end]))
        at = end + 1
    return replies


def check_reply(command: str, reply: str) -> None:
    """Raise IngressRefused unless this is what HAProxy answers to such a command if it succeeded."""
    expected = next(pattern for beginning, pattern in _SUCCESS if command.startswith(beginning))
    if not expected.fullmatch(reply.strip()):
        raise IngressRefused(command, reply.strip())


def parse_server_states(text: str) -> dict[str, dict[str, IngressServer]]:
    """Return the answer to `show servers state`: servers by backend and name.  ClusterError if it is something else."""
    lines = text.splitlines()
    if len(lines) < 2 or lines[0].strip() != "1" or not lines[1].startswith("# "):
        raise ClusterError(f"haproxy answered 'show servers state' with {text[:200]!r}")
    columns = lines[1][2:].split()
    states: dict[str, dict[str, IngressServer]] = {}
    for line in lines[2:]:
        row = dict(zip(columns, line.split(), strict=False))
        try:
            admin, check = int(row["srv_admin_state"]), int(row["srv_check_state"])
            state = IngressServer(
                number=int(row["srv_id"]),
                host=row["srv_addr"],
                port=int(row["srv_port"]),
                weight=int(row["srv_uweight"]),
                state=_join_commands(admin),
                up=int(row["srv_op_state"]) == _RUNNING,
                checked=bool(check & _CHECK_ENABLED),
                secure=row["srv_use_ssl"] == "1",
                check_host=row["srv_check_addr"].removeprefix("-"),
                check_port=int(row["srv_check_port"]),
            )
            states.setdefault(row["be_name"], {})[row["srv_name"]] = state
        except (KeyError, ValueError):
            raise ClusterError(f"haproxy answered 'show servers state' with the line {line[:200]!r}") from None
    return states


def _join_commands(admin: int) -> str:
    if admin & (_FORCED_MAINTENANCE | _CONFIGURED_MAINTENANCE):
        return "maint"
    return "drain" if admin & _FORCED_DRAIN else "ready"


def parse_statistics(text: str) -> list[dict[str, str | int]]:
    """Return the answer to `show stat typed`: one dictionary of field names and values for each frontend, backend and
    server.  Numbers are integers.  ClusterError if it is something else."""
    rows: dict[tuple[str, ...], dict[str, str | int]] = {}
    for line in text.splitlines():
        # B.3.0.7.stot.1:MCP:u64:12: kind, proxy, server, position, name and process of the field; tags; type; value
        try:
            field, _, kind, value = line.split(":", 3)
            what, proxy, server, _, name, process = field.split(".")
            number = kind in ("u32", "s32", "u64", "s64")
            rows.setdefault((what, proxy, server, process), {})[name] = int(value) if number else value
        except ValueError:
            raise ClusterError(f"haproxy answered 'show stat' with the line {line[:200]!r}") from None
    return list(rows.values())


def parse_info(text: str) -> dict[str, str]:
    """Return the answer to `show info` as names and values."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def batches(commands: Iterable[str]) -> list[list[str]]:
    """Return the commands in their order, in lists that fit into one line each."""
    lines: list[list[str]] = []
    room = 0
    for command in commands:
        length = len(command.encode()) + 1
        if not lines or length > room:
            lines.append([])
            room = _LINE_BYTES
        lines[-1].append(command)
        room -= length
    return lines


class RuntimeApi:
    """Sends commands to the HAProxy that listens at a Unix socket.  Nothing is kept between two calls."""

    def __init__(self, path: str, answer_s: float = _ANSWER_S) -> None:
        self.path = path
        self._answer_s = answer_s

    async def replies(self, commands: Sequence[str]) -> list[str]:
        """Return the answer to each command, unchecked.

        IngressGone if nobody listens or the connection ends early, ClusterError if no answer comes in time."""
        texts: list[str] = []
        for batch in batches(map(quote, commands)):
            texts += split_replies(await self._exchange(";".join(batch)), len(batch))
        return texts

    async def ask(self, command: str) -> str:
        """Return the answer to a command that shows something."""
        return (await self.replies([command]))[0]

    async def change(self, commands: Sequence[str]) -> None:
        """Run commands that change something; IngressRefused for the first that was refused, after all were tried."""
        replies = await self.replies(commands)
        for command, reply in zip(commands, replies, strict=True):
            check_reply(command, reply)

    async def info(self) -> dict[str, str]:
        """Return what the process says of itself: Pid, Version, description and more."""
        return parse_info(await self.ask("show info"))

    async def server_states(self) -> dict[str, dict[str, IngressServer]]:
        """Return all servers by backend and name."""
        return parse_server_states(await self.ask("show servers state"))

    async def server_statistics(self, servers: Sequence[tuple[str, int]] = ()) -> list[dict[str, str | int]]:
        """Return the counters of servers, given by backend and number; of all if none are given."""
        which = servers or [("-1", -1)]
        replies = await self.replies([f"show stat {backend} 4 {number} typed" for backend, number in which])
        return list(itertools.chain.from_iterable(map(parse_statistics, replies)))

    async def _exchange(self, line: str) -> str:
        writer = None
        try:
            async with asyncio.timeout(self._answer_s):
                reader, writer = await asyncio.open_unix_connection(self.path)
                writer.write(line.encode() + b"\n")
                await writer.drain()
                pieces: list[bytes] = []
                size = 0
                while piece := await reader.read(1 << 18):
                    pieces.append(piece)
                    size += len(piece)
                    if size > _MOST_BYTES:
                        raise ClusterError("haproxy answers without an end")
                return b"".join(pieces).decode(errors="replace")
        except TimeoutError:
            raise ClusterError(f"haproxy did not answer within {self._answer_s:g} s") from None
        except OSError as error:
            raise IngressGone(f"no haproxy answers: {error.strerror or type(error).__name__}") from None
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
