"""The clients over httpx, with and without asyncio, before the routes of a server."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx", reason="the client needs the extra `client`")

import httpx

from clover.client import AsyncClient, Client, Options, Retries, ServerUnreachable, tally
from clover.config import ListenConfig
from clover.errors import BadRequest, DeadlineMissed, NotFound, Overloaded
from clover.types import OpenAiSpec
from tests.support.http_fakes import Driver, FakeModel, FakeView, echo_family, family, request, tensor

TOKEN = "t" * 32


def driver() -> Driver:
    words = family(
        "words",
        [tensor("TEXT", "BYTES", 1, max_bytes=64)],
        [tensor("VECTOR", "FP32", 2)],
        openai=OpenAiSpec(embeddings=True),
    )
    vectors = FakeModel(words, lambda inputs: [np.array([[0.0, len(row) - 4] for row in inputs[0]], np.float32)])
    view = FakeView(FakeModel(echo_family()), vectors)
    return Driver(view, listen=ListenConfig(host="0.0.0.0", token=TOKEN))


class Served:
    """An httpx transport before a driver's routes; `heads` are those of all requests."""

    def __init__(self) -> None:
        self.driver = driver()
        self.heads: list[bytes] = []
        self.error: Exception | None = None

    def __call__(self, sent: httpx.Request) -> httpx.Response:
        if self.error is not None:
            raise self.error
        fields = [f"{name}: {value}" for name, value in sent.headers.items() if name not in ("host", "content-length")]
        raw = request(sent.method, sent.url.raw_path.decode(), sent.content, fields)
        self.heads.append(raw.partition(b"\r\n\r\n")[0])
        [answer] = self.driver.send(raw)
        return httpx.Response(answer.status, headers=answer.fields, content=answer.body)

    def options(self, **more: Any) -> Options:
        retries = Retries(most=1, first_s=0.0)
        return Options(token=TOKEN, transport=httpx.MockTransport(self), retries=retries, **more)


def test_a_client_asks_embeds_and_counts() -> None:
    served = Served()
    with Client("http://x", served.options()) as client, tally() as used:
        assert client.ready()
        assert client.models() == ["echo", "words"]
        answer = client.infer("echo", np.array([1, 0, 2, 0], np.float32), timeout_s=5)
        assert answer["OUT"].tolist() == [[1.0, 0.0, 2.0, 0.0]]
        assert client.embed("words", ["ab", "abc"]).tolist() == [[0.0, 2.0], [0.0, 3.0]]
        assert client.feedback(answer, [0])["rows"] == 1
        assert client.describe("echo").inputs[0].shape == (4,)
        with pytest.raises(NotFound):
            client.infer("none", [1.0])
        with pytest.raises(BadRequest):
            client.infer("echo", [1.0])
    assert {name: one.calls for name, one in used.by_model.items()} == {"echo": 1, "words": 1}
    assert used.joules > 0


def test_calls_one_after_the_other_send_the_same_head_which_the_server_knows() -> None:
    served = Served()
    with Client("http://x", served.options()) as client:
        for _ in range(3):
            client.infer("echo", np.zeros(4, np.float32), timeout_s=5.0)
    assert len(set(served.heads[1:])) <= 2  # the length of the timeout's digits may differ


def test_the_asynchronous_client_is_its_like() -> None:
    served = Served()

    async def run() -> None:
        async with AsyncClient("http://x", served.options()) as client:
            assert await client.ready()
            assert await client.models() == ["echo", "words"]
            answers = await asyncio.gather(*(client.infer("echo", np.full((1, 4), i, np.float32)) for i in range(3)))
            assert [answer["OUT"][0, 0] for answer in answers] == [0.0, 1.0, 2.0]
            assert (await client.embed("words", ["abc"], dimensions=1)).shape == (1, 1)
            assert (await client.feedback(answers[0], [None]))["rows"] == 1
            assert (await client.describe("words")).version == "1"
            served.driver.view.by_name["echo"].refusal = Overloaded("full", retry_after_s=90)  # type: ignore[attr-defined]
            with pytest.raises(Overloaded, match="full"):
                await client.infer("echo", np.zeros(4), timeout_s=1)

    with tally() as used:
        asyncio.run(run())
    assert used.calls == 4


@pytest.mark.parametrize(
    ("error", "raised"),
    [(httpx.ConnectError("refused"), ServerUnreachable), (httpx.ReadTimeout("slow"), DeadlineMissed)],
)
def test_what_the_network_does_has_its_errors(error: Exception, raised: type[Exception]) -> None:
    served = Served()
    served.error = error

    async def run() -> None:
        async with AsyncClient("http://x", served.options()) as client:
            assert not await client.ready()
            with pytest.raises(raised):
                await client.infer("echo", [1.0])

    with Client("http://x", served.options()) as client:
        assert not client.ready()
        with pytest.raises(raised):
            client.infer("echo", [1.0])
    asyncio.run(run())


def test_settings_may_be_given_by_name() -> None:
    with Client("http://x", timeout_s=3.0) as client, pytest.raises(TypeError):
        Client("http://x", timeout=3.0)
    assert not Client("http://127.0.0.1:1").ready()
    assert client is not None
