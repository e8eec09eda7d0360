"""A server that ends by SIGKILL in the middle of a take-over: after it has sent or received so many times.

What is counted is successful calls on connections that it accepted from a unix socket, whatever is said by them: the
take-over socket is the only unix socket on which these servers listen.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from typing import Any

from clover import serve

_CALLS = ("send", "sendall", "sendmsg", "recv", "recv_into", "recvmsg")


class Fatal(socket.socket):
    """A connection whose `left`-th call ends the process, if it succeeds."""

    left = 0

    def count(self) -> None:
        Fatal.left -= 1
        if Fatal.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _counted(name: str) -> Callable[..., Any]:
    call = getattr(socket.socket, name)

    def counted(self: Fatal, *arguments: Any) -> Any:
        found = call(self, *arguments)
        self.count()
        return found

    return counted


for each in _CALLS:
    setattr(Fatal, each, _counted(each))


def main(calls: str, *words: str) -> None:
    """Serve with these words of the command line; die after `calls` calls."""
    Fatal.left = int(calls)
    accept = socket.socket.accept

    def accepted(self: socket.socket) -> tuple[socket.socket, Any]:
        found, address = accept(self)
        return (Fatal(fileno=found.detach()) if self.family == socket.AF_UNIX else found), address

    socket.socket.accept = accepted  # type: ignore[method-assign]
    raise SystemExit(serve.main(words))
