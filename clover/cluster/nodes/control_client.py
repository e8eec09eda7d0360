"""Calls to a server on the same machine through its control socket, for the agent of its node."""

from __future__ import annotations

import asyncio
import http.client
import json
from typing import Any

from clover.errors import ClusterError
from clover.unix_http import UnixConnection

_ANSWER_BYTES = 64 << 20


class ControlRefused(ClusterError):
    """The server answered a call, and refused it: `status` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class ControlClient:
    """The control socket at `path`; each call has a connection of its own and takes `timeout_s` at most."""

    def __init__(self, path: str, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def get(self, path: str) -> Any:
        """Return the decoded answer of a GET.  ControlRefused, or ClusterError if there is no answer."""
        return await asyncio.to_thread(self._call, "GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the decoded answer of a POST.  ControlRefused, or ClusterError if there is no answer."""
        return await asyncio.to_thread(self._call, "POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        connection = UnixConnection(self._path, self._timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
            response = connection.getresponse()
            text = response.read(_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise ClusterError(f"the server does not answer at its control socket: {error}") from error
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            raise ClusterError(f"the server answered {response.status} with something that is not JSON") from None
        if response.status != 200:
            why = answer.get("error", "") if isinstance(answer, dict) else ""
            raise ControlRefused(why or f"the server answered {response.status}", response.status)
        return answer
