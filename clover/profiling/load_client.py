"""A client that sends requests at random times over HTTP: a script for a process of its own, without imports of Clover.

    load_client.py HOST PORT RATE SECONDS SEED PATIENCE_S

Requests, whole and ready to send, come on standard input, each behind its length in four bytes.  They leave in turn at
the times of a seeded Poisson process of RATE a second, whether or not earlier answers have come.  Standard output gets
the milliseconds of each as doubles, in the order in which they were due: from the moment at which it should have left
to the last byte of its answer, so that a server that stands still cannot hide its queue.  One that has no answer with
status 200 within PATIENCE_S seconds of the end is NaN.
"""

import math
import random
import select
import socket
import sys
import time
from array import array

_CONNECTIONS = 32
_MOST_CONNECTIONS = 256
_READ_BYTES = 1 << 16


class LoadClient:
    """Sends `requests` in turn over as many connections as requests are under way at once."""

    def __init__(self, address: tuple[str, int], requests: list[bytes], patience_s: float) -> None:
        self._address = address
        self._requests = requests
        self._patience_s = patience_s
        self._idle = [self._connect() for _ in range(_CONNECTIONS)]
        self._flying: dict[socket.socket, int] = {}
        self._received: dict[socket.socket, bytes] = {}

    def play(self, rate: float, seconds: float, seed: int) -> "array[float]":
        """Send for `seconds` at `rate` requests a second and return the milliseconds of each."""
        gaps = random.Random(seed)
        due_s = [gaps.expovariate(rate)]
        while due_s[-1] < seconds:
            due_s.append(due_s[-1] + gaps.expovariate(rate))
        ms = array("d", [math.nan]) * len(due_s)
        began_s = time.monotonic()
        sent, end_s = 0, began_s + due_s[-1] + self._patience_s
        while sent < len(due_s) or self._flying:
            now_s = time.monotonic()
            if now_s > end_s:
                break
            while sent < len(due_s) and began_s + due_s[sent] <= now_s and self._room():
                self._send(sent)
                sent += 1
            wait_s = 0.1
            if sent < len(due_s) and self._room():
                wait_s = min(wait_s, max(0.0, began_s + due_s[sent] - time.monotonic()))
            for connection in select.select(list(self._flying), (), (), wait_s)[0]:
                number = self._flying[connection]
                if (fine := self._read(connection)) is not None and fine:
                    ms[number] = (time.monotonic() - began_s - due_s[number]) * 1e3
        return ms

    def _room(self) -> bool:
        return bool(self._idle) or len(self._flying) < _MOST_CONNECTIONS

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, self._patience_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _send(self, number: int) -> None:
        connection = self._idle.pop() if self._idle else self._connect()
        self._flying[connection], self._received[connection] = number, b""
        connection.sendall(self._requests[number % len(self._requests)])

    def _read(self, connection: socket.socket) -> bool | None:
        """Read what has come; return whether the answer is a good one, None while it is not whole."""
        try:
            data = connection.recv(_READ_BYTES)
        except OSError:
            data = b""
        received = self._received[connection] = self._received[connection] + data
        head, end, body = received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] if end else b""
        if data and (not end or (length and len(body) < int(length))):
            return None
        del self._flying[connection], self._received[connection]
        if not data or not length:  # closed by the server, or an answer whose end cannot be known
            connection.close()
            return False
        self._idle.append(connection)
        return head.startswith(b"HTTP/1.1 200 ")


def _given() -> list[bytes]:
    requests = []
    while len(size := sys.stdin.buffer.read(4)) == 4:
        requests.append(sys.stdin.buffer.read(int.from_bytes(size, "little")))
    return requests


def main() -> None:
    """Play the load of the command line."""
    host, port, rate, seconds, seed, patience_s = sys.argv[1:]
    client = LoadClient((host, int(port)), _given(), float(patience_s))
    sys.stdout.buffer.write(client.play(float(rate), float(seconds), int(seed)).tobytes())


if __name__ == "__main__":
    main()
