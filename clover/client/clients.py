"""The two clients: the same calls, with and without asyncio, over httpx.

Connections are kept open and reused.  A client may be shared by threads (`Client`) or by the tasks of one event loop
(`AsyncClient`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from numpy.typing import NDArray

from clover.client.calls import Asking, Calls, ModelInfo, Result
from clover.client.messages import Call, Reply, Retries, Send, Wait
from clover.errors import ConfigError, no_certificate, untrusted

T = TypeVar("T")
_TIMEOUT_S = 30.0
_KEEP = httpx.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=30.0)


@dataclass(frozen=True, slots=True)
class Options:
    """How a client reaches its server.  `token` is sent as Bearer; `timeout_s` bounds a call with all its tries unless
    the call says otherwise; `cacert` is a file of certificates to trust, for a server with one of its own; `transport`
    replaces httpx's own (an `httpx.ASGITransport`, say); `folders` has, by model, the folder of its family, for steps
    of the client that need a file of it."""

    token: str = ""
    timeout_s: float = _TIMEOUT_S
    cacert: str | Path = ""
    retries: Retries = field(default_factory=Retries)
    transport: Any = None
    folders: Mapping[str, Path] = field(default_factory=dict)

    def calls(self) -> Calls:
        """Return the calls of a client with these options."""
        headers = {"accept-encoding": "identity"}  # figures do not shrink, and unpacking them costs both sides
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        return Calls(self.retries, headers, time.monotonic, folders=self.folders)

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """How httpx checks the server's certificate; raises ConfigError if `cacert` cannot be read."""
        if not self.cacert:
            return True
        try:
            return ssl.create_default_context(cafile=self.cacert)
        except OSError as error:
            raise ConfigError(no_certificate(self.cacert, error)) from error


def _asking(
    options: Options, timeout_s: float | None, min_accuracy: float, cascade: bool, fresh: bool, full_receipt: bool
) -> Asking:
    return Asking(options.timeout_s if timeout_s is None else timeout_s, min_accuracy, cascade, fresh, full_receipt)


class Client:
    """A client that blocks.  `url` is the server's address, as http://127.0.0.1:8080; raises ConfigError for another
    form."""

    def __init__(self, url: str = "http://127.0.0.1:8080", options: Options | None = None, **named: Any) -> None:
        self._options = options or Options(**named)
        self._calls = self._options.calls()
        self._http = httpx.Client(
            base_url=_address(url),
            verify=self._options.verify,
            transport=self._options.transport,
            limits=_KEEP,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def infer(
        self,
        model: str,
        inputs: object,
        *,
        timeout_s: float | None = None,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        fresh: bool = False,
        full_receipt: bool = False,
    ) -> Result:
        """Return the model's answer to `inputs`: a mapping of names to arrays, texts or files, or the value of its only
        input, with a leading row axis or one row without it.

        `timeout_s` bounds the call with all its tries; `min_accuracy` in percent: only variants expected to reach it
        answer; `cascade` False asks one variant a row; `fresh` True takes no cached answer; `full_receipt` True asks
        for a receipt with all of its members.
        Raises CloverError: BadRequest, NotFound, TooLarge, Overloaded, ModelFailed, Unavailable, DeadlineMissed, or
        ServerUnreachable.
        """
        asking = _asking(self._options, timeout_s, min_accuracy, cascade, fresh, full_receipt)
        return self._drive(self._calls.infer(model, inputs, asking))

    def embed(
        self, model: str, texts: Sequence[str], *, dimensions: int | None = None, timeout_s: float | None = None
    ) -> NDArray[Any]:
        """Return the embeddings of texts, float32 [texts, dimensions], by /v1/embeddings; raises CloverError."""
        return self._drive(self._calls.embed(model, texts, dimensions, timeout_s or self._options.timeout_s))

    def describe(self, model: str) -> ModelInfo:
        """Return what a model takes and gives, read anew; raises CloverError."""
        return self._drive(self._calls.describe(model, self._options.timeout_s))

    def models(self) -> list[str]:
        """Return the names of the models that are ready; raises CloverError."""
        return self._drive(self._calls.names(self._options.timeout_s))

    def ready(self) -> bool:
        """Return whether the server is there and ready."""
        return self._drive(self._calls.ready(self._options.timeout_s))

    def feedback(self, result: Result, labels: Sequence[int | float | str | None]) -> Any:
        """Send the labels of an answer, one a row (None: not known), once; return what the server says of them."""
        return self._drive(self._calls.feedback(result, labels, self._options.timeout_s))

    def _drive(self, call: Call[T]) -> T:
        """Carry out what a call asks for; return its result."""
        reply: Reply | None = None
        try:
            while True:
                step = call.send(reply)
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    reply = None
                else:
                    reply = self._exchange(step)
        except StopIteration as end:
            result: T = end.value
            return result

    def _exchange(self, send: Send) -> Reply:
        try:
            answer = self._http.request(
                send.method, send.path, content=send.body, headers=dict(send.headers), timeout=send.timeout_s
            )
        except httpx.TransportError as error:
            return _lost(error)
        return Reply(answer.status_code, answer.headers, answer.content)


class AsyncClient:
    """A client for asyncio, otherwise like `Client`."""

    def __init__(self, url: str = "http://127.0.0.1:8080", options: Options | None = None, **named: Any) -> None:
        self._options = options or Options(**named)
        self._calls = self._options.calls()
        self._http = httpx.AsyncClient(
            base_url=_address(url),
            verify=self._options.verify,
            transport=self._options.transport,
            limits=_KEEP,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def infer(
        self,
        model: str,
        inputs: object,
        *,
        timeout_s: float | None = None,
        min_accuracy: float = 0.0,
        cascade: bool = True,
        fresh: bool = False,
        full_receipt: bool = False,
    ) -> Result:
        """Return the model's answer to `inputs`; see `Client.infer`."""
        asking = _asking(self._options, timeout_s, min_accuracy, cascade, fresh, full_receipt)
        return await self._drive(self._calls.infer(model, inputs, asking))

    async def embed(
        self, model: str, texts: Sequence[str], *, dimensions: int | None = None, timeout_s: float | None = None
    ) -> NDArray[Any]:
        """Return the embeddings of texts; see `Client.embed`."""
        return await self._drive(self._calls.embed(model, texts, dimensions, timeout_s or self._options.timeout_s))

    async def describe(self, model: str) -> ModelInfo:
        """Return what a model takes and gives, read anew; raises CloverError."""
        return await self._drive(self._calls.describe(model, self._options.timeout_s))

    async def models(self) -> list[str]:
        """Return the names of the models that are ready; raises CloverError."""
        return await self._drive(self._calls.names(self._options.timeout_s))

    async def ready(self) -> bool:
        """Return whether the server is there and ready."""
        return await self._drive(self._calls.ready(self._options.timeout_s))

    async def feedback(self, result: Result, labels: Sequence[int | float | str | None]) -> Any:
        """Send the labels of an answer; see `Client.feedback`."""
        return await self._drive(self._calls.feedback(result, labels, self._options.timeout_s))

    async def _drive(self, call: Call[T]) -> T:
        """Carry out what a call asks for; return its result."""
        reply: Reply | None = None
        try:
            while True:
                step = call.send(reply)
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    reply = None
                else:
                    reply = await self._exchange(step)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _exchange(self, send: Send) -> Reply:
        try:
            async with asyncio.timeout(send.timeout_s):
                answer = await self._http.request(
                    send.method, send.path, content=send.body, headers=dict(send.headers), timeout=send.timeout_s
                )
        except TimeoutError:
            return Reply(0, error="it took too long", late=True)
        except httpx.TransportError as error:
            return _lost(error)
        return Reply(answer.status_code, answer.headers, answer.content)


def _address(url: str) -> httpx.URL:
    """Return the server's address; raises ConfigError if it is none."""
    try:
        if url.lower().startswith(("http://", "https://")):
            return httpx.URL(url)
    except httpx.InvalidURL:
        pass
    raise ConfigError(f"the server's address is http://HOST:PORT or https://HOST:PORT, not {url!r}")


def _lost(error: httpx.TransportError) -> Reply:
    """Return the reply that stands for an answer that did not come."""
    late = isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Reply(0, error=f"{type(error).__name__}: {error}{untrusted(str(error))}", late=late)
